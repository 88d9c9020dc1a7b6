"""The model for games: its loss, its policies, its training on the CPU."""

import numpy as np
import pytest
import torch
from replay_games import write_recording

import dmamba
from dmamba import _C


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = write_recording(tmp_path_factory.mktemp("games"), lengths=(40, 9, 60))
    return _C.open_replay(str(folder))


def small(position="segment", encoder="nature", K=6):
    torch.manual_seed(1)
    model = dmamba.nn.AtariDMamba(
        5,
        d_model=32,
        n_layer=2,
        context_length=K,
        max_timestep=100,
        position=position,
        encoder=encoder,
    )
    with torch.no_grad():  # zeros at first
        for name, parameter in model.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_(0.0, 0.3)
    return model.eval()


def inputs(batch=2, K=6, seed=0):
    """Strips, actions, returns-to-go, first timesteps."""
    generator = torch.Generator().manual_seed(seed)
    strips = torch.randint(0, 256, (batch, K + 3, 84, 84), generator=generator, dtype=torch.uint8)
    actions = torch.randint(0, 5, (batch, K), generator=generator)
    return strips, actions, torch.randn(batch, K, 1, generator=generator), torch.tensor([0, 60])


def stacks_of(strips):
    return strips.unfold(1, 4, 1).permute(0, 1, 4, 2, 3).contiguous()


