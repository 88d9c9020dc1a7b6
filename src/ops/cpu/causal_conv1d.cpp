// The causal convolution on the CPU: tensors to parameters, units to threads.
#include <torch/library.h>

#include "kernels/causal_conv1d/params.h"
#include "src/ops/checks.h"
#include "src/ops/cpu/dispatch.h"
#include "src/ops/cpu/tensors.h"

namespace dmamba::ops::cpu {
namespace {

using at::Tensor;
using kernels::CausalConv1dBackwardParams;
using kernels::CausalConv1dForwardParams;
using kernels::CausalConv1dParams;

CausalConv1dParams common_params(Inputs& in, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
                                 const OptionalTensor& segment_starts,
                                 const OptionalTensor& initial_state) {
  CausalConv1dParams p{};
  p.batch = x.size(0);
  p.length = x.size(1);
  p.d_inner = x.size(2);
  p.width = weight.size(1);
  p.storage = storage_of(x);
  p.silu = silu;
  p.x = in.rows(x);
  p.weight = in.transposed(weight);
  p.weight_channel_stride = 1;
  p.weight_tap_stride = p.d_inner;
  p.bias = in.vector(bias);
  p.mask = in.flags(mask);
  p.segment_starts = in.flags(segment_starts);
  p.initial_state = in.state(initial_state);
  return p;
}

void run_forward(const CausalConv1dForwardParams& p) {
  const KernelTable& table = kernels_for(p.storage);
  for_units(block_units(p.batch, p.d_inner, table.lanes), p.length * p.width, table.conv_scratch(p),
            [&](int64_t begin, int64_t end, void* scratch) {
              table.conv_forward(p, begin, end, scratch);
            });
}

std::tuple<Tensor, Tensor> causal_conv1d_cpu(const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& bias, bool silu,
                                             const OptionalTensor& mask,
                                             const OptionalTensor& segment_starts,
                                             const OptionalTensor& initial_state) {
  check_causal_conv1d("causal_conv1d", x, weight, bias, mask, segment_starts, initial_state);
  Inputs in;
  CausalConv1dForwardParams p{
      common_params(in, x, weight, bias, silu, mask, segment_starts, initial_state), {}, {}};
  Tensor out = at::empty(x.sizes(), x.options());
  Tensor last_state = empty_state(x, p.batch, p.d_inner, p.width - 1);
  p.out = sequence(out);
  p.last_state = state_view(last_state);
  run_forward(p);
  return {out, last_state};
}

std::tuple<Tensor, Tensor, Tensor> causal_conv1d_backward_out_cpu(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state, const Tensor& dx) {
  constexpr const char* kOp = "causal_conv1d_backward";
  check_causal_conv1d(kOp, x, weight, bias, mask, segment_starts, initial_state);
  check_gradient(kOp, "dx", dx, x);
  Inputs in;
  CausalConv1dBackwardParams p{};
  static_cast<CausalConv1dParams&>(p) =
      common_params(in, x, weight, bias, silu, mask, segment_starts, initial_state);
  p.dout = in.rows(dout);
  p.dlast_state = in.state(dlast_state);
  const auto real = x.options().dtype(parameter_dtype(x.scalar_type()));
  // The kernel leaves gradients of initial inputs that a segment's start cut off unwritten.
  Tensor dinitial = absent_gradient(x);
  if (present(initial_state)) {
    dinitial = empty_state(x, p.batch, p.d_inner, p.width - 1).zero_();
    p.dinitial_state = state_view(dinitial);
  }
  Tensor dweight = at::empty({p.batch, p.width, p.d_inner}, real);
  Tensor dbias = at::empty({p.bias ? p.batch : 0, p.d_inner}, real);
  p.dx = sequence(dx);
  p.dweight_partial = dweight.mutable_data_ptr();
  p.dbias_partial = p.bias ? dbias.mutable_data_ptr() : nullptr;
  const KernelTable& table = kernels_for(p.storage);
  for_units(block_units(p.batch, p.d_inner, table.lanes), 3 * p.length * p.width,
            table.conv_scratch(p), [&](int64_t begin, int64_t end, void* scratch) {
              table.conv_backward(p, begin, end, scratch);
            });
  return {sum_parts(dweight).t().contiguous(), p.bias ? sum_parts(dbias) : absent_gradient(x),
          dinitial};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_cpu(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& x, const Tensor& weight,
    const OptionalTensor& bias, bool silu, const OptionalTensor& mask,
    const OptionalTensor& segment_starts, const OptionalTensor& initial_state) {
  const Tensor dx = at::empty(x.sizes(), x.options());
  auto [dweight, dbias, dinitial] = causal_conv1d_backward_out_cpu(
      dout, dlast_state, x, weight, bias, silu, mask, segment_starts, initial_state, dx);
  return {dx, dweight, dbias, dinitial};
}

Tensor causal_conv1d_update_cpu(Tensor& state, const Tensor& x, const Tensor& weight,
                                const OptionalTensor& bias, bool silu) {
  constexpr const char* kOp = "causal_conv1d_update";
  TORCH_CHECK(x.dim() == 2, kOp, ": x must be (batch, d_inner), got ", x.sizes());
  const Tensor x1 = x.unsqueeze(1);
  check_causal_conv1d(kOp, x1, weight, bias, {}, {}, state);
  check_written_in_place(kOp, "state", state);
  Inputs in;
  CausalConv1dForwardParams p{common_params(in, x1, weight, bias, silu, {}, {}, state), {}, {}};
  Tensor out = at::empty(x.sizes(), x.options());
  p.out = sequence(out.unsqueeze(1));
  p.last_state = state_view(state);
  run_forward(p);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, CPU, m) {
  m.impl("causal_conv1d", &causal_conv1d_cpu);
  m.impl("causal_conv1d_backward", &causal_conv1d_backward_cpu);
  m.impl("causal_conv1d_backward_out", &causal_conv1d_backward_out_cpu);
  m.impl("causal_conv1d_update", &causal_conv1d_update_cpu);
}

}  // namespace dmamba::ops::cpu
