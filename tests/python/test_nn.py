"""The C++ modules behave as ordinary torch modules, and the policies as the model."""

import copy
import pickle

import numpy as np
import pytest
import torch

import dmamba
from dmamba.nn import DMamba, Mamba


def small_model(**options):
    torch.manual_seed(0)
    options = {"d_model": 16, "n_layer": 2, "context_length": 6, "max_timestep": 50} | options
    return DMamba(5, 2, **options)


def inputs(batch=3, K=6):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, K, 5, generator=generator),
        torch.randn(batch, K, 2, generator=generator),
        torch.randn(batch, K, 1, generator=generator),
        torch.arange(K).repeat(batch, 1),
    )


def test_state_dict_names_are_the_authors():
    names = set(small_model().state_dict())
    layer = "transformer.h.1."
    for name in ("norm_mamba.weight", "mamba.A_log", "mamba.D", "mamba.in_proj.weight",
                 "mamba.conv1d.bias", "mamba.x_proj.weight", "mamba.dt_proj.bias",
                 "mamba.out_proj.weight", "ln_2.bias", "mlp_channels.2.weight"):  # fmt: skip
        assert layer + name in names
    assert {"embed_timestep.weight", "transformer.ln_f.weight", "predict_action.0.bias"} <= names


def test_copies_and_pickles():
    model = small_model().eval()
    expected = model(*inputs())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(*inputs()), expected)
        assert not twin.training
        next(twin.parameters()).data.zero_()
    assert torch.equal(model(*inputs()), expected)


def test_trains_with_any_optimizer_and_overfits():
    model = small_model(dropout=0.0, embedding_dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = inputs()
    target = torch.tanh(data[1])
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(*data) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_moves_between_dtypes_and_modes():
    model = small_model()
    assert model.eval() is model and not model.training
    assert model.train().training
    model.double()
    assert all(p.dtype == torch.float64 for p in model.parameters())
    states, actions, rtg, timesteps = inputs()
    out = model.eval()(states.double(), actions.double(), rtg.double(), timesteps)
    assert out.dtype == torch.float64


def test_outermost_hooks_fire_and_modules_nest():
    model = Mamba(8)
    calls = []
    model.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    sequence = torch.nn.Sequential(model, torch.nn.Linear(8, 3))
    assert sequence(torch.randn(2, 5, 8)).shape == (2, 5, 3)
    assert calls == [(2, 5, 8)]
    assert "0.A_log" in sequence.state_dict()
    twin = torch.nn.Sequential(Mamba(8), torch.nn.Linear(8, 3))
    twin.load_state_dict(sequence.state_dict())
    with pytest.raises(RuntimeError, match="A_log"):
        twin.load_state_dict({k: v for k, v in sequence.state_dict().items() if "A_log" not in k})


def test_masked_padding_equals_no_padding():
    model = small_model().eval()
    states, actions, rtg, timesteps = inputs()
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, :2] = False
    padded = model(states, actions, rtg, timesteps, mask)[:, 2:]
    alone = model(states[:, 2:], actions[:, 2:], rtg[:, 2:], timesteps[:, 2:])
    torch.testing.assert_close(padded, alone)
    paper = small_model(padding="paper").eval()
    leaky = paper(states, actions, rtg, timesteps, mask)[:, 2:]
    assert not torch.allclose(leaky, alone)


def test_causality():
    model = small_model().eval()
    states, actions, rtg, timesteps = inputs()
    before = model(states, actions, rtg, timesteps)
    actions[:, 3] += 1.0  # seen from timestep 4 on
    after = model(states, actions, rtg, timesteps)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_autocast():
    model = small_model().eval()
    expected = model(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*inputs())
    out.float().square().mean().backward()
    assert (out.float() - expected).abs().max() < 3e-2
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"token_mixer": "mumba"}, dmamba.ConfigError, "mumba.*mamba"),
        ({"token_mixer": ["mamba", "mamba", "mamba"]}, dmamba.ConfigError, "3 mixers for 2 layers"),
        ({"padding": "none"}, dmamba.ConfigError, "masked, paper"),
        ({"channel_mixing": "conv"}, dmamba.ConfigError, "mlp, none"),
        ({"d_model": 0}, dmamba.ConfigError, "d_model"),
        ({"depth": 3}, TypeError, "depth.*d_model"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        small_model(**options)


def test_bad_inputs_are_named():
    states, actions, rtg, timesteps = inputs()
    model = small_model()
    with pytest.raises(RuntimeError, match="returns_to_go must be"):
        model(states, actions, rtg[:, :3], timesteps)
    with pytest.raises(RuntimeError, match="timesteps must be int64"):
        model(states, actions, rtg, timesteps.float())


def make_policy(model, kind, num_envs):
    return dmamba.Policy(model.cpp_module, kind, num_envs, 10.0, [0.1] * 5, [2.0] * 5)


def test_policies_agree_while_the_episode_fits_the_window():
    """Environments end at different times; no episode is longer than K here."""
    model = small_model(context_length=8).eval()
    n = 4
    windowed, recurrent = (make_policy(model, kind, n) for kind in ("windowed", "recurrent"))
    random = np.random.default_rng(0)
    ends = np.array([3, 5, 8, 4])
    age = np.zeros(n, dtype=int)
    start = np.ones(n, dtype=bool)
    for _ in range(20):
        targets = torch.from_numpy(random.normal(size=n) * 10)
        if start.any():
            for policy in (windowed, recurrent):
                policy.reset(torch.from_numpy(start), targets)
        observation = torch.from_numpy(random.normal(size=(n, 5)).astype(np.float32))
        a, b = (policy.act(observation) for policy in (windowed, recurrent))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        reward = torch.from_numpy(random.normal(size=n))
        for policy in (windowed, recurrent):
            policy.observe(reward)
        age += 1
        start = age == ends
        age[start] = 0


def test_policy_matches_the_model():
    model = small_model().eval()
    policy = make_policy(model, "windowed", 1)
    policy.reset(torch.ones(1, dtype=torch.bool), torch.tensor([30.0]))
    states, actions, rtgs = [], [], []
    rtg = 30.0
    for t in range(4):
        observation = torch.full((1, 5), 0.3 * t)
        action = policy.act(observation)
        states.append((observation - 0.1) / 2.0)
        rtgs.append(torch.tensor([[rtg / 10.0]]))
        known = [*actions, torch.zeros(1, 2)]
        expected = model(
            torch.stack(states, 1), torch.stack(known, 1), torch.stack(rtgs, 1),
            torch.arange(t + 1)[None],
        )[:, -1]  # fmt: skip
        torch.testing.assert_close(action, expected, rtol=1e-5, atol=1e-6)
        actions.append(action)
        policy.observe(torch.tensor([2.5]))
        rtg -= 2.5
