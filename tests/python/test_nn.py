"""The C++ modules behave as ordinary torch modules, and the policies as the model."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import tiny

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


def test_copies_keep_what_is_frozen_and_each_module_s_mode():
    model = small_model()
    frozen = ["transformer.h.1.mamba.A_log", "embed_state.weight"]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.get_submodule("transformer.h.0").eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [n for n, p in twin.named_parameters() if not p.requires_grad] == frozen
        modes = {n: m.training for n, m in model.named_modules()}
        assert modes == {n: m.training for n, m in twin.named_modules()}
        assert modes[""] and not modes["transformer.h.0.mlp_channels.3"]


def test_parameters_and_children_are_found_by_name():
    model = small_model()
    block = model.get_submodule("transformer.h.1")
    assert block.get_parameter("mamba.A_log") is model.get_parameter("transformer.h.1.mamba.A_log")
    assert model.transformer.h.get_submodule("1") is block
    assert all(isinstance(p, torch.nn.Parameter) for p in model.parameters())
    assert all(model.get_parameter(name) is p for name, p in model.named_parameters())
    nested = torch.nn.Sequential(model)
    assert nested.get_parameter("0.embed_ln.bias") is model.embed_ln.bias
    with pytest.raises(AttributeError, match="nowhere"):
        model.get_parameter("transformer.nowhere")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nested", [False, True])
def test_load_state_dict_can_assign(dtype, nested):
    model, other = small_model(), small_model()
    other.to(dtype).load_state_dict({n: t + 0.01 for n, t in other.state_dict().items()})
    model.get_parameter("embed_ln.bias").requires_grad_(False)
    model(*inputs()).sum().backward()
    outer = torch.nn.ModuleDict({"policy": model}) if nested else model
    prefix = "policy." if nested else ""
    state = {prefix + name: tensor for name, tensor in other.state_dict().items()}
    assert str(outer.load_state_dict(state, assign=True)) == "<All keys matched successfully>"
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and parameter.grad is None
        assert parameter.data_ptr() == state[prefix + name].data_ptr()  # as torch assigns
        assert parameter.requires_grad == (name != "embed_ln.bias")
    states, actions, rtg, timesteps = inputs()
    data = states.to(dtype), actions.to(dtype), rtg.to(dtype), timesteps
    assert torch.equal(model.eval()(*data), other.eval()(*data))
    state.pop(f"{prefix}embed_ln.weight")
    with pytest.raises(RuntimeError, match=r"embed_ln\.weight"):
        outer.load_state_dict(state, assign=True)


def test_what_would_swap_parameters_says_what_to_do():
    model = small_model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    other = {n: t + 1 for n, t in before.items()}
    with pytest.raises(NotImplementedError, match=r"functional_call.*load_state_dict"):
        torch.func.functional_call(model, other, inputs())
    with pytest.raises(NotImplementedError, match=r"'bias'.*C\+\+"):
        model.embed_ln.bias = torch.nn.Parameter(torch.zeros(16))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_frozen_parameters_stay_as_they_are(dataset):
    config = dmamba.configuration.load_config(tiny(dataset), ["decay=all", "weight_decay=0.5"])
    store = dmamba.data.load(config.dataset.path)
    config = dmamba.data.resolve(config, store)
    model = DMamba(store.state_dim, store.act_dim, config=config.model)
    model.get_submodule("transformer").requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    dmamba._C.Trainer(config, store, model.cpp_module).run(60.0, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("transformer."), name


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
        ({"channel_mixing": "conv"}, dmamba.ConfigError, "mlp, ssm, none"),
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
    with pytest.raises(RuntimeError, match="DMamba: K must be at least 1"):
        model(*(t[:, :0] for t in inputs()))
    with pytest.raises(RuntimeError, match="DMamba: actions must be float32"):
        model(states, actions.double(), rtg, timesteps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(states.bfloat16(), actions, rtg.bfloat16(), timesteps)
        with pytest.raises(RuntimeError, match="DMamba: states must be float32"):
            model(states.long(), actions, rtg, timesteps)
    with pytest.raises(RuntimeError, match=r"DMamba: .*parameters must be float32.*autocast"):
        model.bfloat16()(states.bfloat16(), actions.bfloat16(), rtg.bfloat16(), timesteps)


def make_policy(model, kind, num_envs, weights="fp32"):
    return dmamba.Policy(model.cpp_module, kind, num_envs, 10.0, [0.1] * 5, [2.0] * 5, weights)


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


@pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_recurrent_policy_does_what_the_models_step_does(weights, tolerance):
    model = small_model().eval()
    policy = make_policy(model, "recurrent", 1, weights)
    state, action = model.cpp_module.initial_state(1), torch.zeros(1, 2)
    policy.reset(torch.tensor([True]), torch.tensor([30.0]))
    for t in range(6):
        observation = torch.full((1, 5), 0.3 * t)
        rtg = torch.tensor([[(30.0 - 1.5 * t) / 10.0]])
        expected = model.cpp_module.step(
            action,
            rtg,
            (observation - 0.1) / 2.0,
            torch.tensor([t]),
            torch.tensor([t == 0]),
            state,
        )
        action = policy.act(observation)
        torch.testing.assert_close(action, expected, rtol=tolerance, atol=0.1 * tolerance)
        policy.observe(torch.tensor([1.5]))


def test_weights_of_a_policy_are_checked():
    with pytest.raises(dmamba.ConfigError, match="weights 'int4' are unknown"):
        make_policy(small_model(), "recurrent", 1, "int4")
    with pytest.raises(dmamba.ConfigError, match="bf16 are for kind recurrent"):
        make_policy(small_model(), "windowed", 1, "bf16")


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
