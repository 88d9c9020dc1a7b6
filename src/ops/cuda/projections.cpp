// The products between the convolution and the scan on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/common/alignment.h"
#include "kernels/projections/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;

bool as_kernels_read(const Tensor& t) {
  return t.is_cuda() && t.scalar_type() == at::kBFloat16 && t.is_contiguous() &&
         kernels::aligned(t.const_data_ptr(), 16);
}

bool device_takes(const Tensor& u, int64_t inner) {
  int bytes = 0;
  const int device = u.device().index();
  return cuda::architecture_of(device) >= kernels::kProjectionsArchitecture &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         bytes >= kernels::projections_shared_bytes(inner);
}

template <class Params>
Params sized_params(const Tensor& activations, const Tensor& x_proj, const Tensor& dt_proj) {
  Params p{};
  p.inner = static_cast<int>(x_proj.size(1));
  p.rank = static_cast<int>(dt_proj.size(1));
  p.width = static_cast<int>(x_proj.size(0));
  p.rows = activations.numel() / p.inner;
  p.x_proj = x_proj.const_data_ptr();
  p.dt_proj = dt_proj.const_data_ptr();
  return p;
}

}  // namespace

bool projections_fit(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj) {
  return as_kernels_read(u) && as_kernels_read(x_proj) && as_kernels_read(dt_proj) &&
         kernels::projections_fit(u.numel() / x_proj.size(1), x_proj.size(1), dt_proj.size(1),
                                  x_proj.size(0)) &&
         device_takes(u, x_proj.size(1));
}

Projections projections(const Tensor& u, const Tensor& x_proj, const Tensor& dt_proj) {
  Call call("projections", u);
  auto p = sized_params<kernels::ProjectionsParams>(u, x_proj, dt_proj);
  Projections out{at::empty({u.size(0), u.size(1), p.width}, u.options()),
                  at::empty(u.sizes(), u.options())};
  p.u = u.const_data_ptr();
  p.projected = out.projected.mutable_data_ptr();
  p.delta = out.delta.mutable_data_ptr();
  call.check(kernels::launch_projections(p, call.stream()));
  return out;
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
