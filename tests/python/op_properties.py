"""What holds for the ops with any shapes, strides, types and values, drawn by Hypothesis.

Of a scan or a convolution everything that comes out, gradients too, is compared with float64
arithmetic on the same rounded inputs, each number against the sum of the magnitudes that it is made
of: that is how far rounding may move it, however much of it cancels. Where float64 gives a finite
number, so must the op.

Every change draws the same few examples; with DMAMBA_EXAMPLES=N it is N others each time, of
pytest's --hypothesis-seed.
"""

import os

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dmamba import ops, reference

_examples = os.environ.get("DMAMBA_EXAMPLES")
settings.register_profile(
    "dmamba",
    derandomize=_examples is None,
    max_examples=int(_examples or 25),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("dmamba")

FLOOR = 1e-37  # below, float32 loses digits; a GPU flushes denormal numbers, as sigmoid's
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float64: 0.0}  # of what is stored
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float64: 2.0**-53}

lengths = st.one_of(st.sampled_from([1, 2, 7, 8, 9, 31, 64, 129]), st.integers(1, 300))
widths = st.one_of(st.sampled_from([1, 3, 16, 17, 64]), st.integers(1, 70))
states = st.one_of(st.just(16), st.integers(1, 20))
seeds = st.integers(0, 2**32 - 1)
layouts = st.sampled_from(
    ["contiguous", "time first", "sliced", "offset", "one batch for all", "channels apart"]
)
kinds = st.sampled_from(["ordinary", "extreme", "tiny", "zero"])
flags = st.sampled_from(["absent", "some", "all", "none"])


