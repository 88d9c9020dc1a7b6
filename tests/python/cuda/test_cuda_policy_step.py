"""The recurrent policy's step in one launch, beside the CPU's policy."""

import pytest
import torch
from support import needs_cuda, poison
from test_cuda_fused_step import make
from torch.profiler import ProfilerActivity, profile

import dmamba
from dmamba import _C

pytestmark = [
    needs_cuda,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] not in (9, 10),
        reason="the kernel is for cards of compute capability 9 and 10",
    ),
]

STEPS, STATE_DIM, ACT_DIM = 25, 5, 2
KERNEL = "policy_step_kernel"


def make_model(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_layer": 2, "context_length": 6, "max_timestep": 20, **options}
    model = dmamba.nn.DMamba(STATE_DIM, ACT_DIM, **sizes).eval()
    with torch.no_grad():  # LayerNorms and D begin as ones and zeros, which hides mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def make_policy(model, num_envs, **options):
    means, stds = [0.1] * STATE_DIM, [2.0] * STATE_DIM
    return _C.Policy(model.cpp_module, "recurrent", num_envs, 10.0, means, stds, **options)


def everything(num_envs):
    """Observations, rewards and ends of every step."""
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(STEPS, num_envs, STATE_DIM, generator=generator)
    rewards = torch.rand(STEPS, num_envs, generator=generator, dtype=torch.float64)
    return observations, rewards, torch.rand(STEPS, num_envs, generator=generator) < 0.1


def play(policy, observations, rewards, ends):
    """Actions (steps, num_envs, act_dim)."""
    num_envs = observations.shape[1]
    targets = torch.full((num_envs,), 50.0, dtype=torch.float64)
    policy.reset(torch.ones(num_envs, dtype=torch.bool), targets)
    actions = []
    for t in range(len(observations)):
        actions.append(policy.act(observations[t]))
        policy.observe(rewards[t])
        policy.reset(ends[t], targets)
    return torch.stack(actions)


def kernels_of(policy, observations):
    """Names of the kernels of one act(), after those that a graph's recording needs."""
    for _ in range(4):
        policy.act(observations)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        policy.act(observations)
    on_device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profiler.events() if event.device_type == on_device]
    return [name for name in names if not name.startswith("Mem")]


def compare(model, num_envs, **options):
    """The policy on the GPU, which has played as the CPU's."""
    case = everything(num_envs)
    expected = play(make_policy(model, num_envs, **options), *case)
    model.to("cuda")
    poison()
    policy = make_policy(model, num_envs, **options)
    got = play(policy, *case)
    assert got.device.type == "cpu" and got.dtype == torch.float32
    assert (got - expected).abs().max() <= 1e-5
    return policy


@pytest.mark.parametrize(
    ("d_model", "n_layer", "num_envs"),
    [
        (128, 3, 1), (128, 3, 5), (128, 3, 64), (128, 3, 300), (128, 1, 67),
        (32, 1, 5), (64, 2, 130), (96, 5, 3), (160, 2, 13), (256, 2, 9),
    ],
)  # fmt: skip
def test_actions_are_the_cpus(d_model, n_layer, num_envs):
    policy = compare(make_model(d_model=d_model, n_layer=n_layer), num_envs)
    (kernel,) = kernels_of(policy, torch.zeros(num_envs, STATE_DIM))
    assert KERNEL in kernel


@pytest.mark.parametrize(
    "options", [{"channel_mixing": "none"}, {"dt_rank": 3}, {"dt_rank": 32}, {"max_timestep": 7}]
)
def test_other_models_of_mamba_layers(options):
    policy = compare(make_model(**options), 6)
    assert KERNEL in kernels_of(policy, torch.zeros(6, STATE_DIM))[0]


def test_forgetting():
    compare(make_model(), 6, forget_after=4)


@pytest.mark.parametrize(
    "options",
    [
        {"token_mixer": ["s4d"]},
        {"token_mixer": ["mamba", "attention"]},
        {"channel_mixing": "ssm"},
        {"d_model": 48},
        {"d_state": 8},
        {"d_conv": 3},
        {"expand": 1},
        {"past_actions": "none"},
    ],
    ids=str,
)
def test_other_models_go_the_other_way(options):
    model = make_model(**options)
    case = everything(5)
    expected = play(make_policy(model, 5), *case)
    model.to("cuda")
    policy = make_policy(model, 5)
    torch.testing.assert_close(play(policy, *case), expected, rtol=1e-3, atol=1e-4)
    names = kernels_of(policy, torch.zeros(5, STATE_DIM))
    assert len(names) > 1 and not any(KERNEL in name for name in names)


def test_same_bits_in_any_order_and_whatever_the_settings_say():
    model = make_model(d_model=128, n_layer=3).to("cuda")
    observations, rewards, ends = everything(64)
    expected = play(make_policy(model, 64), observations, rewards, ends)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            got = play(
                make_policy(model, 64), observations[:, order], rewards[:, order], ends[:, order]
            )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.equal(got, expected[:, order])


def test_changed_parameters_are_seen():
    model = make_model()
    observations, rewards, ends = everything(3)
    changed = {name: p * 1.1 for name, p in model.state_dict().items()}
    actions = {}
    for device in ("cpu", "cuda"):
        copy = make_model().to(device)
        policy = make_policy(copy, 3)
        play(policy, observations[:4], rewards[:4], ends[:4])
        copy.load_state_dict(changed)
        actions[device] = play(policy, observations, rewards, ends)
    assert (actions["cuda"] - actions["cpu"]).abs().max() <= 1e-5


def test_what_a_trainer_changes_is_seen():
    trainer, model = make("cuda", d_model=64, steps=20)
    observation = torch.linspace(-1, 1, 22).view(2, 11)

    def new_policy():
        return _C.Policy(model.cpp_module, "recurrent", 2, 1000.0, [0.0] * 11, [1.0] * 11)

    def first_action(policy):
        policy.reset(torch.tensor([True, True]), torch.tensor([1800.0, 3600.0]).double())
        return policy.act(observation)

    kept = new_policy()
    before = first_action(kept)
    trainer.run(max_steps=5)
    after = first_action(kept)
    assert torch.equal(after, first_action(new_policy()))
    assert not torch.equal(after, before)


def test_what_is_not_finite_stays_in_its_environment_and_its_episode():
    model = make_model().to("cuda")
    observations, rewards, ends = everything(7)
    ends[:] = False
    expected = play(make_policy(model, 7), observations, rewards, ends)
    broken = observations.clone()
    broken[3, 2], ends[3, 2] = float("nan"), True
    policy = make_policy(model, 7)
    got = play(policy, broken, rewards, ends)
    others = [i for i in range(7) if i != 2]
    assert torch.equal(got[:, others], expected[:, others])
    assert got[3, 2].isnan().all() and got[4:, 2].isfinite().all()
