"""The products beside a GELU, which takes part in them, beside float64 on the CPU."""

import copy

import pytest
import torch
from support import needs_cuda, poison
from test_cuda_token_chain import loss_of, make_batch, spread_vectors
from torch.profiler import ProfilerActivity, profile

import dmamba

pytestmark = needs_cuda
STATE_DIM, ACT_DIM = 13, 9


@pytest.fixture(autouse=True)
def rounded():
    """Products of float32 may be rounded to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def make_model(**options):
    torch.manual_seed(0)
    options = {"d_model": 128, "n_layer": 2, "max_timestep": 11, "context_length": 110, **options}
    options |= {"dropout": 0.0, "embedding_dropout": 0.0}
    return spread_vectors(dmamba.nn.DMamba(STATE_DIM, ACT_DIM, **options))


def gradients(model, inputs, autocast=False):
    model.zero_grad(set_to_none=True)
    if inputs[0].is_cuda:
        poison()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = loss_of(model, *inputs)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


def reference(model, inputs):
    """The same in double precision on the CPU."""
    model = copy.deepcopy(model).cpu().double()
    inputs = [t.cpu().double() if t.is_floating_point() else t.cpu() for t in inputs]
    return gradients(model, inputs)


def error(got, expected):
    """The largest relative distance of a gradient, or of the loss."""
    distances = [
        (got[name].cpu().double() - value).norm() / value.norm().clamp_min(1e-12)
        for name, value in expected.items()
    ]
    return float(torch.stack(distances).max())  # NaN where one is


def names(model, inputs, part, autocast=True):
    """Of the kernels of both passes, those with this part."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        gradients(model, inputs, autocast)
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if part in event.name]


def launches(model, inputs, autocast=False):
    """Kernels of the products in both passes."""
    return len(names(model, inputs, "linear_kernel", autocast))


def launches_of_a_layer():
    """Both beside the GELU; on cards of compute capability 9.0 in_proj, out_proj and the mixer's
    other two as well, each way."""
    return 8 if torch.cuda.get_device_capability() == (9, 0) else 2


@pytest.mark.parametrize("options", [{}, {"d_model": 64}, {"n_layer": 1, "d_model": 256}])
@pytest.mark.parametrize(("batch", "K"), [(1, 1), (3, 11), (64, 20)])
def test_tf32_is_as_near_as_ten_bits_allow_over_some_products(options, batch, K):
    model, inputs = make_model(**options), make_batch(batch, K)
    got, expected = gradients(model, inputs), reference(model, inputs)
    assert error(got, expected) <= 1e-2
    again = gradients(model, inputs)
    assert all(torch.equal(got[name], value) for name, value in again.items())
    assert launches(model, inputs) == launches_of_a_layer() * options.get("n_layer", 2)


def test_float32_is_not_rounded():
    torch.backends.cuda.matmul.allow_tf32 = False
    model, inputs = make_model(), make_batch(3, 11)
    assert error(gradients(model, inputs), reference(model, inputs)) <= 1e-5
    assert launches(model, inputs) == 0


def test_gelu_belongs_to_the_product_in_bfloat16():
    model, inputs = make_model(), make_batch(16, 100)  # more tokens than the token chain takes
    expected, got = reference(model, inputs), gradients(model, inputs, autocast=True)
    assert error(got, expected) <= 5e-2
    assert launches(model, inputs, autocast=True) == 2 * launches_of_a_layer()


def test_long_batches_in_bfloat16_leave_plain_products_to_cublas():
    model = make_model(n_layer=1)
    at_most, more = (make_batch(batch, 88) for batch in (32, 33))  # 8448 tokens, and 264 more
    assert launches(model, at_most, autocast=True) == launches_of_a_layer()
    assert launches(model, more, autocast=True) == 2  # beside the GELU


def test_a_forward_pass_of_ones_own_casts_its_matrices_in_one_launch():
    model, inputs = make_model(), make_batch(16, 100)
    gradients(model, inputs, autocast=True)
    assert len(names(model, inputs, "mirrors_kernel")) == 1  # decay rates included
    # What was cast before is not used again.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    changed = gradients(model, inputs, autocast=True)
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    expected = gradients(fresh, inputs, autocast=True)
    assert all(torch.equal(changed[name], value) for name, value in expected.items())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0),
    reason="elsewhere each weight's gradient is a product of its own",
)
def test_gradients_of_neighbouring_weights_come_in_one_launch():
    model, inputs = make_model(), make_batch(16, 100)
    # The projections' and the channel mixer's, of two layers.
    assert len(names(model, inputs, "weight_gradients_kernel")) == 4


@pytest.mark.parametrize("part", ["mlp_channels", "channels.0.weight", "channels.0.bias"])
def test_parameters_may_be_frozen(part):
    model, inputs = make_model(), make_batch(3, 11)
    expected = gradients(model, inputs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part not in name)
    got = gradients(model, inputs)
    for name, value in expected.items():
        assert (got[name] is None) if part in name else torch.equal(got[name], value), name
