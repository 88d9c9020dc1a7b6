"""What holds for whole modules with any sizes, flags and values: the same numbers as in float64.

A module in float32 (or with bfloat16 arithmetic) is compared with the same model written in single
operators of plain PyTorch, in float64: `dmamba.nn.graph` and `.mixers` over `dmamba.reference`.
How far rounding may move a result follows from how far it moves in float64 where every input and
parameter is off by a rounding, and from how far the plain model is off that computes as the module
does, there and at such neighbours: one example's roundings may happen to cancel. Examples in which
float64 itself goes beyond what float32 holds are passed over.
"""

import contextlib
import copy

import torch
from hypothesis import assume
from hypothesis import strategies as st
from op_properties import Draw
from torch.utils._python_dispatch import TorchDispatchMode

from dmamba import _C, reference
from dmamba.nn import mixers
from dmamba.nn.graph import GraphAtariDMamba, GraphDMamba

LARGEST = 1e36  # float32 ends at 3.4e38
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8}  # of a number, and of what it meets
FLOOR = 1e-30

values = st.sampled_from(["ordinary", "large", "extreme", "tiny", "zero"])


class Largest(TorchDispatchMode):
    """The largest number that any operator gives."""

    found = 0.0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        out = function(*arguments, **(named or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                if tensor.device.type == "cpu":  # -inf hides a token from attention
                    size = tensor.detach().abs().nan_to_num(LARGEST, posinf=0.0)
                    self.found = max(self.found, float(size.max()))
        return out


@contextlib.contextmanager
def plain_operators():
    """The mixers in Python compute by `dmamba.reference`: no operator of ours takes part."""
    before, mixers.ops = mixers.ops, reference
    try:
        yield
    finally:
        mixers.ops = before


def spread(module, kind, make):
    """Gives the parameters values of a kind."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            leaf, shape = name.rpartition(".")[2], parameter.shape
            if kind == "zero" and leaf not in ("A_log", "log_A_real", "log_dt"):
                parameter.zero_()
            elif kind == "tiny" and leaf not in ("A_log", "log_A_real", "log_dt"):
                parameter.copy_(make.values("tiny", *shape))
            elif kind == "large":
                parameter.mul_(3.0)
            elif kind == "extreme":
                extreme(name, parameter, make)


def extreme(name, parameter, make):
    """Rates up to -1e4, steps from 1e-8 to 1e3, weights over many orders of magnitude."""
    leaf, shape = name.rpartition(".")[2], parameter.shape
    between = lambda low, high: low + (high - low) * make.uniform(*shape)  # noqa: E731
    if leaf in ("A_log", "log_A_real"):
        parameter.copy_(between(-18.0, 9.2))
    elif leaf == "log_dt":
        parameter.copy_(between(-18.0, 6.9))
    elif leaf == "A_imag":
        parameter.mul_(between(0.0, 10.0))
    elif name.endswith("dt_proj.bias"):
        parameter.copy_(between(-20.0, 20.0))
    else:
        parameter.mul_(10 ** between(-8.0, 1.0))


def inputs(make, kind, *shape):
    return make.values("ordinary" if kind == "large" else kind, *shape, high=3.0)


def off_by_a_rounding(tensor, make, size):
    noise = 2.0 * make.uniform(*tensor.shape) - 1.0
    return tensor * (1.0 + size * noise)


def gradients(call, module, arguments, weight):
    """Output of call(module, *arguments), and the gradient of what floats, by name."""
    leaves = {
        f"input {i}": a
        for i, a in enumerate(arguments)
        if isinstance(a, torch.Tensor) and a.requires_grad
    } | dict(module.named_parameters())
    out = call(module, *arguments)
    found = torch.autograd.grad(
        (out.double() * weight).sum(), list(leaves.values()), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return {"output": out.detach()} | {f"d{name}": g for name, g in zip(leaves, found, strict=True)}


def prepared(arguments, change):
    return [
        change(a.detach()).requires_grad_()
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in arguments
    ]


def check_module(module, twin, arguments, make, dtype=torch.float32, by_fft=False):
    """Output and gradients of a module beside those of its twin in float64.

    Args:
        module: In float32.
        twin: Gives a module of plain PyTorch with a float64 module's parameters.
        arguments: Of both, floating ones in float64.
        make: Draws noise and the gradient that comes in.
        dtype: torch.bfloat16: under autocast.
        by_fft: What rounding moves at one token it may move at each, those before included.
    """
    arguments = prepared(arguments, lambda a: a.float().double())
    double = copy.deepcopy(module).double()

    def run(model, given, weight):
        with plain_operators():
            return gradients(lambda m, *a: m(*a), twin(model), given, weight)

    def arithmetic():
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    def off_on_the_way(model, given, expected):
        """What is rounded on the way, which moving the inputs does not show."""
        with arithmetic():
            rounded = run(
                copy.deepcopy(model).float(), prepared(given, lambda a: a.float()), weight
            )
        return {
            name: (value.double() - expected[name]).abs().max().nan_to_num(0.0, 0.0)
            for name, value in rounded.items()
        }

    with torch.no_grad(), plain_operators():
        shape = twin(double)(*arguments).shape
    weight = make.values("ordinary", *shape)
    with Largest() as seen:
        exact = run(double, arguments, weight)
    assume(seen.found < LARGEST)
    moved = {name: torch.zeros((), dtype=torch.float64) for name in exact}
    on_the_way = off_on_the_way(module, arguments, exact)

    def off(tensor):  # by a rounding, and a float32 number
        return off_by_a_rounding(tensor, make, ROUNDING[dtype]).float().double()

    for _ in range(3):
        other = copy.deepcopy(double)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(off(parameter))
        given = prepared(arguments, off)
        neighbour = run(other, given, weight)
        for name, error in off_on_the_way(other, given, neighbour).items():
            moved[name] = torch.maximum(moved[name], (neighbour[name] - exact[name]).abs().max())
            on_the_way[name] = torch.maximum(on_the_way[name], error)

    given = prepared(arguments, lambda a: a.float())
    with arithmetic():
        got = gradients(lambda m, *a: m(*a), module, given, weight)
    assert set(got) == set(exact)
    largest = max(float(value.abs().max()) for value in exact.values())
    floor = FLOOR + (8 * ROUNDING[dtype] * largest if by_fft else 0.0)
    for name, value in got.items():
        expected = exact[name]
        assert value.isfinite().all(), f"{name}: not finite, but {expected[~value.isfinite()][:4]}"
        error = (value.double() - expected).abs().max()
        allowed = 50 * moved[name] + 8 * ROUNDING[dtype] * expected.abs().max() + floor
        allowed = torch.maximum(allowed, 3 * on_the_way[name])
        assert error <= allowed, f"{name}: off by {error:.3e}, rounding allows {allowed:.3e}"


def check_step(model, config, store, make, dtype=torch.float32, by_fft=False):
    """Loss and norm of the gradient of a trainer's first step, beside those in float64."""
    double = copy.deepcopy(model).double()
    trainer = _C.Trainer(config, store, model.cpp_module)
    sampler = _C.SegmentSampler(
        store, config.training.batch_size, config.model.context_length, config.seed,
        config.model.padding == "paper", config.dataset.rtg_scale,
        trainer.state_mean, trainer.state_std, config.model.max_timestep,
    )  # fmt: skip
    states, actions, returns, times, mask = map(torch.from_numpy, sampler.sample(0))

    def measure(model, *values):
        """Also the square of what counts, by part."""
        with plain_operators():
            out = as_graph(model)(*values, times, mask)
            loss = ((out - values[1]).square() * mask.unsqueeze(2)).sum() / (mask.sum() * 2)
            found = torch.autograd.grad(
                loss, list(model.parameters()), allow_unused=True, materialize_grads=True
            )
        return loss.detach(), torch.stack([g.square().sum() for g in found]).sum().sqrt()

    values = [t.double() for t in (states, actions, returns.view(*returns.shape[:2], 1))]
    with Largest() as seen:
        exact = measure(double, *values)
    assume(seen.found < LARGEST**0.5)  # norms are sums of squares
    moved = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        other = copy.deepcopy(double)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(off_by_a_rounding(parameter, make, ROUNDING[dtype]))
        found = measure(other, *(off_by_a_rounding(v, make, ROUNDING[dtype]) for v in values))
        moved = torch.maximum(moved, (torch.stack(found) - torch.stack(exact)).abs())
    (row,) = trainer.run(60.0, 1)
    for place, name in enumerate(("training/loss", "training/grad_norm")):
        error, size = abs(row[name] - float(exact[place])), float(exact[place])
        floor = FLOOR if place == 0 else 1e-17  # of the squares
        allowed = 50 * float(moved[place]) + (80 if by_fft else 8) * ROUNDING[dtype] * size + floor
        assert error <= allowed, f"{name}: {row[name]}, {size} in float64, allowed {allowed:.1e}"


@st.composite
def makers(draw, dtype=torch.float32):
    return Draw(draw(st.integers(0, 2**32 - 1)), dtype)


def as_graph(model):
    graph = GraphAtariDMamba if hasattr(model, "num_actions") else GraphDMamba
    return graph(model)