class Draw:
    """Tensors whose values follow from one seed, so that a failure shrinks in shape alone."""

    def __init__(self, seed, dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.parameter = torch.float64 if dtype == torch.float64 else torch.float32

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def magnitudes(self, low, high, *shape):
        """Between two powers of ten, and now and then zero or a denormal number."""
        found = 10 ** (low + (high - low) * self.uniform(*shape))
        rare = self.uniform(*shape)
        found[rare < 0.05] = 0.0
        found[rare > 0.95] = 1e-41
        return found

    def signs(self, *shape):
        return torch.where(self.uniform(*shape) < 0.5, -1.0, 1.0).double()

    def values(self, kind, *shape, high=2.0):
        """Inputs, states and weights of either sign."""
        if kind == "zero":
            return torch.zeros(*shape, dtype=torch.float64)
        if kind == "tiny":
            return self.magnitudes(-45, -20, *shape) * self.signs(*shape)
        if kind == "extreme":
            return self.magnitudes(-30, high, *shape) * self.signs(*shape)
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def steps(self, kind, softplus, *shape):
        """Step sizes: positive ones, or what softplus makes some of: there is no logarithm of 0."""
        if softplus:
            return (
                1e3 * self.values("ordinary", *shape).clamp(-1, 1)
                if kind == "extreme"
                else (self.values(kind, *shape))
            )
        if kind == "extreme":
            return self.magnitudes(-8, 3, *shape)
        return self.values(kind, *shape).abs()

    def rates(self, kind, *shape):
        """A: up to -1e4."""
        return (
            -self.magnitudes(-8, 4, *shape)
            if kind != "ordinary"
            else (-torch.exp(self.values(kind, *shape)))
        )

    def flags(self, kind, share, *shape):
        if kind == "absent":
            return None
        if kind == "some":
            return self.uniform(*shape) < share
        return torch.full(shape, kind == "all")


def laid_out(values, layout, dtype):
    """The same values at other places in memory; (batch, L, channels) or (batch, channels)."""
    values = values.to(dtype)
    if layout == "time first" and values.dim() == 3:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "sliced":
        wide = torch.full((*values.shape[:-1], values.shape[-1] + 5), torch.nan, dtype=dtype)
        wide[..., 3:-2] = values
        return wide[..., 3:-2]
    if layout == "offset":
        flat = torch.full((values.numel() + 1,), torch.nan, dtype=dtype)
        flat[1:] = values.flatten()
        return flat[1:].view(values.shape)
    if layout == "one batch for all":
        return values[:1].expand(values.shape)
    if layout == "channels apart":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    return values


def moved(tensor, device):
    """On the device with the same strides, where it has room for them."""
    if tensor is None or device == "cpu":
        return tensor
    if tensor.numel() == 0:
        return tensor.to(device)
    if 0 in tensor.stride() and tensor.numel() > 1:
        return tensor[:1].to(device).expand(tensor.shape)
    size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.full((size + 1,), 0, dtype=tensor.dtype, device=device)
    there = memory[1:].as_strided(tensor.shape, tensor.stride())
    return there.copy_(tensor)


@st.composite
def scans(draw, dtypes=(torch.float32, torch.bfloat16, torch.float64)):
    """(tensors, flags, softplus): arguments of a scan on the CPU."""
    dtype = draw(st.sampled_from(dtypes))
    make = Draw(draw(seeds), dtype)
    batch, length = draw(st.integers(1, 3)), draw(lengths)
    d_inner, d_state = draw(widths), draw(states)
    softplus = draw(st.booleans())
    row, vector, matrix = (batch, length, d_inner), (d_inner,), (batch, length, d_state)
    values = {
        "u": make.values(draw(kinds), *row),
        "delta": make.steps(draw(kinds), softplus, *row),
        "A": make.rates(draw(kinds), d_inner, d_state),
        "B": make.values(draw(kinds), *matrix),
        "C": make.values(draw(kinds), *matrix),
    }
    if draw(st.booleans()):
        values["D"] = make.values(draw(kinds), *vector)
    if draw(st.booleans()):
        values["z"] = make.values(draw(kinds), *row, high=3.0)
    if draw(st.booleans()):
        values["delta_bias"] = make.steps("ordinary", softplus, *vector)
    if draw(st.booleans()):
        values["initial_state"] = make.values(draw(kinds), batch, d_inner, d_state)
    rows = ("u", "delta", "z", "B", "C")
    tensors = {
        name: laid_out(t, draw(layouts), dtype) if name in rows else t.to(make.parameter)
        for name, t in values.items()
    }
    if "initial_state" in tensors and draw(st.booleans()):  # as the op itself returns it
        tensors["initial_state"] = tensors["initial_state"].mT.contiguous().mT
    marks = {
        "mask": make.flags(draw(flags), 0.8, batch, length),
        "segment_starts": make.flags(draw(flags), 0.1, batch, length),
    }
    return tensors, marks, softplus


@st.composite
def convolutions(draw, dtypes=(torch.float32, torch.bfloat16, torch.float64)):
    """(tensors, flags, silu): arguments of a convolution on the CPU."""
    dtype = draw(st.sampled_from(dtypes))
    make = Draw(draw(seeds), dtype)
    batch, length = draw(st.integers(1, 3)), draw(lengths)
    d_inner, width = draw(widths), draw(st.integers(1, 6))
    tensors = {
        "x": laid_out(make.values(draw(kinds), batch, length, d_inner), draw(layouts), dtype),
        "weight": make.values(draw(kinds), d_inner, width, high=1.0).to(make.parameter),
    }
    if draw(st.booleans()):
        tensors["bias"] = make.values(draw(kinds), d_inner, high=3.0).to(make.parameter)
    if draw(st.booleans()):
        state = make.values(draw(kinds), batch, d_inner, width - 1)
        tensors["initial_state"] = state.to(make.parameter)
    marks = {
        "mask": make.flags(draw(flags), 0.8, batch, length),
        "segment_starts": make.flags(draw(flags), 0.1, batch, length),
    }
    return tensors, marks, draw(st.booleans())


def run(op, tensors, marks, weights, device, **options):
    """Everything an op gives, by name: outputs, last state, the gradient of each input."""
    leaves = {name: moved(t, device).detach().requires_grad_() for name, t in tensors.items()}
    there = {name: moved(t, device) for name, t in marks.items()}
    out, last = op(**leaves, **there, **options, return_last_state=True)
    weights = [w.to(device, t.dtype) for w, t in zip(weights, (out, last), strict=True)]
    gradients = torch.autograd.grad(
        (out, last), list(leaves.values()), weights, allow_unused=True, materialize_grads=True
    )
    found = {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), "last_state": last.detach()} | found


