"""How the CUDA ops behave: bits, streams, graphs, opcheck, messages; the model on both devices."""

import pytest
import torch
from support import conv_inputs, error, needs_cuda, on_gpu, scan_inputs
from torch.library import opcheck

import dmamba
from dmamba import _C, ops

pytestmark = needs_cuda

SCAN = torch.ops.dmamba.selective_scan.default
CONV = torch.ops.dmamba.causal_conv1d.default
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def every_op(tensors, flags):
    """Results and gradients of all ops, from one set of inputs."""
    scan = ops.selective_scan(**tensors, **flags, delta_softplus=True)
    conv = ops.causal_conv1d(tensors["u"], tensors["A"][:, :4], tensors["D"], **flags)
    mixed = torch.ops.dmamba.dropout(torch.ops.dmamba.gelu(scan + conv), 0.1, 5)
    gradients = torch.autograd.grad(mixed, list(tensors.values()), torch.ones_like(mixed))
    # Without their graph: its nodes would tie a capture to the stream that they were made on.
    return [t.detach() for t in (scan, conv, mixed, *gradients)]


@pytest.mark.parametrize("shape", [(5, 60, 100, 16), (1, 1134, 512, 16), (2, 60, 37, 130)], ids=str)
def test_same_bits_every_time_and_on_any_stream(shape):
    tensors, flags = scan_inputs(*shape)
    tensors, flags = on_gpu(tensors, gradients=True), on_gpu(flags)
    first = every_op(tensors, flags)
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    for i in range(20):
        stream = streams[i % 3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = every_op(tensors, flags)
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", [(5, 60, 100, 16), (1, 1134, 512, 16), (2, 60, 37, 130)], ids=str)
def test_same_bits_inside_a_graph(shape):
    tensors, flags = scan_inputs(*shape)
    tensors, flags = on_gpu(tensors, gradients=True), on_gpu(flags)
    expected = every_op(tensors, flags)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        every_op(tensors, flags)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = every_op(tensors, flags)
    for _ in range(3):
        for t in captured:
            t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def positional(tensors, flags):
    rest = (flags["mask"], flags["segment_starts"], tensors["initial_state"])
    return (*(tensors[name] for name in NAMES), True, *rest)


@pytest.mark.parametrize("d_state", [4, 130])
def test_opcheck_scan(d_state):
    tensors, flags = scan_inputs(2, 37, 6, d_state)
    flags = on_gpu(flags)
    opcheck(SCAN, positional(on_gpu(tensors, gradients=True), flags))
    plain = on_gpu(tensors)
    args = positional(plain, flags)
    opcheck(SCAN, (*args, 8))
    out, last, kept = SCAN(*args, 8)
    opcheck(
        torch.ops.dmamba.selective_scan_backward.default,
        (torch.ones_like(out), torch.ones_like(last), *args, kept, 8, out),
    )
    tensors, _ = scan_inputs(2, 37, 6, d_state, torch.bfloat16)  # other checkpoints
    opcheck(SCAN, (*positional(on_gpu(tensors), flags), 8), test_utils="test_faketensor")
    bare = [plain[name] for name in ("u", "delta", "A", "B", "C")]
    bare[1] = bare[1].abs()  # no softplus: steps below zero would make the states grow to infinity
    nothing = (None, None, None, False, None, None, None)
    out, _, kept = SCAN(*bare, *nothing, 8)
    opcheck(
        torch.ops.dmamba.selective_scan_backward.default,
        (torch.ones_like(out), None, *bare, *nothing, kept, 8),
    )
    opcheck(
        torch.ops.dmamba.selective_state_update.default,
        (plain["initial_state"], *(plain[n][:, 0] for n in ("u", "delta")), plain["A"],
         plain["B"][:, 0], plain["C"][:, 0]),
    )  # fmt: skip


def test_opcheck_conv_and_elementwise():
    tensors, flags = conv_inputs(2, 5, 6, 4)
    flags = on_gpu(flags)
    for c in (on_gpu(tensors, gradients=True), on_gpu(tensors)):
        rest = (flags["mask"], flags["segment_starts"], c["initial_state"])
        opcheck(CONV, (c["x"], c["weight"], c["bias"], True, *rest))
    backward = torch.ops.dmamba.causal_conv1d_backward.default
    dout = torch.ones(2, 5, 6, device="cuda")
    opcheck(backward, (dout, None, c["x"], c["weight"], c["bias"], True, *rest))
    opcheck(backward, (dout, None, c["x"], c["weight"], None, True, None, None, None))
    opcheck(
        torch.ops.dmamba.causal_conv1d_update.default,
        (c["initial_state"], c["x"][:, 0], c["weight"]),
    )
    x = torch.randn(3, 5, device="cuda", requires_grad=True)
    opcheck(torch.ops.dmamba.gelu.default, (x,))
    opcheck(torch.ops.dmamba.dropout.default, (x, 0.3, 7))


def test_compiles_into_one_graph():
    tensors, flags = scan_inputs(2, 9, 6, 4)
    tensors, flags = on_gpu(tensors, gradients=True), on_gpu(flags)

    def loss(*values):
        named = dict(zip(tensors, values, strict=True))
        named["u"] = torch.ops.dmamba.gelu(ops.causal_conv1d(named["u"], named["A"]))
        return ops.selective_scan(**named, **flags, delta_softplus=True).square().sum()

    values = list(tensors.values())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(*values), values)
    for got, expected in zip(torch.autograd.grad(compiled(*values), values), eager, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": torch.zeros(2, 5, 7)}, r"selective_scan: delta must be \(batch, L, d_inner\)"),
        ({"mask": torch.zeros(2, 5, dtype=torch.bool)}, "selective_scan: mask is on cpu, but u is"),
        ({"z": torch.zeros(2, 5, 6).bfloat16()}, "selective_scan: z must be Float"),
    ],
)
def test_bad_scan_input_is_named(change, message):
    tensors, flags = scan_inputs(2, 5, 6, 4)
    arguments = on_gpu(tensors) | on_gpu(flags)
    arguments |= {n: t if "is on cpu" in message else t.cuda() for n, t in change.items()}
    with pytest.raises(RuntimeError, match=message):
        ops.selective_scan(**arguments)


