// The causal convolution on CUDA: tensors to parameters to a launch.
#include <torch/library.h>

#include "kernels/causal_conv1d/launch.h"
#include "src/ops/cuda/tensors.h"

namespace dmamba::ops::cuda {
namespace {

using at::Tensor;
using kernels::CausalConv1dBackwardParams;
using kernels::CausalConv1dForwardParams;
using kernels::CausalConv1dParams;

/// The inputs of a convolution, as the schemas name them.
struct ConvInputs {
  const Tensor &x, &weight;
  const OptionalTensor& bias;
  bool silu;
  const OptionalTensor &mask, &segment_starts, &initial_state;
};

/// Where the backward pass writes. x's gradient has contiguous channels; the others are contiguous,
/// and undefined where the input was absent.
struct ConvGradients {
  Tensor dx, dweight, dbias, dinitial_state;
};

void check_inputs(const char* op, const ConvInputs& in) {
  check_causal_conv1d(op, in.x, in.weight, in.bias, in.mask, in.segment_starts, in.initial_state);
  check_cuda_storage(op, "x", in.x);
  TORCH_CHECK(in.weight.size(1) <= kernels::kConvMaxWidth, op, ": width ", in.weight.size(1),
              " is more than the CUDA kernels' ", kernels::kConvMaxWidth);
}

CausalConv1dParams common_params(Inputs& views, const ConvInputs& in) {
  CausalConv1dParams p{};
  p.batch = in.x.size(0);
  p.length = in.x.size(1);
  p.d_inner = in.x.size(2);
  p.width = in.weight.size(1);
  p.storage = storage_of(in.x);
  p.silu = in.silu;
  p.x = views.rows(in.x);
  p.weight = in.weight.const_data_ptr();
  p.weight_channel_stride = in.weight.stride(0);
  p.weight_tap_stride = in.weight.stride(1);
  p.bias = views.vector(in.bias);
  p.mask = views.flags(in.mask);
  p.segment_starts = views.flags(in.segment_starts);
  p.initial_state = Inputs::state(in.initial_state);
  return p;
}

/// Writes out (contiguous channels) and last_state (any strides; may be initial_state itself).
void conv_forward(const char* op, const ConvInputs& in, const Tensor& out,
                  const Tensor& last_state) {
  if (in.x.numel() == 0) return;
  Call call(op, in.x);
  Inputs views;
  CausalConv1dForwardParams p{common_params(views, in), sequence(out), state_view(last_state)};
  call.check(kernels::launch_causal_conv1d_forward(p, call.stream()));
}

void conv_backward(const char* op, const ConvInputs& in, const Tensor& dout,
                   const OptionalTensor& dlast_state, const ConvGradients& gradients) {
  if (in.x.numel() == 0) {
    gradients.dweight.zero_();
    if (gradients.dbias.defined()) gradients.dbias.zero_();
    return;
  }
  Call call(op, in.x);
  Inputs views;
  CausalConv1dBackwardParams p{};
  static_cast<CausalConv1dParams&>(p) = common_params(views, in);
  p.dout = views.rows(dout);
  p.dlast_state = Inputs::state(dlast_state);
  p.dx = sequence(gradients.dx);
  p.dinitial_state = Inputs::state(gradients.dinitial_state);
  const kernels::CausalConv1dGradients sums{
      gradients.dweight.mutable_data_ptr<float>(),
      gradients.dbias.defined() ? gradients.dbias.mutable_data_ptr<float>() : nullptr};
  void* scratch = call.scratch(kernels::causal_conv1d_backward_workspace(p));
  call.check(kernels::launch_causal_conv1d_backward(p, scratch, call.stream()));
  call.beside([&](cudaStream_t stream) {
    return kernels::launch_causal_conv1d_backward_sums(p, sums, scratch, stream);
  });
}

ConvGradients run_backward(const char* op, const ConvInputs& in, const Tensor& dout,
                           const OptionalTensor& dlast_state, const Tensor& dx) {
  const Tensor &x = in.x, &weight = in.weight;
  check_inputs(op, in);
  check_gradient(op, "dout", dout, x, "x");
  check_state_gradient(op, dlast_state, x, weight.size(1) - 1);
  ConvGradients gradients{dx, at::empty(weight.sizes(), weight.options()), {}, {}};
  if (present(in.bias)) gradients.dbias = at::empty(in.bias->sizes(), in.bias->options());
  if (present(in.initial_state)) {
    gradients.dinitial_state = empty_state(x, x.size(0), x.size(2), weight.size(1) - 1);
  }
  conv_backward(op, in, dout, dlast_state, gradients);
  return gradients;
}

std::tuple<Tensor, Tensor> causal_conv1d_cuda(const Tensor& x, const Tensor& weight,
                                              const OptionalTensor& bias, bool silu,
                                              const OptionalTensor& mask,
                                              const OptionalTensor& segment_starts,
                                              const OptionalTensor& initial_state) {
  constexpr const char* kOp = "causal_conv1d";
  const ConvInputs in{x, weight, bias, silu, mask, segment_starts, initial_state};
  check_inputs(kOp, in);
  Tensor out = at::empty(x.sizes(), x.options());
  Tensor last_state = empty_state(x, x.size(0), x.size(2), weight.size(1) - 1);
  conv_forward(kOp, in, out, last_state);
  return {out, last_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_cuda(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state) {
  constexpr const char* kOp = "causal_conv1d_backward";
  const ConvInputs in{x, weight, bias, silu, mask, segment_starts, initial_state};
  const ConvGradients gradients =
      run_backward(kOp, in, dout, dlast_state, at::empty(x.sizes(), x.options()));
  return {gradients.dx, gradients.dweight, or_absent_gradient(gradients.dbias, x),
          or_absent_gradient(gradients.dinitial_state, x)};
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward_out_cuda(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state, const Tensor& dx) {
  constexpr const char* kOp = "causal_conv1d_backward_out";
  const ConvInputs in{x, weight, bias, silu, mask, segment_starts, initial_state};
  ops::check_gradient(kOp, "dx", dx, x);
  const ConvGradients gradients = run_backward(kOp, in, dout, dlast_state, dx);
  return {gradients.dweight, or_absent_gradient(gradients.dbias, x),
          or_absent_gradient(gradients.dinitial_state, x)};
}

Tensor causal_conv1d_update_cuda(Tensor& state, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& bias, bool silu) {
  constexpr const char* kOp = "causal_conv1d_update";
  TORCH_CHECK(x.dim() == 2, kOp, ": x must be (batch, d_inner), got ", x.sizes());
  const Tensor x1 = x.unsqueeze(1);
  const OptionalTensor none, window = state;
  const ConvInputs in{x1, weight, bias, silu, none, none, window};
  check_inputs(kOp, in);
  check_written_in_place(kOp, "state", state);
  Tensor out = at::empty(x.sizes(), x.options());
  conv_forward(kOp, in, out.unsqueeze(1), state);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, CUDA, m) {
  m.impl("causal_conv1d", &causal_conv1d_cuda);
  m.impl("causal_conv1d_backward", &causal_conv1d_backward_cuda);
  m.impl("causal_conv1d_backward_out", &causal_conv1d_backward_out_cuda);
  m.impl("causal_conv1d_update", &causal_conv1d_update_cuda);
}

}  // namespace dmamba::ops::cuda
