"""Atari: batches of games, their names, the human-normalised score."""

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest

import dmamba
from dmamba import envs
from dmamba.envs import atari, games
from dmamba.envs.slots import SlotError
from dmamba.evaluation import suites

RECORDED = Path(__file__).parents[1] / "data" / "breakout_game.npz"
EVERYWHERE = {n: np.ones(n, dtype=bool) for n in (1, 2, 3)}


def chosen(seed, step, count=4):
    return int(np.random.default_rng([seed, step]).integers(count))


def play(seeds, slots, steps=12, **options):
    """Plays an episode a seed for some steps; its frames, rewards and ends by seed."""
    found, queue = {seed: [] for seed in seeds}, list(seeds)
    playing, done = [None] * slots, np.zeros(slots, dtype=int)
    with atari.Environments("Breakout", slots, **options) as environments:
        assert (environments.num_envs, environments.num_actions) == (slots, 4)
        while True:
            starting = np.zeros(slots, dtype=bool)
            for slot in range(slots):
                if queue and playing[slot] is None:
                    playing[slot], done[slot], starting[slot] = queue.pop(0), 0, True
            active = np.array([seed is not None for seed in playing])
            if not active.any():
                return found
            if starting.any():
                keys = np.array([-1 if seed is None else seed for seed in playing])
                frames = environments.reset(starting, keys)
                for slot in np.flatnonzero(starting):
                    found[playing[slot]].append(frames[slot].copy())
            actions = [
                -7 if s is None else chosen(s, t) for s, t in zip(playing, done, strict=True)
            ]
            frames, rewards, ended = environments.step(np.array(actions), active)
            for slot in np.flatnonzero(active):
                found[playing[slot]].append((frames[slot].copy(), rewards[slot], ended[slot]))
                done[slot] += 1
                # Episodes of different length, so that slots change hands at different times.
                if done[slot] == steps + playing[slot] % 5:
                    playing[slot] = None


def assert_same(one, other):
    for seed in one:
        np.testing.assert_array_equal(one[seed][0], other[seed][0])
        for (frames, *rest), (same, *others) in zip(one[seed][1:], other[seed][1:], strict=True):
            np.testing.assert_array_equal(frames, same)
            assert rest == others


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_an_episode_follows_from_its_seed(sticky):
    seeds = [3, 2**31 - 1, 44, 5, 0]
    alone = play(seeds, 1, sticky_actions=sticky)
    assert_same(alone, play(seeds, 3, threads=2, sticky_actions=sticky))
    assert_same(alone, play(seeds[::-1], 2, sticky_actions=sticky))


def test_seeds_and_sticky_actions_matter():
    seeds = list(range(6))
    plain, sticky = (play(seeds, 3, steps=40, sticky_actions=p) for p in (0.0, 0.5))
    last = [plain[seed][-1][0] for seed in seeds]
    assert len({frames.tobytes() for frames in last}) > 1
    assert any(not np.array_equal(plain[s][-1][0], sticky[s][-1][0]) for s in seeds)


def test_the_stack_begins_with_zeros():
    with atari.Environments("ALE/Breakout-v5", 2) as environments:
        frames = environments.reset(EVERYWHERE[2], np.array([1, 2]))
        assert frames.dtype == np.uint8 and frames.shape == (2, 4, 84, 84)
        assert not frames[:, :3].any() and frames[:, 3].any()
        following, rewards, ended = environments.step(np.array([1, 0]), EVERYWHERE[2])
        np.testing.assert_array_equal(following[:, 2], frames[:, 3])
        assert not following[:, :2].any()
        assert rewards.dtype == np.float64 and ended.dtype == np.bool_
        again = environments.reset(np.array([True, False]), np.array([1, -1]))
        np.testing.assert_array_equal(again[0], frames[0])
        np.testing.assert_array_equal(again[1], following[1])


def test_a_first_reset_of_some():
    with atari.Environments("pong", 3) as environments:
        frames = environments.reset(np.array([False, True, False]), np.array([0, 8, 0]))
    with atari.Environments("pong", 1) as environments:
        np.testing.assert_array_equal(
            frames[1], environments.reset(EVERYWHERE[1], np.array([8]))[0]
        )


def test_rewards_are_raw_and_lives_do_not_end_a_game():
    actions = np.random.default_rng(0).integers(6, size=400)
    total, ends = 0.0, 0
    with atari.Environments("Qbert", 1) as environments:
        environments.reset(EVERYWHERE[1], np.array([0]))
        for action in actions:
            _, rewards, ended = environments.step(np.array([action]), EVERYWHERE[1])
            total += rewards[0]
            if rewards[0]:
                assert rewards[0] >= 25.0
            if ended[0]:
                ends += 1
                break
        assert total >= 25.0


@pytest.mark.parametrize("limit", [1, 7])
def test_the_time_limit_is_in_steps(limit):
    with atari.Environments("Breakout", 1, limit) as environments:
        environments.reset(EVERYWHERE[1], np.array([0]))
        ends = [environments.step(np.array([0]), EVERYWHERE[1])[2][0] for _ in range(limit)]
    assert ends == [False] * (limit - 1) + [True]


@pytest.mark.parametrize("action", [-1, 4])
def test_an_action_that_is_none(action):
    with atari.Environments("Breakout", 2) as environments:
        environments.reset(EVERYWHERE[2], np.array([0, 1]))
        with pytest.raises(SlotError, match=rf"given action {action}, but has 4 act") as error:
            environments.step(np.array([0, action]), EVERYWHERE[2])
        assert error.value.slot == 1
        environments.step(np.array([0, action]), np.array([True, False]))


