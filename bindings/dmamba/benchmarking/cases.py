"""What is timed: the training step, the scan and the policy's step, and their peers.

Peers are plain PyTorch (:mod:`dmamba.reference`) and, on a GPU where it is installed, mamba_ssm.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmamba import _C, nn, ops, reference
from dmamba.benchmarking.timing import Timed

OURS, PLAIN, MAMBA_SSM = "dmamba", "plain PyTorch", "mamba_ssm"
BURST_STEPS = 20  # of the trainer on a GPU, which waits for it at the end of a call
TARGET_RETURN = 3600.0

Case = dict[str, Timed]  # ours first


def standard_config(device: str, precision: str) -> _C.Config:
    """The recipe whose step is timed, the defaults: d_model 128, 3 layers, K 20, batch 64."""
    config = _C.Config()
    config.dataset.rtg_scale = 1000.0
    config.training.device, config.training.precision = device, precision
    return config


def make_trainer(config: _C.Config, store: _C.EpisodeStore) -> _C.Trainer:
    """A trainer that has no end, with a new model.

    Args:
        config: Of model and training; its number of steps is changed.
        store: States and actions that are vectors, or a recorded game.
    """
    torch.manual_seed(0)
    config.training.steps = 10**9
    model: nn.DMamba | nn.AtariDMamba
    if isinstance(store, _C.FrameStore):
        model = nn.AtariDMamba(store.num_actions, config.model)
    else:
        assert isinstance(store, _C.TrajectoryStore)
        model = nn.DMamba(store.state_dim, store.act_dim, config.model)
    return _C.Trainer(config, store, model.cpp_module)


def training_step(config: _C.Config, store: _C.TrajectoryStore, device: torch.device) -> Case:
    """Everything in a step: drawing the batch, forward, loss, backward, clipping, AdamW."""
    trainer = make_trainer(config, store)
    steps = BURST_STEPS if device.type == "cuda" else 1
    case = {OURS: Timed(lambda: trainer.run(seconds=1e9, max_steps=steps), steps)}
    case[PLAIN] = Timed(PlainTraining(config, store, device, None).step)
    block = mamba_ssm_block(device)
    if block is not None:
        case[MAMBA_SSM] = Timed(PlainTraining(config, store, device, block).step)
    return case


class PlainTraining:
    """The same training in plain PyTorch, the batches from the same sampler.

    Args:
        config: As the trainer's.
        store: Likewise.
        device: Where the model lies.
        mixer: Of a layer; None: plain PyTorch's.
    """

    def __init__(
        self,
        config: _C.Config,
        store: _C.TrajectoryStore,
        device: torch.device,
        mixer: Callable[[_C.ModelConfig], torch.nn.Module] | None,
    ) -> None:
        training, model = config.training, config.model
        self.device, self.precision, self.clip = device, training.precision, training.gradient_clip
        self.model = plain_model(store.state_dim, store.act_dim, model, device, mixer).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            eps=training.epsilon,
            weight_decay=training.weight_decay,
        )
        mean, std = store.state_statistics()
        self.sampler = _C.SegmentSampler(
            store,
            training.batch_size,
            model.context_length,
            config.seed,
            model.padding == "paper",
            config.dataset.rtg_scale,
            mean.tolist(),
            std.tolist(),
            model.max_timestep,
        )
        self.steps = 0

    def step(self) -> None:
        """One step, batch and optimizer included."""
        arrays = self.sampler.sample(self.steps)
        states, actions, rtg, times, mask = (torch.from_numpy(a).to(self.device) for a in arrays)
        self.optimizer.zero_grad()
        with arithmetic(self.precision, self.device):
            predicted = self.model(states, actions, rtg, times, mask)
        wanted = mask.unsqueeze(2).expand_as(actions)
        F.mse_loss(predicted.float()[wanted], actions[wanted]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.steps += 1


def plain_model(
    state_dim: int,
    act_dim: int,
    config: _C.ModelConfig,
    device: torch.device,
    mixer: Callable[[_C.ModelConfig], torch.nn.Module] | None,
) -> torch.nn.Module:
    """The model in plain PyTorch, its layers' mixers from elsewhere where ``mixer`` makes them."""
    torch.manual_seed(0)
    chosen = {} if mixer is None else {"mixer": mixer}
    return reference.DMamba(state_dim, act_dim, config, **chosen).to(device)


@contextlib.contextmanager
def _fast_products() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What ``training.precision`` is to a program in plain PyTorch."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _fast_products() if precision == "tf32" else contextlib.nullcontext()


