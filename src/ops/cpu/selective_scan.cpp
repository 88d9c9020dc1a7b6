// The selective scan on the CPU: tensors to parameters, units to threads, partial sums to
// gradients.
#include <torch/library.h>

#include "src/ops/checks.h"
#include "src/ops/cpu/dispatch.h"
#include "src/ops/cpu/tensors.h"

namespace dmamba::ops::cpu {
namespace {

using at::Tensor;
using kernels::SelectiveScanBackwardParams;
using kernels::SelectiveScanForwardParams;
using kernels::SelectiveScanParams;

SelectiveScanParams common_params(Inputs& in, const Tensor& u, const Tensor& delta, const Tensor& A,
                                  const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                  const OptionalTensor& z, const OptionalTensor& delta_bias,
                                  bool delta_softplus, const OptionalTensor& mask,
                                  const OptionalTensor& segment_starts,
                                  const OptionalTensor& initial_state) {
  SelectiveScanParams p{};
  p.batch = u.size(0);
  p.length = u.size(1);
  p.d_inner = u.size(2);
  p.d_state = A.size(1);
  p.storage = storage_of(u);
  p.delta_softplus = delta_softplus;
  p.u = in.rows(u);
  p.delta = in.rows(delta);
  p.z = in.rows(z);
  p.B = in.rows(B);
  p.C = in.rows(C);
  p.A = in.transposed(A);
  p.A_channel_stride = 1;
  p.A_state_stride = p.d_inner;
  p.D = in.vector(D);
  p.delta_bias = in.vector(delta_bias);
  p.mask = in.flags(mask);
  p.segment_starts = in.flags(segment_starts);
  p.initial_state = in.state(initial_state);
  return p;
}

void run_forward(const SelectiveScanForwardParams& p) {
  const KernelTable& table = kernels_for(p.storage);
  const int lanes = table.lanes;
  for_units(block_units(p.batch, p.d_inner, lanes), p.length * p.d_state,
            table.scan_forward_scratch(p), [&](int64_t begin, int64_t end, void* scratch) {
              table.scan_forward(p, begin, end, scratch);
            });
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_cpu(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  check_selective_scan("selective_scan", u, delta, A, B, C, D, z, delta_bias, mask, segment_starts,
                       initial_state);
  Inputs in;
  SelectiveScanForwardParams p{common_params(in, u, delta, A, B, C, D, z, delta_bias,
                                             delta_softplus, mask, segment_starts, initial_state),
                               {},
                               {}};
  Tensor out = at::empty(u.sizes(), u.options());
  Tensor last_state = empty_state(u, p.batch, p.d_inner, p.d_state);
  p.checkpoint_every = checkpoint_every;
  const int64_t n_checkpoints = checkpoint_every > 0 ? (p.length - 1) / checkpoint_every : 0;
  Tensor checkpoints =
      at::empty({p.batch, n_checkpoints, p.d_state, p.d_inner}, last_state.options());
  p.checkpoints = checkpoints.mutable_data_ptr();
  p.out = sequence(out);
  p.last_state = state_view(last_state);
  run_forward(p);
  return {out, last_state, checkpoints};
}

/// Channels that one unit of the backward pass walks: all of them where the batch alone feeds the
/// threads, fewer for few long sequences. A function of the shape alone, so that bits don't change
/// with the number of threads.
int64_t channels_per_group(int64_t batch, int64_t d_inner) {
  constexpr int64_t kUnits = 64, kLeast = 64;
  const int64_t groups = std::max<int64_t>(1, kUnits / std::max<int64_t>(1, batch));
  const int64_t channels = (d_inner + groups - 1) / groups;
  return std::max(kLeast, (channels + kLeast - 1) / kLeast * kLeast);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> selective_scan_backward_out_cpu(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
    const OptionalTensor& z, const OptionalTensor& delta_bias, bool delta_softplus,
    const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, const Tensor& checkpoints, int64_t checkpoint_every,
    const OptionalTensor& /*out*/, const Tensor& du, const Tensor& ddelta, const Tensor& dB_out,
    const Tensor& dC_out, const OptionalTensor& dz) {
  constexpr const char* kOp = "selective_scan_backward";
  check_selective_scan(kOp, u, delta, A, B, C, D, z, delta_bias, mask, segment_starts,
                       initial_state);
  check_gradient(kOp, "du", du, u);
  check_gradient(kOp, "ddelta", ddelta, u);
  check_gradient(kOp, "dB", dB_out, B);
  check_gradient(kOp, "dC", dC_out, C);
  TORCH_CHECK(present(z) == present(dz), kOp, ": dz must be given exactly where z is");
  if (present(dz)) check_gradient(kOp, "dz", *dz, u);
  Inputs in;
  SelectiveScanBackwardParams p{};
  static_cast<SelectiveScanParams&>(p) = common_params(
      in, u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state);
  p.checkpoint_every = checkpoint_every;
  p.checkpoints = checkpoints.data_ptr();
  p.dout = in.rows(dout);
  p.dlast_state = in.state(dlast_state);
  p.group_channels = channels_per_group(p.batch, p.d_inner);
  p.n_groups = (p.d_inner + p.group_channels - 1) / p.group_channels;

  const auto real = u.options().dtype(parameter_dtype(u.scalar_type()));
  Tensor dinitial =
      present(initial_state) ? empty_state(u, p.batch, p.d_inner, p.d_state) : absent_gradient(u);
  Tensor dA = at::empty({p.batch, p.d_state, p.d_inner}, real);
  Tensor dD = at::empty({p.D ? p.batch : 0, p.d_inner}, real);
  Tensor dbias = at::empty({p.delta_bias ? p.batch : 0, p.d_inner}, real);
  Tensor dB = at::empty({p.n_groups, p.batch, p.length, p.d_state}, real);
  Tensor dC = at::empty_like(dB);
  p.du = sequence(du);
  p.ddelta = sequence(ddelta);
  if (present(dz)) p.dz = sequence(*dz);
  if (present(initial_state)) p.dinitial_state = state_view(dinitial);
  p.dA_partial = dA.mutable_data_ptr();
  p.dD_partial = p.D ? dD.mutable_data_ptr() : nullptr;
  p.ddelta_bias_partial = p.delta_bias ? dbias.mutable_data_ptr() : nullptr;
  p.dB_partial = dB.mutable_data_ptr();
  p.dC_partial = dC.mutable_data_ptr();

  const KernelTable& table = kernels_for(p.storage);
  for_units(p.batch * p.n_groups, p.length * p.d_state * p.group_channels / table.lanes,
            table.scan_backward_scratch(p), [&](int64_t begin, int64_t end, void* scratch) {
              table.scan_backward(p, begin, end, scratch);
            });
  dB_out.copy_(sum_parts(dB));
  dC_out.copy_(sum_parts(dC));
  return {sum_parts(dA).t().contiguous(), p.D ? sum_parts(dD) : absent_gradient(u),
          p.delta_bias ? sum_parts(dbias) : absent_gradient(u), dinitial};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_backward_cpu(const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u,
                            const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                            const OptionalTensor& D, const OptionalTensor& z,
                            const OptionalTensor& delta_bias, bool delta_softplus,
                            const OptionalTensor& mask, const OptionalTensor& segment_starts,
                            const OptionalTensor& initial_state, const Tensor& checkpoints,
                            int64_t checkpoint_every, const OptionalTensor& out) {
  const auto like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const Tensor du = like(u), ddelta = like(u), dB = like(B), dC = like(C);
  const OptionalTensor dz = present(z) ? OptionalTensor(like(u)) : std::nullopt;
  auto [dA, dD, ddelta_bias, dinitial] = selective_scan_backward_out_cpu(
      dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts,
      initial_state, checkpoints, checkpoint_every, out, du, ddelta, dB, dC, dz);
  return {du,          ddelta,  dA, dB, dC, dD, dz.has_value() ? *dz : absent_gradient(u),
          ddelta_bias, dinitial};
}

Tensor selective_state_update_cpu(Tensor& state, const Tensor& u, const Tensor& delta,
                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                  const OptionalTensor& D, const OptionalTensor& z,
                                  const OptionalTensor& delta_bias, bool delta_softplus) {
  constexpr const char* kOp = "selective_state_update";
  const auto one_token = [&](const char* name, const Tensor& t, const char* shape) {
    TORCH_CHECK(t.dim() == 2, kOp, ": ", name, " must be ", shape, ", got ", t.sizes());
    return t.unsqueeze(1);
  };
  const Tensor u1 = one_token("u", u, "(batch, d_inner)");
  const Tensor delta1 = one_token("delta", delta, "(batch, d_inner)");
  const Tensor B1 = one_token("B", B, "(batch, d_state)");
  const Tensor C1 = one_token("C", C, "(batch, d_state)");
  OptionalTensor z1;
  if (present(z)) z1 = one_token("z", *z, "(batch, d_inner)");
  check_selective_scan(kOp, u1, delta1, A, B1, C1, D, z1, delta_bias, {}, {}, state);
  check_written_in_place(kOp, "state", state);
  Inputs in;
  SelectiveScanForwardParams p{
      common_params(in, u1, delta1, A, B1, C1, D, z1, delta_bias, delta_softplus, {}, {}, state),
      {},
      {}};
  Tensor out = at::empty(u.sizes(), u.options());
  p.out = sequence(out.unsqueeze(1));
  p.last_state = state_view(state);
  run_forward(p);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, CPU, m) {
  m.impl("selective_scan", &selective_scan_cpu);
  m.impl("selective_scan_backward", &selective_scan_backward_cpu);
  m.impl("selective_scan_backward_out", &selective_scan_backward_out_cpu);
  m.impl("selective_state_update", &selective_state_update_cpu);
}

}  // namespace dmamba::ops::cpu