def test_the_screen_is_the_same_game():
    with (
        atari.Environments("Breakout", 1) as seen,
        atari.Environments("Breakout", 1, screen=True) as screen,
    ):
        assert screen.reset(EVERYWHERE[1], np.array([5])).shape == (1, 1, 210, 160, 3)
        seen.reset(EVERYWHERE[1], np.array([5]))
        for step in range(300):
            action = np.array([chosen(9, step)])
            _, reward, ended = seen.step(action, EVERYWHERE[1])
            _, same, also = screen.step(action, EVERYWHERE[1])
            assert (reward[0], ended[0]) == (same[0], also[0])


def test_a_recorded_game_goes_by_to_the_bit():
    """A game recorded in the DQN-replay layout, outside of this package, with its actions.

    The recording does not say after how many idle frames it begins: some of the seeds must.
    """
    with np.load(RECORDED) as file:
        actions, rewards = file["actions"], file["rewards"]
        frames = dict(zip(file["steps"].tolist(), file["frames"], strict=True))
    everywhere, same = np.ones(24, dtype=bool), np.ones(24, dtype=bool)
    with atari.Environments("Breakout", 24, threads=2) as environments:
        seen = environments.reset(everywhere, np.arange(24))
        for step, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
            if step in frames:
                same &= (seen[:, -1] == frames[step]).all((1, 2))
            seen, earned, ended = environments.step(np.full(24, action), everywhere)
            same &= (np.clip(earned, -1, 1) == reward) & (ended == (step == len(actions) - 1))
            assert same.any(), f"no seed's game is the recorded one after step {step}"
    assert same.sum() < 24


@pytest.mark.parametrize(
    ("name", "rom"),
    [
        ("ALE/Breakout-v5", "breakout"),
        ("Breakout", "breakout"),
        ("breakout", "breakout"),
        ("MsPacman", "ms_pacman"),
        ("ms_pacman", "ms_pacman"),
        ("ALE/UpNDown-v5", "up_n_down"),
        ("ALE/Tetris-v5", "tetris"),
    ],
)
def test_spellings_of_a_game(name, rom):
    assert atari.find_rom(name) == rom


def test_unknown_games_name_those_spelt_like_them():
    with pytest.raises(dmamba.ConfigError, match="no Atari game 'ALE/Brekout-v5'.*ALE/Breakout-v5"):
        atari.find_rom("ALE/Brekout-v5")
    with pytest.raises(dmamba.ConfigError, match="'x'; for example ALE/Breakout-v5"):
        atari.Environments("x", 1)


def test_ale_py_that_is_missing(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments):
        if name.startswith("ale_py"):
            raise ImportError("No module named 'ale_py'")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "dmamba.envs.atari")
    monkeypatch.delattr(envs, "atari")
    with pytest.raises(
        dmamba.Error, match=r"'ale_py'.*pip install 'ale-py>=0\.12' 'gymnasium>=1\.1'"
    ):
        suites.import_atari()
    assert (envs.num_actions("Pong"), envs.num_actions("MsPacman")) == (6, None)


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("ALE/Breakout-v5", "Breakout"),
        ("breakout", "Breakout"),
        ("/data/atari/Breakout", "Breakout"),
        ("/data/atari/Breakout/1/replay_logs", "Breakout"),
        ("MsPacman/1/", "MsPacman"),
        ("ALE/Tetris-v5", "Tetris"),
        ("Tetris", None),
        ("/home/breakout/walker.hdf5", None),
        ("BreakoutNoFrameskip-v4", None),
    ],
)
def test_find(name, game):
    found = envs.find(name)
    assert (found.name if found else None) == game
    assert envs.is_game(name) is (game is not None)
    if found:
        assert found.gym_id == f"ALE/{game}-v5" and found.max_episode_steps == 27000


def test_vectors_environments_are_no_games():
    assert not any(envs.is_game(name) for name in ("Hopper-v4", "walker2d-medium-v2", ""))


def test_known_games_exist_and_know_their_actions():
    for game in games.GAMES.values():
        atari.find_rom(game.gym_id)
        if game.num_actions is not None:
            assert atari.num_actions(game.gym_id) == game.num_actions
    assert envs.num_actions("MsPacman") == 9
    assert envs.num_actions("Hopper-v4") is None


# DreamerV2's and DQN Zoo's tables list these, too.
@pytest.mark.parametrize(
    ("game", "random", "human"),
    [
        ("Assault", 222.4, 742.0),
        ("Asterix", 210.0, 8503.3),
        ("Breakout", 1.7, 30.5),
        ("Frostbite", 65.2, 4334.7),
        ("Gopher", 257.6, 2412.5),
        ("Pong", -20.7, 14.6),
        ("Qbert", 163.9, 13455.0),
        ("Seaquest", 68.4, 42054.7),
    ],
)
def test_the_human_normalised_score(game, random, human):
    scores = envs.normalized_score(game, np.array([random, human, 2 * human - random]))
    np.testing.assert_allclose(scores, [0.0, 100.0, 200.0])
    constants = envs.score_constants(f"ALE/{game}-v5", "anything")
    assert constants["borrowed"] is False
    assert envs.describe_constants(constants) == (
        "human-normalised score = 100 (R - random) / (human - random), "
        f"{game} {random:g} / {human:g} (Wang et al. 2016, arXiv 1511.06581)"
    )


def test_a_game_without_constants_has_no_score():
    assert envs.normalized_score("ALE/MsPacman-v5", 100.0) is None
    assert envs.score_constants("ALE/MsPacman-v5") is None


def test_scales_have_different_names():
    assert envs.scale_of("ALE/MsPacman-v5").key == "human_normalized_score"
    assert envs.scale_of("Hopper-v4").key == envs.scale_of("CartPole-v1").key == "d4rl_score"