def scan_inputs(
    batch: int, length: int, d_inner: int, d_state: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Random inputs of a scan as they come in a Mamba block, float32, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {
        "u": normal(batch, length, d_inner),
        "delta": normal(batch, length, d_inner),
        "A": -torch.arange(1.0, d_state + 1).repeat(d_inner, 1),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(d_inner),
        "z": normal(batch, length, d_inner),
        "delta_bias": normal(d_inner),
    }
    return {name: tensor.to(device).requires_grad_() for name, tensor in inputs.items()}


def both_directions(
    function: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward call without gradients, and forward and backward."""
    gradient = torch.randn_like(inputs["u"])

    def forward() -> object:
        with torch.no_grad():
            return function(**inputs, delta_softplus=True)

    def backward() -> object:
        out = function(**inputs, delta_softplus=True)
        return torch.autograd.grad(out, list(inputs.values()), gradient)

    return forward, backward


def scan(config: _C.Config, device: torch.device) -> tuple[Case, Case]:
    """The selective scan of the recipe's layers, float32: forward; forward and backward."""
    model = config.model
    length, d_inner = 3 * model.context_length, model.expand * model.d_model
    sizes = (config.training.batch_size, length, d_inner, model.d_state)
    inputs = scan_inputs(*sizes, device)
    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        OURS: both_directions(ops.selective_scan, inputs),
        PLAIN: both_directions(reference.selective_scan, inputs),  # type: ignore[arg-type]
    }
    theirs = mamba_ssm_scan(device)
    if theirs is not None:
        # Its layout has channels before tokens; the tensors lie so before the clock starts.
        turned = {
            name: tensor.detach().transpose(1, 2).contiguous().requires_grad_()
            if tensor.dim() == 3
            else tensor
            for name, tensor in inputs.items()
        }
        found[MAMBA_SSM] = both_directions(theirs, turned)
    forward = {name: Timed(calls[0]) for name, calls in found.items()}
    return forward, {name: Timed(calls[1]) for name, calls in found.items()}


def policy_halves(
    model: nn.DMamba, batch: int, kind: str, weights: str = "fp32"
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A policy's act() and observe(), for so many environments at a time."""
    zeros, ones = [0.0] * model.state_dim, [1.0] * model.state_dim
    policy = _C.Policy(model.cpp_module, kind, batch, 1000.0, zeros, ones, weights=weights)
    policy.reset(torch.ones(batch, dtype=torch.bool), torch.full((batch,), TARGET_RETURN).double())
    observations, rewards = torch.randn(batch, model.state_dim), torch.ones(batch).double()
    return lambda: policy.act(observations), lambda: policy.observe(rewards)


def policy_step(config: _C.Config, store: _C.TrajectoryStore, device: torch.device) -> Case:
    """From one environment's observation to the action, and the reward taken in."""
    torch.manual_seed(0)
    model = nn.DMamba(store.state_dim, store.act_dim, config.model).to(device).eval()
    case = {}
    for kind in ("recurrent", "windowed"):
        case[f"{OURS}, {kind}"] = Timed(_one_after_the_other(*policy_halves(model, 1, kind)))
    plain = plain_model(store.state_dim, store.act_dim, config.model, device, None)
    case[f"{PLAIN}, windowed"] = Timed(_window_step(plain, store, config, device))
    block = mamba_ssm_block(device)
    if block is not None:
        peer = plain_model(store.state_dim, store.act_dim, config.model, device, block)
        case[f"{MAMBA_SSM}, windowed"] = Timed(_window_step(peer, store, config, device))
    return case


def _one_after_the_other(
    act: Callable[[], object], observe: Callable[[], object]
) -> Callable[[], object]:
    def step() -> None:
        act()
        observe()

    return step


def _window_step(
    model: torch.nn.Module, store: _C.TrajectoryStore, config: _C.Config, device: torch.device
) -> Callable[[], object]:
    """What a program in PyTorch does for an action: the last K steps once more."""
    model.eval()
    K = config.model.context_length
    states = torch.zeros(1, K, store.state_dim, device=device)
    actions, rtg = torch.zeros(1, K, store.act_dim, device=device), torch.ones(1, K, 1).to(device)
    times = torch.arange(K, device=device).unsqueeze(0)
    observation = torch.randn(store.state_dim)

    def step() -> Tensor:
        with torch.no_grad():
            states[0, -1] = observation.to(device)
            action = model(states, actions, rtg, times)[0, -1].cpu()
            states[0, :-1] = states[0, 1:].clone()
            actions[0, -1] = action.to(device)
            actions[0, :-1] = actions[0, 1:].clone()
            rtg[0, :-1] = rtg[0, 1:].clone()
        return action

    return step


class _WithoutMask(torch.nn.Module):
    """mamba_ssm's block knows no mask: padding is as any token."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.block(x)


def mamba_ssm_block(
    device: torch.device,
) -> Callable[[_C.ModelConfig], torch.nn.Module] | None:
    """What makes mamba_ssm's block of a layer; None where it cannot be used."""
    if mamba_ssm_reason(device):
        return None
    block = importlib.import_module("mamba_ssm").Mamba

    def make(config: _C.ModelConfig) -> torch.nn.Module:
        sizes = {name: getattr(config, name) for name in ("d_model", "d_state", "d_conv", "expand")}
        return _WithoutMask(block(**sizes, dt_rank=config.dt_rank or "auto"))

    return make


def mamba_ssm_scan(device: torch.device) -> Callable[..., Tensor] | None:
    """mamba_ssm's scan; None where it cannot be used."""
    if mamba_ssm_reason(device):
        return None
    module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    scan: Callable[..., Tensor] = module.selective_scan_fn
    return scan


def mamba_ssm_reason(device: torch.device) -> str:
    """Why mamba_ssm is not among the peers; empty where it is."""
    if device.type != "cuda":
        return "needs a GPU"
    try:
        importlib.import_module("mamba_ssm")
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "mamba_ssm"
        return "not installed; pip install mamba-ssm" if missing else f"cannot be imported: {error}"
    return ""
