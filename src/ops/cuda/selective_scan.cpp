// The selective scan on CUDA: tensors to parameters, a plan and scratch, a launch.
#include <torch/library.h>

#include "src/ops/checkpoints.h"
#include "src/ops/cuda/scan.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"
#include "src/ops/optional.h"

namespace dmamba::ops::cuda {
namespace {

using at::Tensor;
using kernels::SelectiveScanBackwardParams;
using kernels::SelectiveScanForwardParams;
using kernels::SelectiveScanParams;

static_assert(kCudaCheckpointEvery == kernels::kScanCheckpointEvery);
static_assert(kernels::kScanMaxStates == 128);  // cuda_checkpoint_type

void check_inputs(const char* op, const ScanInputs& in) {
  check_selective_scan(op, in.u, in.delta, in.A, in.B, in.C, in.D, in.z, in.delta_bias, in.mask,
                       in.segment_starts, in.initial_state);
  check_cuda_storage(op, "u", in.u);
}

SelectiveScanParams common_params(Inputs& views, const ScanInputs& in) {
  SelectiveScanParams p{};
  p.batch = in.u.size(0);
  p.length = in.u.size(1);
  p.d_inner = in.u.size(2);
  p.d_state = in.d_state();
  p.storage = storage_of(in.u);
  p.delta_softplus = in.delta_softplus;
  p.u = views.rows(in.u);
  p.delta = views.rows(in.delta);
  p.z = views.rows(in.z);
  p.B = views.rows(in.B);
  p.C = views.rows(in.C);
  p.A = in.A.const_data_ptr();
  p.A_channel_stride = in.A.stride(0);
  p.A_state_stride = in.A.stride(1);
  p.D = views.vector(in.D);
  p.delta_bias = views.vector(in.delta_bias);
  p.mask = views.flags(in.mask);
  p.segment_starts = views.flags(in.segment_starts);
  p.initial_state = Inputs::state(in.initial_state);
  return p;
}

float* floats_or_null(const Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}

SelectiveScanBackwardParams backward_params(Inputs& views, const ScanInputs& in, const Tensor& dout,
                                            const OptionalTensor& dlast_state, const ScanKept& kept,
                                            const ScanGradients& gradients) {
  SelectiveScanBackwardParams p{};
  static_cast<SelectiveScanParams&>(p) = common_params(views, in);
  p.checkpoint_every = kept.checkpoint_every;
  p.checkpoints = kept.checkpoints.data_ptr();
  p.dout = views.rows(dout);
  if (present(in.z)) p.out = views.rows(kept.out);
  p.dlast_state = Inputs::state(dlast_state);
  p.du = sequence(gradients.du);
  p.ddelta = sequence(gradients.ddelta);
  if (gradients.dz.defined()) p.dz = sequence(gradients.dz);
  p.dinitial_state = Inputs::state(gradients.dinitial_state);
  return p;
}

kernels::SelectiveScanGradients sums_of(const ScanGradients& gradients) {
  return {floats_or_null(gradients.dA), sequence(gradients.dB), sequence(gradients.dC),
          floats_or_null(gradients.dD), floats_or_null(gradients.ddelta_bias)};
}

void check_backward_inputs(const char* op, const ScanInputs& in, const Tensor& dout,
                           const OptionalTensor& dlast_state, const ScanKept& kept) {
  check_inputs(op, in);
  check_gradient(op, "dout", dout, in.u, "u");
  check_state_gradient(op, dlast_state, in.u, in.d_state());
  const auto& [checkpoints, every, out] = kept;
  TORCH_CHECK(every == kCudaCheckpointEvery, op, ": checkpoint_every must be 8 on CUDA, got ",
              every);
  TORCH_CHECK(
      checkpoints.numel() == checkpoint_numel(in, in.d_state(), every) &&
          checkpoints.scalar_type() == cuda_checkpoint_type(in.u.scalar_type(), in.d_state()) &&
          checkpoints.is_contiguous() && checkpoints.device() == in.u.device(),
      op, ": checkpoints must be those of the forward pass with checkpoint_every = ", every,
      ", got ", checkpoints.sizes());
  const bool reads_out = present(in.z) && backward_reads_out(in.u, in.d_state());
  TORCH_CHECK(!reads_out || present(out), op,
              ": out, the forward pass's, must be given on CUDA where z is");
  if (reads_out) check_gradient(op, "out", *out, in.u, "u");
}

void any_scan_backward(const char* op, const ScanInputs& in, const Tensor& dout,
                       const OptionalTensor& dlast_state, const ScanKept& kept,
                       const ScanGradients& gradients) {
  const bool wide = in.d_state() > kernels::kScanMaxStates;
  (wide ? wide_scan_backward : scan_backward)(op, in, dout, dlast_state, kept, gradients);
}

void any_scan_forward(const char* op, const ScanInputs& in, const ScanOutputs& out,
                      int64_t checkpoint_every) {
  const bool wide = in.d_state() > kernels::kScanMaxStates;
  (wide ? wide_scan_forward : scan_forward)(op, in, out, checkpoint_every);
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_cuda(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& delta_bias,
    bool delta_softplus, const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, int64_t checkpoint_every) {
  constexpr const char* kOp = "selective_scan";
  const ScanInputs in{
      u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state};
  check_inputs(kOp, in);
  TORCH_CHECK(checkpoint_every == 0 || checkpoint_every == kCudaCheckpointEvery, kOp,
              ": checkpoint_every must be 0 or 8 on CUDA, got ", checkpoint_every);
  const int64_t n_checkpoints = checkpoint_every > 0 ? (u.size(1) - 1) / checkpoint_every : 0;
  ScanOutputs out{
      at::empty(u.sizes(), u.options()), empty_state(u, u.size(0), u.size(2), A.size(1)), {}};
  out.checkpoints = at::empty({u.size(0), n_checkpoints, A.size(1), u.size(2)},
                              u.options().dtype(cuda_checkpoint_type(u.scalar_type(), A.size(1))));
  any_scan_forward(kOp, in, out, checkpoint_every);
  return {out.out, out.last_state, out.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_backward_cuda(const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u,
                             const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& z,
                             const OptionalTensor& delta_bias, bool delta_softplus,
                             const OptionalTensor& mask, const OptionalTensor& segment_starts,
                             const OptionalTensor& initial_state, const Tensor& checkpoints,
                             int64_t checkpoint_every, const OptionalTensor& out) {
  constexpr const char* kOp = "selective_scan_backward";
  const ScanInputs in{
      u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state};
  const ScanKept kept{checkpoints, checkpoint_every, out};
  check_backward_inputs(kOp, in, dout, dlast_state, kept);
  const auto contiguous_like = [](const OptionalTensor& t) {
    return present(t) ? at::empty(t->sizes(), t->options()) : Tensor();
  };
  const ScanGradients g{
      contiguous_like(u),
      contiguous_like(delta),
      contiguous_like(A),
      contiguous_like(B),
      contiguous_like(C),
      contiguous_like(D),
      contiguous_like(z),
      contiguous_like(delta_bias),
      present(initial_state) ? empty_state(u, u.size(0), u.size(2), A.size(1)) : Tensor()};
  any_scan_backward(kOp, in, dout, dlast_state, kept, g);
  return {g.du,
          g.ddelta,
          g.dA,
          g.dB,
          g.dC,
          or_absent_gradient(g.dD, u),
          or_absent_gradient(g.dz, u),
          or_absent_gradient(g.ddelta_bias, u),
          or_absent_gradient(g.dinitial_state, u)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> selective_scan_backward_out_cuda(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
    const OptionalTensor& z, const OptionalTensor& delta_bias, bool delta_softplus,
    const OptionalTensor& mask, const OptionalTensor& segment_starts,
    const OptionalTensor& initial_state, const Tensor& checkpoints, int64_t checkpoint_every,
    const OptionalTensor& out, const Tensor& du, const Tensor& ddelta, const Tensor& dB,
    const Tensor& dC, const OptionalTensor& dz) {
  constexpr const char* kOp = "selective_scan_backward_out";
  const ScanInputs in{
      u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state};
  const ScanKept kept{checkpoints, checkpoint_every, out};
  check_backward_inputs(kOp, in, dout, dlast_state, kept);
  ops::check_gradient(kOp, "du", du, u);
  ops::check_gradient(kOp, "ddelta", ddelta, u);
  ops::check_gradient(kOp, "dB", dB, B);
  ops::check_gradient(kOp, "dC", dC, C);
  TORCH_CHECK(present(z) == present(dz), kOp, ": dz must be given exactly where z is");
  if (present(dz)) ops::check_gradient(kOp, "dz", *dz, u);
  const auto contiguous_like = [](const OptionalTensor& t) {
    return present(t) ? at::empty(t->sizes(), t->options()) : Tensor();
  };
  ScanGradients g{
      du,
      ddelta,
      contiguous_like(A),
      dB,
      dC,
      contiguous_like(D),
      present(dz) ? *dz : Tensor(),
      contiguous_like(delta_bias),
      present(initial_state) ? empty_state(u, u.size(0), u.size(2), A.size(1)) : Tensor()};
  any_scan_backward(kOp, in, dout, dlast_state, kept, g);
  return {g.dA, or_absent_gradient(g.dD, u), or_absent_gradient(g.ddelta_bias, u),
          or_absent_gradient(g.dinitial_state, u)};
}

Tensor selective_state_update_cuda(Tensor& state, const Tensor& u, const Tensor& delta,
                                   const Tensor& A, const Tensor& B, const Tensor& C,
                                   const OptionalTensor& D, const OptionalTensor& z,
                                   const OptionalTensor& delta_bias, bool delta_softplus) {
  constexpr const char* kOp = "selective_state_update";
  const auto one_token = [&](const char* name, const Tensor& t, const char* shape) {
    TORCH_CHECK(t.dim() == 2, kOp, ": ", name, " must be ", shape, ", got ", t.sizes());
    return t.unsqueeze(1);
  };
  OptionalTensor z1;
  if (present(z)) z1 = one_token("z", *z, "(batch, d_inner)");
  const ScanInputs in{one_token("u", u, "(batch, d_inner)"),
                      one_token("delta", delta, "(batch, d_inner)"),
                      A,
                      one_token("B", B, "(batch, d_state)"),
                      one_token("C", C, "(batch, d_state)"),
                      D,
                      z1,
                      delta_bias,
                      delta_softplus,
                      {},
                      {},
                      state};
  check_inputs(kOp, in);
  check_written_in_place(kOp, "state", state);
  Tensor out = at::empty(u.sizes(), u.options());
  any_scan_forward(kOp, in, {out.unsqueeze(1), state, {}}, /*checkpoint_every=*/0);
  return out;
}

}  // namespace

void scan_forward(const char* op, const ScanInputs& in, const ScanOutputs& out,
                  int64_t checkpoint_every) {
  if (in.u.numel() == 0) return;
  Call call(op, in.u);
  Inputs views;
  SelectiveScanForwardParams p{common_params(views, in), sequence(out.out),
                               state_view(out.last_state)};
  p.checkpoint_every = checkpoint_every;
  p.checkpoints = checkpoint_every > 0 ? out.checkpoints.mutable_data_ptr() : nullptr;
  const kernels::SelectiveScanPlan plan = scan_plan(p, call.multiprocessors());
  void* scratch = call.scratch(kernels::selective_scan_forward_workspace(p, plan));
  call.check(kernels::launch_selective_scan_forward(p, plan, scratch, call.stream()));
}

void scan_backward(const char* op, const ScanInputs& in, const Tensor& dout,
                   const OptionalTensor& dlast_state, const ScanKept& kept,
                   const ScanGradients& gradients) {
  if (in.u.numel() == 0) {
    // Sums over nothing; the other gradients have no elements.
    for (const Tensor& sum :
         {gradients.dA, gradients.dB, gradients.dC, gradients.dD, gradients.ddelta_bias}) {
      if (sum.defined()) sum.zero_();
    }
    return;
  }
  Call call(op, in.u);
  Inputs views;
  const SelectiveScanBackwardParams p =
      backward_params(views, in, dout, dlast_state, kept, gradients);
  const kernels::SelectiveScanPlan plan = scan_plan(p, call.multiprocessors());
  void* scratch = call.scratch(kernels::selective_scan_backward_workspace(p, plan));
  call.check(
      kernels::launch_selective_scan_backward(p, sums_of(gradients), plan, scratch, call.stream()));
}

TORCH_LIBRARY_IMPL(dmamba, CUDA, m) {
  m.impl("selective_scan", &selective_scan_cuda);
  m.impl("selective_scan_backward", &selective_scan_backward_cuda);
  m.impl("selective_scan_backward_out", &selective_scan_backward_out_cuda);
  m.impl("selective_state_update", &selective_state_update_cuda);
}

}  // namespace dmamba::ops::cuda

namespace dmamba::ops::cuda_only {

ScanSums scan_backward(const ScanBackward& scan) {
  const cuda::ScanInputs in{scan.u,
                            scan.delta,
                            scan.A,
                            scan.B,
                            scan.C,
                            scan.D,
                            scan.z,
                            scan.delta_bias,
                            /*delta_softplus=*/true,
                            or_absent(scan.mask),
                            or_absent(scan.segment_starts),
                            {}};
  constexpr const char* kOp = "scan_backward";
  const cuda::ScanKept kept{scan.checkpoints, kCudaCheckpointEvery, scan.y};
  cuda::check_backward_inputs(kOp, in, scan.dy, {}, kept);
  const auto like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const cuda::ScanGradients gradients{scan.du, scan.ddelta,  like(scan.A), scan.dB,
                                      scan.dC, like(scan.D), scan.dz,      like(scan.delta_bias),
                                      {}};
  cuda::Call call(kOp, scan.u);
  cuda::Inputs views;
  const auto p = cuda::backward_params(views, in, scan.dy, {}, kept, gradients);
  const kernels::SelectiveScanGradients sums = cuda::sums_of(gradients);
  const kernels::SelectiveScanPlan plan = cuda::scan_plan(p, call.multiprocessors());
  auto* scratch =
      static_cast<char*>(call.scratch(kernels::selective_scan_backward_workspace(p, plan)));
  call.check(kernels::launch_selective_scan_backward_parts(p, sums, plan, scratch, call.stream()));
  ScanSums out{gradients.dA, gradients.dD, gradients.ddelta_bias, {}, {}};
  out.add_up = [p, sums, plan, memory = call.scratch_memory()] {
    cuda::Call later(kOp, memory);
    later.keep_scratch(memory);
    later.beside([&](cudaStream_t stream) {
      return kernels::launch_selective_scan_backward_sums(p, sums, plan, memory.mutable_data_ptr(),
                                                          stream);
    });
  };
  const auto parts = kernels::selective_scan_channel_parts(p, plan, scratch);
  if (parts.data != nullptr) {
    const int64_t first = reinterpret_cast<char*>(parts.data) - scratch;
    const std::array<int64_t, 4> sizes{parts.blocks, p.batch, p.length, 2 * p.d_state};
    out.parts = call.scratch_memory()
                    .narrow(0, first, 4 * parts.blocks * p.batch * p.length * 2 * p.d_state)
                    .view(at::kFloat)
                    .view(sizes);
  }
  return out;
}

}  // namespace dmamba::ops::cuda_only
