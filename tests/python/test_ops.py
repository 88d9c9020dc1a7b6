"""The ops against their references, through autograd, opcheck and torch.compile."""

import math

import pytest
import torch
from torch.library import opcheck

from dmamba import _C, ops, reference

SCAN = torch.ops.dmamba.selective_scan.default
CONV = torch.ops.dmamba.causal_conv1d.default


@pytest.fixture(params=_C.cpu_capabilities())
def capability(request):
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


def scan_inputs(batch, length, d_inner, d_state, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = {
        "u": normal(batch, length, d_inner),
        "delta": normal(batch, length, d_inner),
        "A": -torch.exp(normal(d_inner, d_state, dtype=parameter)),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(d_inner, dtype=parameter),
        "z": normal(batch, length, d_inner),
        "delta_bias": normal(d_inner, dtype=parameter),
        "initial_state": normal(batch, d_inner, d_state, dtype=parameter),
    }
    flags = {
        "mask": torch.rand(batch, length, generator=generator) > 0.2,
        "segment_starts": torch.rand(batch, length, generator=generator) < 0.1,
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}, flags


def conv_inputs(batch, length, d_inner, width, dtype=torch.float32, seed=0):
    tensors, flags = scan_inputs(batch, length, d_inner, width, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1000)  # not the numbers of x

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=tensors["D"].dtype).requires_grad_()

    return {
        "x": tensors["u"],
        "weight": normal(d_inner, width),
        "bias": tensors["D"],
        "initial_state": normal(batch, d_inner, width - 1),
    }, flags


def draws(inputs, shape, dtype):
    """What :func:`compare_with_reference` is to compare, for (batch, length, d_inner, ...).

    The gradient of one channel's parameter is one sum, and may be next to nothing by chance, much
    smaller than what is summed and rounded; the largest of many draws is not.
    """
    return [inputs(*shape, dtype, seed) for seed in range(50 if shape[2] == 1 else 1)]


def compare_with_reference(op, plain, inputs, tolerance, **options):
    """Outputs, last state and every gradient, as max |x - ref| / max |ref| against fp64."""
    off, largest = {}, {}
    for tensors, flags in inputs:
        out, last = op(**tensors, **flags, **options, return_last_state=True)
        exact = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
        exact_out, exact_last = plain(**exact, **flags, **options, return_last_state=True)
        weights = torch.randn_like(out), torch.randn_like(last)
        gradients = torch.autograd.grad((out, last), list(tensors.values()), weights)
        exact_gradients = torch.autograd.grad(
            (exact_out, exact_last), list(exact.values()), [w.double() for w in weights]
        )
        pairs = [("out", out, exact_out), ("last_state", last, exact_last)]
        pairs += zip(tensors, gradients, exact_gradients, strict=True)
        for name, value, expected in pairs:
            if expected.numel() > 0:
                assert value.isfinite().all(), name
                error = (value.double() - expected).abs().max().item()
                off[name] = max(off.get(name, 0.0), error)
                largest[name] = max(largest.get(name, 1e-30), expected.abs().max().item())
    for name, error in off.items():
        assert error <= tolerance * largest[name], f"{name}: {error / largest[name]:.2e}"


@pytest.mark.parametrize(
    "shape",
    [
        (2, 1, 1, 16),
        (3, 2, 37, 16),
        (2, 31, 256, 16),
        (1, 129, 20, 5),
        (2, 60, 40, 1),
        (1, 200, 70, 16),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-13)],
    ids=["fp32", "bf16", "fp64"],
)
def test_selective_scan(shape, dtype, tolerance, capability):
    inputs = draws(scan_inputs, shape, dtype)
    compare_with_reference(
        ops.selective_scan, reference.selective_scan, inputs, tolerance, delta_softplus=True
    )