@pytest.mark.parametrize("encoder", ["nature", "impala"])
@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_the_loss_is_the_mean_cross_entropy_of_real_steps(position, encoder):
    model = small(position, encoder)
    strips, actions, rtg, timesteps = inputs()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, :2] = False
    logits = model(stacks_of(strips), actions, rtg, timesteps, mask)
    expected = torch.nn.functional.cross_entropy(logits[mask], actions[mask])
    loss = model.cpp_module.loss(strips, actions, rtg, timesteps, mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_padding_in_front_changes_nothing(position):
    model = small(position)
    strips, actions, rtg, timesteps = inputs()
    short = model(stacks_of(strips)[:, 2:], actions[:, 2:], rtg[:, 2:], timesteps)
    mask = torch.arange(6).expand(2, 6) >= 2
    padded = model(stacks_of(strips), actions, rtg, timesteps, mask)
    torch.testing.assert_close(padded[:, 2:], short)


def test_an_answer_does_not_depend_on_what_comes_after():
    model = small()
    strips, actions, rtg, timesteps = inputs()
    whole = model(stacks_of(strips), actions, rtg, timesteps)
    actions[:, 3:] = 0
    rtg[:, 4:] = 7.0
    later = model(stacks_of(strips), actions, rtg, timesteps)
    torch.testing.assert_close(whole[:, :4], later[:, :4])
    assert not torch.allclose(whole[:, 4:], later[:, 4:])


class Game:
    """Random frames of a few games, the same for every policy."""

    def __init__(self, games=3, seed=0):
        generator = np.random.default_rng(seed)
        self.frames = torch.from_numpy(
            generator.integers(0, 256, (30, games, 4, 84, 84), dtype=np.uint8)
        )
        self.rewards = torch.from_numpy(generator.random((30, games)))
        self.targets = torch.tensor([1.0, 5.0, 9.0][:games], dtype=torch.float64)
        self.seeds = torch.tensor([11, 12, 13][:games])

    def play(self, policy, steps, resets):
        """Logits and actions of each step; resets: step -> which."""
        logits, actions = [], []
        for step in range(steps):
            which = resets.get(step)
            if which is not None:
                policy.reset(torch.tensor(which), self.targets, self.seeds)
            actions.append(policy.act(self.frames[step]))
            logits.append(policy.logits.clone())
            policy.observe(self.rewards[step])
        return torch.stack(logits), torch.stack(actions)


@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_both_kinds_agree_while_episodes_are_short(position):
    model, game = small(position), Game()
    resets = {0: [True] * 3, 4: [False, True, False], 6: [True, False, True]}
    logits, actions = zip(
        *(
            game.play(_C.AtariPolicy(model.cpp_module, kind, 3), 10, resets)
            for kind in ("windowed", "recurrent")
        ),
        strict=True,
    )
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(actions[0], actions[1])


def answer(model, game, first, last, slot, actions, rtg):
    """The model's answer to the steps [first, last] of a game that began at step 0."""
    steps = slice(first, last + 1)
    return model(
        game.frames[steps, slot].unsqueeze(0),
        actions[steps, slot].unsqueeze(0),
        rtg[steps, slot].view(1, -1, 1),
        torch.tensor([first]),
    )[0, -1]


@pytest.mark.parametrize("K", [1, 5, 6])
@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_long_episodes(kind, K):
    model, game = small(K=K), Game()
    logits, actions = game.play(_C.AtariPolicy(model.cpp_module, kind, 3), 14, {0: [True] * 3})
    rtg = (game.targets - game.rewards.cumsum(0) + game.rewards).float()
    begun = 0
    for step in range(14):
        if kind == "windowed":
            begun = max(0, step - K + 1)
        elif step - begun == K:  # places are used up: a new segment with the last K / 2 steps
            begun = step - K // 2
        for slot in range(3):
            expected = answer(model, game, begun, step, slot, actions, rtg)
            torch.testing.assert_close(logits[step, slot], expected, rtol=1e-4, atol=1e-5)


def test_segments_begin_anew_in_one_game_alone():
    model, game = small(), Game()
    alone, _ = game.play(_C.AtariPolicy(model.cpp_module, "recurrent", 3), 12, {0: [True] * 3})
    resets = {0: [True] * 3, 3: [False, True, False]}
    other, _ = game.play(_C.AtariPolicy(model.cpp_module, "recurrent", 3), 12, resets)
    torch.testing.assert_close(alone[:, [0, 2]], other[:, [0, 2]])
    assert not torch.allclose(alone[3:, 1], other[3:, 1])


def test_actions_follow_from_seed_and_step():
    model, game = small(), Game()
    everyone = {0: [True] * 3}
    _, first = game.play(_C.AtariPolicy(model.cpp_module, "windowed", 3), 12, everyone)
    _, again = game.play(_C.AtariPolicy(model.cpp_module, "windowed", 3), 12, everyone)
    assert torch.equal(first, again)
    game.seeds = game.seeds + 100
    _, other = game.play(_C.AtariPolicy(model.cpp_module, "windowed", 3), 12, everyone)
    assert not torch.equal(first, other)
    logits, best = game.play(
        _C.AtariPolicy(model.cpp_module, "windowed", 3, 1.0, 0.0), 12, everyone
    )
    assert torch.equal(best, logits.argmax(2))


def test_actions_are_drawn_from_the_softmax():
    model = small()
    policy = _C.AtariPolicy(model.cpp_module, "windowed", 2000, 1.0, 0.5)
    frames = torch.zeros(2000, 4, 84, 84, dtype=torch.uint8)
    policy.reset(torch.ones(2000, dtype=torch.bool), torch.ones(2000), torch.arange(2000))
    found = torch.bincount(policy.act(frames), minlength=5) / 2000
    expected = torch.softmax(policy.logits[0] / 0.5, 0)
    assert (found - expected).abs().max() <= 0.05  # 4.5 deviations


def make_trainer(store, seed=3, steps=8, **keys):
    config = _C.Config()
    config.seed = seed
    config.dataset.rtg_scale = 1.0
    config.model.d_model, config.model.n_layer, config.model.context_length = 32, 1, 8
    config.model.max_timestep = 100
    config.training.device = "cpu"
    config.training.steps, config.training.batch_size, config.training.log_every = steps, 4, 1
    for key, value in keys.items():
        setattr(config.model if hasattr(config.model, key) else config.training, key, value)
    torch.manual_seed(seed)
    model = dmamba.nn.AtariDMamba(4, config=config.model)
    return _C.Trainer(config, store, model.cpp_module), model


def state_bytes(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_training_resumes_to_the_same_bits(store, tmp_path):
    whole, expected = make_trainer(store)
    rows = whole.run(1e9)
    first, _ = make_trainer(store)
    first.run(1e9, 3)
    first.save(str(tmp_path / "checkpoint"))
    second, model = make_trainer(store)
    second.load(str(tmp_path / "checkpoint"))
    assert second.run(1e9) == rows[3:]
    assert state_bytes(model) == state_bytes(expected)
    loaded, info = dmamba.nn.load(tmp_path / "checkpoint")
    assert isinstance(loaded, dmamba.nn.AtariDMamba)
    assert (info["num_actions"], info["rtg_scale"], info["step"]) == (4, 1.0, 3)


def test_training_learns(store):
    without = {"dropout": 0.0, "embedding_dropout": 0.0}
    trainer, _ = make_trainer(store, steps=120, learning_rate=3e-3, warmup_steps=5, **without)
    rows = [row["training/loss"] for row in trainer.run(1e9)]
    assert np.mean(rows[-5:]) < 0.8 * np.mean(rows[:5])


def test_other_data_is_refused(store, tmp_path):
    trainer, _ = make_trainer(store)
    trainer.run(1e9, 1)
    trainer.save(str(tmp_path / "checkpoint"))
    games = write_recording(tmp_path / "games", shards=(1,), lengths=(40, 9, 60))
    other = _C.open_replay(str(games))
    with pytest.raises(dmamba.CheckpointError, match="actions, rewards or episodes differ"):
        make_trainer(other)[0].load(str(tmp_path / "checkpoint"))


def test_a_model_copies_and_pickles():
    import copy
    import pickle

    model = small("timestep", "impala")
    strips, actions, rtg, timesteps = inputs()
    expected = model(stacks_of(strips), actions, rtg, timesteps)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(stacks_of(strips), actions, rtg, timesteps), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": (2, 6, 3, 84, 84)}, r"must be \(n, 4, 84, 84\) uint8"),
        ({"actions": (2, 5)}, r"actions must be \[2, 6\]"),
        ({"returns_to_go": (2, 6)}, r"returns_to_go must be \[2, 6, 1\]"),
        ({"timesteps": (2, 6)}, r"timesteps must be \[2\]"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    shapes = {
        "frames": (2, 6, 4, 84, 84),
        "actions": (2, 6),
        "returns_to_go": (2, 6, 1),
        "timesteps": (2,),
    } | change
    kinds = {"frames": torch.uint8, "returns_to_go": torch.float32}
    tensors = {n: torch.zeros(s, dtype=kinds.get(n, torch.int64)) for n, s in shapes.items()}
    with pytest.raises(RuntimeError, match=message):
        small()(**tensors)


def test_more_steps_than_places_is_an_error():
    strips, actions, rtg, timesteps = inputs(K=7)
    with pytest.raises(RuntimeError, match="7 steps, but the model has places for 1 to 6"):
        small()(stacks_of(strips), actions, rtg, timesteps)
    small("timestep")(stacks_of(strips), actions, rtg, timesteps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet"}, "'resnet' is unknown; choose one of nature, impala"),
        ({"position": "rotary"}, "'rotary' is unknown; choose one of segment, timestep"),
        ({"d_model": 0}, "d_model must be at least 1"),
    ],
)
def test_unknown_choices(options, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.nn.AtariDMamba(4, **options)


def test_strips_are_checked():
    strips, actions, rtg, timesteps = inputs()
    loss = small().cpp_module.loss
    mask = torch.ones(2, 6, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"strips must be \(batch, 3 \+ K, 84, 84\) uint8"):
        loss(strips.float(), actions, rtg, timesteps, mask)
    with pytest.raises(RuntimeError, match="actions must be"):
        loss(strips[:1], actions, rtg, timesteps, mask)


def test_autocast_leaves_the_recurrent_logits_in_float32():
    game = Game()
    logits = []
    for kind in ("windowed", "recurrent"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            policy = _C.AtariPolicy(small().cpp_module, kind, 3)
            logits.append(game.play(policy, 4, {0: [True] * 3})[0])
    assert (logits[1] != logits[1].bfloat16().float()).any()
    torch.testing.assert_close(logits[0], logits[1], rtol=0.05, atol=0.05)


def test_damaged_parameters_do_not_play():
    model = small()
    with torch.no_grad():
        model.get_parameter("head.weight")[1] = float("nan")
    with pytest.raises(dmamba.Error, match="a logit of game 0 is not finite at step 0"):
        Game().play(_C.AtariPolicy(model.cpp_module, "windowed", 3), 1, {0: [True] * 3})


def test_a_model_of_other_settings_is_refused(store):
    config = _C.Config()
    config.dataset.rtg_scale, config.training.device = 1.0, "cpu"
    with pytest.raises(dmamba.ConfigError, match="other settings than the configuration's section"):
        _C.Trainer(config, store, dmamba.nn.AtariDMamba(4, encoder="impala").cpp_module)
    with pytest.raises(TypeError):
        _C.Trainer(config, None, dmamba.nn.AtariDMamba(4).cpp_module)


def test_a_cosine_must_end_behind_the_warm_up():
    with pytest.raises(dmamba.ConfigError, match="cosine_tokens.*more than the warm-up's 2000"):
        _C.Config.parse("training: {cosine_tokens: 2000, warmup_steps: 4, batch_size: 25}", "x")