def weights_for(op, tensors, seed=1):
    """The gradients that come in: of the outputs, and of the last state."""
    first = next(iter(tensors.values()))
    batch, _, d_inner = first.shape
    matrix = tensors["A"] if op is ops.selective_scan else tensors["weight"]
    width = matrix.shape[1] - (op is ops.causal_conv1d)
    generator = torch.Generator().manual_seed(seed)
    shapes = (first.shape, (batch, d_inner, width))
    out, last = (torch.randn(shape, generator=generator).double() for shape in shapes)
    return out.to(first.dtype), last.to(matrix.dtype)


def scan_magnitudes(tensors, marks, weights, softplus):
    """The sums that `run` gives of a scan with every term made positive, in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    batch, length, d_inner = t["u"].shape
    raw = t["delta"] + t.get("delta_bias", 0.0)
    dt, slope = raw, torch.ones_like(raw)
    if softplus:
        dt, slope = F.softplus(raw, threshold=40.0), torch.sigmoid(raw)
    if marks["mask"] is not None:
        dt, slope = dt * marks["mask"].unsqueeze(2), slope * marks["mask"].unsqueeze(2)
    u, B, C, A = (t[name].abs() for name in "uBCA")
    D = t.get("D", torch.zeros(d_inner, dtype=torch.float64)).abs()
    dout, dlast = (w.double().abs() for w in weights)
    gate = dgate = torch.ones_like(u)
    if "z" in t:
        z, s = t["z"], torch.sigmoid(t["z"])
        gate, dgate = (z * s).abs(), (s * (1 + (z * (1 - s)).abs()))
    dy = dout * gate
    h = t.get("initial_state", u.new_zeros(batch, d_inner, A.shape[1])).abs()
    starts = marks["segment_starts"]
    starts = torch.zeros(batch, length, dtype=torch.bool) if starts is None else starts
    kept, decays = [h], []
    for i in range(length):
        decays.append(torch.exp(-dt[:, i, :, None] * A) * ~starts[:, i, None, None])
        h = decays[i] * h + (dt[:, i] * u[:, i]).unsqueeze(2) * B[:, i, None]
        kept.append(h)
    H = torch.stack(kept[1:], 1)
    y = torch.einsum("bldn,bln->bld", H, C) + D * u
    found = {name: [] for name in ("A", "g", "ddt", "Bg")}
    g = dlast
    for i in reversed(range(length)):
        g = g + dy[:, i].unsqueeze(2) * C[:, i, None]
        ahg = decays[i] * kept[i] * g
        found["A"].append((ahg * dt[:, i].unsqueeze(2)).sum(0))
        found["ddt"].append((ahg * A).sum(2) + u[:, i] * (g * B[:, i, None]).sum(2))
        found["Bg"].append((g * B[:, i, None]).sum(2))
        found["g"].append(g)
        g = decays[i] * g
    Bg, ddt, G = (torch.stack(found[name][::-1], 1) for name in ("Bg", "ddt", "g"))
    sums = {
        "out": y * gate,
        "last_state": h,
        "du": D * dy + dt * Bg,
        "ddelta": ddt * slope,
        "dA": torch.stack(found["A"]).sum(0),
        "dB": torch.einsum("bldn,bld->bln", G, dt * u),
        "dC": torch.einsum("bldn,bld->bln", H, dy),
        "dD": (dy * u).sum((0, 1)),
        "dz": dout * y * dgate,
        "ddelta_bias": (ddt * slope).sum((0, 1)),
        "dinitial_state": g,
    }
    return {name: sums[name] for name in ("out", "last_state", *(f"d{n}" for n in tensors))}


def conv_magnitudes(tensors, marks, weights, silu):
    """Likewise of a convolution; where SiLU bends, what its argument may be off by counts, too."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    kept = {"mask": marks["mask"], "segment_starts": marks["segment_starts"]}
    bare = {name: tensor.abs().requires_grad_() for name, tensor in t.items()}
    size, last = reference.causal_conv1d(**bare, **kept, silu=False, return_last_state=True)
    exact, _ = reference.causal_conv1d(**t, **kept, silu=False, return_last_state=True)
    dout, dlast = (w.double().abs() for w in weights)
    s = torch.sigmoid(exact)
    bend = (s * (1 + exact * (1 - s))).abs() + size.detach() if silu else torch.ones_like(dout)
    gradients = torch.autograd.grad(
        (size, last), list(bare.values()), (dout * bend, dlast), materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    found = {f"d{name}": g for name, g in zip(bare, gradients, strict=True)}
    return {"out": 1.1 * size.detach(), "last_state": last.detach()} | found


def check(got, expected, magnitudes, tensors, length, kept=0.0):
    """Every number finite, and as near to float64's as rounding allows.

    Exponents and what softplus and the gates see have up to a hundred times the unit's error, the
    sums one a token. What is lost below the floor may have been on its way to a large factor.
    `kept` is the error of what is kept for the gradients.
    """
    dtype = next(iter(tensors.values())).dtype
    limit = UNIT[dtype] * (400 + 4 * length)
    floor = FLOOR * length
    for tensor in tensors.values():
        floor *= 1 + float(tensor.double().abs().max()) if tensor.numel() else 1
    for name, exact in expected.items():
        value = got[name].cpu().double()
        assert exact.isfinite().all() and magnitudes[name].isfinite().all(), name
        bad = ~value.isfinite()
        finite = exact[bad][:4].tolist()
        assert not bad.any(), f"{name}: {int(bad.sum())} numbers are not finite, but are {finite}"
        stored = ROUNDING[dtype] if got[name].dtype == torch.bfloat16 else 0.0
        error = limit + (kept if name.startswith("d") else 0.0)
        allowed = error * magnitudes[name] + stored * exact.abs() + floor
        over = ((value - exact).abs() / allowed).max() if exact.numel() else torch.zeros(())
        assert over <= 1, f"{name}: {float(over):.2e} times what rounding allows"


def check_with_gradients(name, example, magnitudes, sequence, flag, device, kept=0.0):
    """Outputs and gradients of an op beside those of its reference in float64."""
    tensors, marks, value = example
    op, twin = getattr(ops, name), getattr(reference, name)
    weights = weights_for(op, tensors)
    got = run(op, tensors, marks, weights, device, **{flag: value})
    exact = {key: t.double() for key, t in tensors.items()}
    expected = run(twin, exact, marks, weights, "cpu", **{flag: value})
    allowed = magnitudes(tensors, marks, weights, value)
    check(got, expected, allowed, tensors, tensors[sequence].shape[1], kept)


def check_scan(example, device="cpu"):
    # A GPU keeps states of a scan over bfloat16 in half precision, or in bfloat16 less a bit.
    half = device != "cpu" and example[0]["u"].dtype == torch.bfloat16
    check_with_gradients(
        "selective_scan", example, scan_magnitudes, "u", "delta_softplus", device,
        kept=3 * 2.0**-8 if half else 0.0,
    )  # fmt: skip


def check_convolution(example, device="cpu"):
    check_with_gradients("causal_conv1d", example, conv_magnitudes, "x", "silu", device)


def check_updates(example, device="cpu"):
    """One token at a time gives the last state and the outputs of the whole scan in float64."""
    tensors, _, softplus = example
    length = min(tensors["u"].shape[1], 20)
    for name in ("u", "delta", "z", "B", "C"):
        if name in tensors:
            tensors[name] = tensors[name][:, :length]
    none = {"mask": None, "segment_starts": None}
    exact = {name: t.double() for name, t in tensors.items()}
    weights = weights_for(ops.selective_scan, tensors)
    expected = run(reference.selective_scan, exact, none, weights, "cpu", delta_softplus=softplus)
    size = scan_magnitudes(tensors, none, weights, softplus)
    batch, _, d_inner = tensors["u"].shape
    real, all_tensors = tensors["A"].dtype, dict(tensors)
    state = tensors.pop("initial_state", torch.zeros(batch, d_inner, tensors["A"].shape[1]))
    state = state.to(device, real).clone(memory_format=torch.preserve_format)
    there = {name: moved(t, device) for name, t in tensors.items()}
    out = []
    for i in range(length):
        now = {name: t[:, i] if t.dim() == 3 else t for name, t in there.items()}
        out.append(ops.selective_state_update(state, **now, delta_softplus=softplus))
    got = {"out": torch.stack(out, 1), "last_state": state}
    some = {name: expected[name] for name in got}
    check(got, some, size, all_tensors, length)


def check_convolution_updates(example, device="cpu"):
    """One token at a time gives the last inputs and the outputs of the whole convolution."""
    tensors, _, silu = example
    tensors["x"] = tensors["x"][:, : min(tensors["x"].shape[1], 20)]
    batch, length, d_inner = tensors["x"].shape
    none = {"mask": None, "segment_starts": None}
    exact = {name: t.double() for name, t in tensors.items()}
    weights = weights_for(ops.causal_conv1d, tensors)
    expected = run(reference.causal_conv1d, exact, none, weights, "cpu", silu=silu)
    size = conv_magnitudes(tensors, none, weights, silu)
    weight, bias = tensors["weight"], tensors.get("bias")
    state = tensors.get("initial_state", weight.new_zeros(batch, d_inner, weight.shape[1] - 1))
    state = state.to(device).clone()
    x, weight, bias = (moved(t, device) for t in (tensors["x"], weight, bias))
    out = [ops.causal_conv1d_update(state, x[:, i], weight, bias, silu) for i in range(length)]
    got = {"out": torch.stack(out, 1), "last_state": state}
    check(got, {name: expected[name] for name in got}, size, tensors, length)


def check_elementwise(seed, kind, dtype, device="cpu"):
    """GELU alone and with its bias, and dropout."""
    make = Draw(seed, dtype)
    rows, channels = 1 + int(40 * float(make.uniform(1))), 1 + int(90 * float(make.uniform(1)))
    x = make.values(kind, rows, channels, high=4.0).to(dtype)
    dy = make.values("ordinary", rows, channels).to(dtype)
    bias = make.values(kind, channels, high=3.0).to(make.parameter)
    stored = ROUNDING[dtype]

    def near(got, exact, size, what):
        got = got.cpu().double()
        assert got.isfinite().all(), what
        allowed = UNIT[dtype] * 400 * size + stored * exact.abs() + 1e-30
        assert ((got - exact).abs() <= allowed).all(), what

    exact = x.double().requires_grad_()
    leaf = x.to(device).requires_grad_()
    y, there = F.gelu(exact), torch.ops.dmamba.gelu(leaf)
    near(there.detach(), y.detach(), x.double().abs(), "gelu")
    (slope,) = torch.autograd.grad(y, exact, dy.double())
    (got,) = torch.autograd.grad(there, leaf, dy.to(device))
    near(got, slope, dy.double().abs() * (1 + x.double().abs()), "gelu's gradient")
    inside = x.to(device).clone()
    out = torch.ops.dmamba.bias_gelu_(inside, bias.to(device))
    total = (x.double() + bias.double()).requires_grad_()
    y = F.gelu(total)
    size = 1 + x.double().abs() + bias.double().abs()
    near(out, y.detach(), size, "bias_gelu_")
    (slope,) = torch.autograd.grad(y.sum(), total)
    near(inside, slope, size, "bias_gelu_'s slope")
    kept = slope.to(dtype)
    products = dy.to(device).clone()
    sums = torch.ops.dmamba.multiply_sum_(products, kept.to(device))
    near(products, dy.double() * kept.double(), dy.double().abs(), "multiply_sum_")
    size = (dy.double() * kept.double()).abs().sum(0)
    near(sums, (dy.double() * kept.double()).sum(0), size, "multiply_sum_'s sums")
    dropped = torch.ops.dmamba.dropout(x.to(device), 0.25, seed)
    kept = torch.where(dropped.cpu() == 0, 0.0, x.double() / 0.75)
    near(dropped, kept, kept.abs(), "dropout")