def test_selective_scan_long(capability):
    inputs = [scan_inputs(1, 1134, 17, 16)]
    compare_with_reference(
        ops.selective_scan, reference.selective_scan, inputs, 1e-5, delta_softplus=True
    )


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (2, 2, 37, 4), (3, 40, 20, 3), (1, 129, 256, 2)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-13)],
    ids=["fp32", "bf16", "fp64"],
)
def test_causal_conv1d(shape, dtype, tolerance, capability):
    inputs = draws(conv_inputs, shape, dtype)
    compare_with_reference(ops.causal_conv1d, reference.causal_conv1d, inputs, tolerance)


def test_gradcheck():
    tensors, flags = scan_inputs(2, 5, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: ops.selective_scan(
            **dict(zip(tensors, a, strict=True)),
            **flags,
            delta_softplus=True,
            return_last_state=True,
        ),
        tuple(tensors.values()),
    )
    tensors, flags = conv_inputs(2, 6, 3, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: ops.causal_conv1d(
            **dict(zip(tensors, a, strict=True)), **flags, return_last_state=True
        ),
        tuple(tensors.values()),
    )
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(torch.ops.dmamba.gelu, (x,))
    assert torch.autograd.gradcheck(lambda x: torch.ops.dmamba.dropout(x, 0.4, 5), (x,))


def positional(tensors, flags):
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    return (
        *(tensors[name] for name in names),
        True,
        flags["mask"],
        flags["segment_starts"],
        tensors["initial_state"],
    )


def test_opcheck():
    tensors, flags = scan_inputs(2, 5, 6, 4)
    opcheck(SCAN, positional(tensors, flags))
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    args = positional(plain, flags)
    opcheck(SCAN, (*args, 2))
    out, last, kept = SCAN(*args, 2)
    opcheck(
        torch.ops.dmamba.selective_scan_backward.default,
        (torch.ones_like(out), torch.ones_like(last), *args, kept, 2, out),
    )
    bare = [plain[name] for name in ("u", "delta", "A", "B", "C")]
    nothing = (None, None, None, False, None, None, None)
    out, _, kept = SCAN(*bare)
    opcheck(
        torch.ops.dmamba.selective_scan_backward.default,
        (torch.ones_like(out), None, *bare, *nothing, kept, 0),
    )
    conv, flags = conv_inputs(2, 5, 6, 4)
    opcheck(
        torch.ops.dmamba.causal_conv1d_backward.default,
        (torch.ones(2, 5, 6), None, conv["x"].detach(), conv["weight"].detach())
        + (None, True, None, None, None),
    )
    detached = {name: tensor.detach() for name, tensor in conv.items()}
    for t in (conv, detached):
        rest = (flags["mask"], flags["segment_starts"], t["initial_state"])
        opcheck(CONV, (t["x"], t["weight"], t["bias"], True, *rest))
    opcheck(
        torch.ops.dmamba.causal_conv1d_backward.default,
        (torch.ones(2, 5, 6), None, t["x"], t["weight"], t["bias"], True, *rest),
    )
    state = torch.randn(2, 6, 4)
    opcheck(
        torch.ops.dmamba.selective_state_update.default,
        (state, *(plain[n][:, 0] for n in ("u", "delta")), plain["A"], plain["B"][:, 0],
         plain["C"][:, 0]),
    )  # fmt: skip
    opcheck(
        torch.ops.dmamba.causal_conv1d_update.default,
        (torch.randn(2, 6, 3), detached["x"][:, 0], detached["weight"]),
    )
    x = torch.randn(3, 5, requires_grad=True)
    opcheck(torch.ops.dmamba.gelu.default, (x,))
    opcheck(torch.ops.dmamba.dropout.default, (x, 0.3, 7))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_into_one_graph(backend):
    tensors, flags = scan_inputs(2, 9, 6, 4)

    def loss(*values):
        named = dict(zip(tensors, values, strict=True))
        u = ops.causal_conv1d(named["u"], named["A"])
        named["u"] = torch.ops.dmamba.gelu(u)
        return ops.selective_scan(**named, **flags, delta_softplus=True).square().sum()

    values = list(tensors.values())
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    eager = torch.autograd.grad(loss(*values), values)
    for got, expected in zip(torch.autograd.grad(compiled(*values), values), eager, strict=True):
        torch.testing.assert_close(got, expected)


