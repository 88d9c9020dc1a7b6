"""Writing the DQN-replay layout, read again by an independent reader."""

import gzip
import io

import numpy as np
import pytest
from replay_reference import games, read_shard, shard_numbers

from dmamba.data.replay_files import Game, write_shards


def make_game(length, seed=0, reward=2.5):
    rng = np.random.default_rng(seed)
    game = Game()
    for _ in range(length):
        frame = rng.integers(0, 255, (84, 84), np.uint8, endpoint=True)
        game.add(frame, rng.integers(0, 4), rng.choice([-reward, 0.0, reward]))
    game.close()
    return game


def frames_of(game):
    return np.frombuffer(b"".join(game.frames()), np.uint8).reshape(-1, 84, 84)


@pytest.mark.parametrize("lengths", [(1,), (3, 1, 40), (129, 2)])
def test_games_come_back(tmp_path, lengths):
    written = [make_game(length, seed) for seed, length in enumerate(lengths)]
    (row,) = write_shards(tmp_path / "1", written)
    logs = tmp_path / "1" / "replay_logs"
    assert shard_numbers(logs) == [0]
    shard = read_shard(logs, 0)
    types = {field: str(values.dtype) for field, values in shard.items()}
    assert types == {
        "observation": "uint8",
        "action": "int32",
        "reward": "float32",
        "terminal": "uint8",
    }
    assert {len(values) for values in shard.values()} == {sum(lengths) + 3 * len(lengths)}
    found = games(shard)
    assert [len(game["action"]) for game in found] == list(lengths)
    for game, other in zip(written, found, strict=True):
        assert np.array_equal(frames_of(game), other["observation"])
        assert game.actions == other["action"].tolist()
        assert other["reward"].tolist() == np.clip(game.rewards, -1, 1).tolist()
    assert row["returns"] == [sum(game.rewards) for game in written]
    assert row["mean_clipped"] == np.mean([game["reward"].sum() for game in found])
    assert row["mean_length"] == np.mean(lengths)


def test_a_shard_ends_with_the_game_that_fills_it(tmp_path):
    written = [make_game(length, length) for length in (10, 12, 30, 5)]
    rows = write_shards(tmp_path, written, first=46, shard_rows=28)
    logs = tmp_path / "replay_logs"
    assert shard_numbers(logs) == [46, 47, 48] == [row["suffix"] for row in rows]
    assert [row["games"] for row in rows] == [2, 1, 1]
    assert [len(games(read_shard(logs, number))) for number in (46, 47, 48)] == [2, 1, 1]


def test_what_dopamine_keeps_beside_the_columns(tmp_path):
    write_shards(tmp_path, [make_game(10)])

    def read(name):
        packed = (tmp_path / "replay_logs" / f"{name}_ckpt.0.gz").read_bytes()
        return np.load(io.BytesIO(gzip.decompress(packed)))

    assert read("add_count").shape == () and read("add_count") == 12
    assert read("invalid_range").tolist() == [12, 0, 1, 2, 3]


def test_the_same_games_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shards(tmp_path / name, [make_game(20)])
    for file in (tmp_path / "a" / "replay_logs").iterdir():
        packed = file.read_bytes()
        assert packed == (tmp_path / "b" / "replay_logs" / file.name).read_bytes()
        assert packed[3:8] == bytes(5), "neither name nor time in the head of the gzip"


def test_a_wrong_frame_is_refused():
    with pytest.raises(ValueError, match=r"\(84, 84\) uint8, got \(84, 84\) float64"):
        Game().add(np.zeros((84, 84)), 0, 0.0)
