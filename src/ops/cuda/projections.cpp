// The products between the convolution and the scan on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/common/alignment.h"
#include "kernels/projections/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"
#include "src/ops/optional.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;

/// Rows of a type whose products are rounded, whatever lies between them, on 16 bytes, as one
/// sequence of tokens.
bool rows_as_kernels_read(const Tensor& x) {
  return x.is_cuda() && cuda::products_are_rounded(x.scalar_type()) && x.stride(2) == 1 &&
         x.stride(0) == x.size(1) * x.stride(1) &&
         x.stride(1) * static_cast<int64_t>(x.element_size()) % 16 == 0 &&
         kernels::aligned(x.const_data_ptr(), 16);
}

bool as_kernels_read(const Tensor& t, at::ScalarType type) {
  return t.is_cuda() && t.scalar_type() == type && t.is_contiguous() &&
         kernels::aligned(t.const_data_ptr(), 16);
}

bool device_takes(const Tensor& u, int64_t inner) {
  int bytes = 0;
  const int device = u.device().index();
  return cuda::architecture_of(device) >= kernels::kProjectionsArchitecture &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         bytes >= kernels::projections_shared_bytes(inner, storage_of(u));
}

template <class Params>
Params sized_params(const Tensor& activations, const Tensor& x_proj, const Tensor& dt_proj) {
  Params p{};
  p.inner = static_cast<int>(x_proj.size(1));
  p.rank = static_cast<int>(dt_proj.size(1));
  p.width = static_cast<int>(x_proj.size(0));
  p.rows = activations.numel() / p.inner;
  p.storage = storage_of(activations);
  p.x_proj = x_proj.const_data_ptr();
  p.dt_proj = dt_proj.const_data_ptr();
  return p;
}

/// For `activations` of x_proj's inner width, which are not empty.
bool matrices_fit(const Tensor& activations, const Tensor& x_proj, const Tensor& dt_proj) {
  const at::ScalarType type = activations.scalar_type();
  return activations.numel() > 0 && as_kernels_read(x_proj, type) &&
         as_kernels_read(dt_proj, type) &&
         kernels::projections_fit(activations.numel() / x_proj.size(1), x_proj.size(1),
                                  dt_proj.size(1), x_proj.size(0), storage_of(activations)) &&
         device_takes(activations, x_proj.size(1));
}

/// Without a convolution u is there.
Projections run_projections(const char* op, const kernels::ProjectionsConvolution& convolution,
                            const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj) {
  Call call(op, u);
  auto p = sized_params<kernels::ProjectionsParams>(u, x_proj, dt_proj);
  Projections out{at::empty({u.size(0), u.size(1), p.width}, u.options()),
                  at::empty(u.sizes(), u.options())};
  p.u = u.data_ptr();
  p.projected = out.projected.mutable_data_ptr();
  p.delta = out.delta.mutable_data_ptr();
  p.convolution = convolution;
  call.check(kernels::launch_projections(p, call.stream()));
  return out;
}

}  // namespace

bool projections_fit(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj) {
  return cuda::products_are_rounded(u.scalar_type()) && as_kernels_read(u, u.scalar_type()) &&
         matrices_fit(u, x_proj, dt_proj);
}

Projections projections(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj) {
  return run_projections("projections", {}, u, x_proj, dt_proj);
}

bool convolved_projections_fit(const Convolution& convolution, const Tensor& x_proj,
                               const Tensor& dt_proj) {
  const Tensor &x = convolution.x, &weight = convolution.weight;
  return rows_as_kernels_read(x) && x.size(2) == x_proj.size(1) && weight.size(1) == 4 &&
         weight.scalar_type() == at::kFloat && weight.is_contiguous() &&
         kernels::aligned(weight.const_data_ptr(), 16) && matrices_fit(x, x_proj, dt_proj);
}

ConvolvedProjections convolved_projections(const Convolution& convolution, const Tensor& x_proj,
                                           const Tensor& dt_proj) {
  constexpr const char* kOp = "convolved_projections";
  const Convolution& c = convolution;
  check_causal_conv1d(kOp, c.x, c.weight, or_absent(c.bias), or_absent(c.mask),
                      or_absent(c.segment_starts), {});
  cuda::Inputs views;
  const kernels::ProjectionsConvolution inputs{
      c.x.const_data_ptr(),           c.x.stride(1),
      c.weight.const_data_ptr(),      views.vector(or_absent(c.bias)),
      views.flags(or_absent(c.mask)), views.flags(or_absent(c.segment_starts)),
      static_cast<int>(c.x.size(1))};
  const Tensor u = at::empty(c.x.sizes(), c.x.options());
  return {u, run_projections(kOp, inputs, u, x_proj, dt_proj)};
}

void projections_backward(const Tensor& ddelta, const Tensor& parts, const Tensor& dprojected,
                          const Tensor& du, const Tensor& x_proj, const Tensor& dt_proj) {
  Call call("projections_backward", ddelta);
  auto p = sized_params<kernels::ProjectionsBackwardParams>(ddelta, x_proj, dt_proj);
  p.ddelta = ddelta.const_data_ptr();
  p.dprojected = dprojected.mutable_data_ptr();
  p.du = du.mutable_data_ptr();
  if (parts.defined()) {
    p.parts = parts.const_data_ptr<float>();
    p.n_parts = static_cast<int>(parts.size(0));
  }
  call.check(kernels::launch_projections_backward(p, call.stream()));
}

}  // namespace dmamba::ops::cuda_only