def test_float64_is_refused_by_every_op():
    tensors, _ = scan_inputs(2, 5, 6, 4)
    t = {name: tensor.double() for name, tensor in on_gpu(tensors).items()}
    x = t["u"]
    with pytest.raises(RuntimeError, match="selective_scan: u is float64, which the CUDA"):
        ops.selective_scan(**t)
    with pytest.raises(RuntimeError, match="causal_conv1d: x is float64, which the CUDA"):
        ops.causal_conv1d(x, t["A"])
    with pytest.raises(RuntimeError, match="gelu: x is float64, which the CUDA"):
        torch.ops.dmamba.gelu(x)
    with pytest.raises(RuntimeError, match="dropout: x is float64, which the CUDA"):
        torch.ops.dmamba.dropout(x, 0.1, 1)


def test_other_limits_are_named():
    tensors, _ = scan_inputs(2, 40, 6, 4)
    t = on_gpu(tensors)
    bare = [t[name] for name in ("u", "delta", "A", "B", "C")]
    nothing = (None, None, None, False, None, None, None)
    with pytest.raises(RuntimeError, match="checkpoint_every must be 0 or 8 on CUDA, got 64"):
        SCAN(*bare, *nothing, 64)
    out, _, kept = SCAN(*bare, *nothing, 8)
    backward = torch.ops.dmamba.selective_scan_backward.default
    with pytest.raises(RuntimeError, match="selective_scan_backward: dout must be as u"):
        backward(out[:, :3], None, *bare, *nothing, kept, 8)
    with pytest.raises(RuntimeError, match="selective_scan_backward: checkpoints must be those"):
        backward(out, None, *bare, *nothing, kept[:1], 8)
    gated = (None, t["z"], None, False, None, None, None)
    with pytest.raises(
        RuntimeError, match="selective_scan_backward: out, the forward pass's, must"
    ):
        backward(out, None, *bare, *gated, kept, 8)
    with pytest.raises(RuntimeError, match="selective_scan_backward: out must be as u"):
        backward(out, None, *bare, *gated, kept, 8, out[:, 1:])
    with pytest.raises(RuntimeError, match="causal_conv1d: width 9 is more than the CUDA"):
        ops.causal_conv1d(t["u"], torch.zeros(6, 9, device="cuda"))


@pytest.mark.parametrize("chunk_length", [40, -16])
def test_bad_plans_are_named(chunk_length):
    with pytest.raises(dmamba.Error, match="a multiple of 16"):
        _C.set_cuda_scan_plan(chunk_length)


def test_the_model_is_the_cpus():
    torch.manual_seed(0)
    model = dmamba.nn.DMamba(
        5, 2, d_model=32, n_layer=2, context_length=20, max_timestep=50, dropout=0.0,
        embedding_dropout=0.0,
    )  # fmt: skip
    batch, K = 4, 20
    data = (torch.randn(batch, K, 5), torch.randn(batch, K, 2), torch.randn(batch, K, 1),
            torch.arange(K).repeat(batch, 1))  # fmt: skip
    weight = torch.randn(batch, K, 2)

    def outputs(device):
        model.to(device)
        model.zero_grad()
        predicted = model(*(t.to(device) for t in data))
        (predicted * weight.to(device)).sum().backward()
        gradients = {name: p.grad.cpu().double() for name, p in model.named_parameters()}
        return predicted.detach().cpu().double(), gradients

    # Matrix products in TF32 would differ by a thousandth.
    torch.backends.cuda.matmul.allow_tf32 = False
    expected, expected_gradients = outputs("cpu")
    got, gradients = outputs("cuda")
    assert error(got, expected) <= 1e-5
    for name, gradient in gradients.items():
        assert error(gradient, expected_gradients[name]) <= 2e-5, name


def test_autograd_backward_of_an_expanded_gradient():
    tensors, flags = scan_inputs(2, 20, 6, 4)
    t = on_gpu(tensors, gradients=True)
    out = ops.selective_scan(**t, **on_gpu(flags), delta_softplus=True)
    out.sum().backward()  # the gradient of a sum has strides of zero
    exact = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    ops.selective_scan(**exact, **flags, delta_softplus=True).sum().backward()
    for name in t:
        assert error(t[name].grad, exact[name].grad) <= 2e-6, name