def test_same_bits_for_any_number_of_threads(capability):
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            bits = []
            for shape in ((5, 60, 100, 16), (1, 300, 512, 16)):
                tensors, flags = scan_inputs(*shape)
                out = ops.selective_scan(**tensors, **flags, delta_softplus=True)
                bits += [out, *torch.autograd.grad(out.sum(), list(tensors.values()))]
            x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
            results.append([*bits, torch.ops.dmamba.dropout(x, 0.1, 3), torch.ops.dmamba.gelu(x)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_step_by_step_equals_the_whole(capability):
    tensors, _ = scan_inputs(3, 11, 37, 16)
    t = {name: tensor.detach() for name, tensor in tensors.items()}
    whole, last = ops.selective_scan(**t, delta_softplus=True, return_last_state=True)
    state = t["initial_state"].clone()
    for i in range(11):
        y = ops.selective_state_update(
            state, t["u"][:, i], t["delta"][:, i], t["A"], t["B"][:, i], t["C"][:, i], t["D"],
            t["z"][:, i], t["delta_bias"], delta_softplus=True,
        )  # fmt: skip
        torch.testing.assert_close(y, whole[:, i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)
    conv, _ = conv_inputs(3, 11, 37, 4)
    c = {name: tensor.detach() for name, tensor in conv.items()}
    whole, last = ops.causal_conv1d(**c, return_last_state=True)
    window = c["initial_state"].clone()
    for i in range(11):
        y = ops.causal_conv1d_update(window, c["x"][:, i], c["weight"], c["bias"])
        torch.testing.assert_close(y, whole[:, i])
    assert torch.equal(window, last)


def test_packed_segments_equal_separate_ones():
    tensors, _ = scan_inputs(1, 20, 8, 16)
    t = {name: tensor.detach() for name, tensor in tensors.items() if name != "initial_state"}
    starts = torch.zeros(1, 20, dtype=torch.bool)
    starts[0, 7] = True
    packed = ops.selective_scan(**t, delta_softplus=True, segment_starts=starts)
    sequences = ("u", "delta", "B", "C", "z")
    for part in (slice(0, 7), slice(7, 20)):
        alone = {name: v[:, part] if name in sequences else v for name, v in t.items()}
        expected = ops.selective_scan(**alone, delta_softplus=True)
        assert torch.equal(packed[:, part], expected)


def test_strided_inputs():
    tensors, flags = scan_inputs(2, 9, 16, 4)
    contiguous = {name: tensor.detach() for name, tensor in tensors.items()}
    strided = dict(contiguous)
    pair = torch.cat([contiguous["u"], contiguous["z"]], -1)
    strided["u"], strided["z"] = pair.chunk(2, -1)
    strided["delta"] = contiguous["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    strided["B"] = torch.stack([contiguous["B"]] * 2, -1)[..., 0]
    a = ops.selective_scan(**contiguous, **flags, delta_softplus=True)
    assert torch.equal(a, ops.selective_scan(**strided, **flags, delta_softplus=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": torch.zeros(2, 5, 7)}, r"selective_scan: delta must be \(batch, L, d_inner\)"),
        ({"A": torch.zeros(7, 4)}, r"selective_scan: A must be \(d_inner, d_state\)"),
        ({"B": torch.zeros(2, 5, 3)}, r"selective_scan: B must be \(batch, L, d_state\)"),
        ({"z": torch.zeros(2, 5, 6).double()}, "selective_scan: z must be Float"),
        ({"u": torch.zeros(2, 5)}, r"selective_scan: u must be \(batch, L, d_inner\)"),
        ({"u": torch.zeros(2, 5, 6).half()}, "selective_scan: u must be float32, bfloat16"),
        ({"mask": torch.zeros(2, 5)}, "selective_scan: mask must be Bool"),
        ({"initial_state": torch.zeros(2, 6, 5)}, "selective_scan: initial_state must be"),
    ],
)
def test_bad_input_is_named(change, message):
    tensors, flags = scan_inputs(2, 5, 6, 4)
    arguments = {name: tensor.detach() for name, tensor in tensors.items()} | flags | change
    with pytest.raises(RuntimeError, match=message):
        ops.selective_scan(**arguments)


def test_double_backward_is_an_error():
    tensors, _ = scan_inputs(1, 3, 4, 2)
    out = ops.selective_scan(**tensors, delta_softplus=True)
    (gradient,) = torch.autograd.grad(out.sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize("delta", [1e-8, 1e-30, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("decay", [-1e4, -1.0, -1e-8])
def test_extreme_values_stay_finite(delta, decay, capability):
    tensors, _ = scan_inputs(1, 12, 33, 16)
    tensors = {n: tensors[n] for n in ("u", "delta", "A", "B", "C", "D", "z")}
    with torch.no_grad():
        tensors["delta"].fill_(delta)
        tensors["A"].fill_(decay)
        tensors["z"][:, ::2] = -1e4
    out = ops.selective_scan(**tensors)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(tensors.values())))


def test_gelu_and_dropout(capability):
    x = torch.linspace(-12, 12, 10_001)
    exact = torch.nn.functional.gelu(x.double())
    assert (torch.ops.dmamba.gelu(x).double() - exact).abs().max() < 2e-6
    ones = torch.ones(1_000_003)
    dropped = torch.ops.dmamba.dropout(ones, 0.1, 42)
    kept = (dropped != 0).double().mean().item()
    assert abs(kept - 0.9) < 4 * math.sqrt(0.09 / ones.numel())
    assert torch.equal(dropped[dropped != 0].unique(), torch.tensor([1 / 0.9]))
    assert torch.equal(dropped, torch.ops.dmamba.dropout(ones, 0.1, 42))
    assert not torch.equal(dropped, torch.ops.dmamba.dropout(ones, 0.1, 43))


def test_dropout_masks_are_the_same_on_every_instruction_set():
    before = _C.cpu_capability()
    masks = []
    for name in _C.cpu_capabilities():
        _C.set_cpu_capability(name)
        masks.append(torch.ops.dmamba.dropout(torch.ones(777), 0.5, 123456789))
    _C.set_cpu_capability(before)
    assert all(torch.equal(masks[0], mask) for mask in masks[1:])


def test_dropout_of_a_piece_has_the_masks_piece(capability):
    x = torch.randn(5000)
    whole = torch.ops.dmamba.dropout(x, 0.3, 7)
    for first in (0, 64, 1920):
        piece = x[first:4001].clone().requires_grad_()
        dropped = torch.ops.dmamba.dropout(piece, 0.3, 7, first)
        assert torch.equal(dropped, whole[first:4001])
        (gradient,) = torch.autograd.grad(dropped.sum(), piece)
        assert torch.equal(gradient, torch.ops.dmamba.dropout(torch.ones(5000), 0.3, 7)[first:4001])
    # Counters of 64 bits: a mask of 2^40 elements has an end, too.
    far = torch.ops.dmamba.dropout(torch.ones(640), 0.5, 7, 2**40)
    assert torch.equal(far[128:], torch.ops.dmamba.dropout(torch.ones(512), 0.5, 7, 2**40 + 128))
    assert not torch.equal(far, torch.ops.dmamba.dropout(torch.ones(640), 0.5, 7))


@pytest.mark.parametrize("first", [-64, 1, 63, 65])
def test_a_piece_begins_with_a_stretch(first):
    message = f"dropout: first must be a multiple of 64, got {first}"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dmamba.dropout(torch.ones(3), 0.1, 7, first)
