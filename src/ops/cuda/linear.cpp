// Products of activations and a weight on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/common/alignment.h"
#include "kernels/elementwise/launch.h"
#include "kernels/linear/launch.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;
using kernels::LinearKind;
using kernels::LinearParams;

/// For the weight's n and without what is yet to be allocated.
LinearParams params_of(const Tensor& x, const Tensor& weight, int64_t n) {
  LinearParams p{};
  p.rows = x.size(0);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(x.size(1));
  p.storage = storage_of(x);
  p.x = x.const_data_ptr();
  p.x_stride = x.stride(0);
  p.weight = weight.const_data_ptr();
  return p;
}

/// Whether the kernels of Hopper's own instructions take what linear_fits().
bool on_hopper(const Tensor& x, const LinearParams& p) {
  return cuda::is_hopper(x.device()) && kernels::hopper_linear_fits(p);
}

}  // namespace

bool linear_fits(const Tensor& x, const Tensor& weight) {
  const int64_t n = weight.numel() / std::max<int64_t>(1, x.size(1));
  return x.is_cuda() && x.device() == weight.device() && x.scalar_type() == weight.scalar_type() &&
         cuda::products_are_rounded(x.scalar_type()) && x.numel() > 0 && weight.numel() > 0 &&
         x.stride(1) == 1 && x.stride(0) >= x.size(1) && weight.is_contiguous() &&
         kernels::linear_fits(params_of(x, weight, n)) &&
         cuda::architecture_of(x.device().index()) >= kernels::kLinearArchitecture;
}

std::tuple<Tensor, Tensor> linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  constexpr const char* kOp = "linear_gelu";
  TORCH_CHECK(weight.size(1) == x.size(1), kOp, ": weight must be (n, ", x.size(1), "), got ",
              weight.sizes());
  TORCH_CHECK(bias.sizes() == at::IntArrayRef({weight.size(0)}) && bias.device() == x.device(), kOp,
              ": bias must be (n,) = [", weight.size(0), "] on ", x.device(), ", got ",
              bias.sizes(), " on ", bias.device());
  Call call(kOp, x);
  LinearParams p = params_of(x, weight, weight.size(0));
  const Tensor value = at::empty({p.rows, p.n}, x.options()), slope = at::empty_like(value);
  Tensor shift = bias.contiguous();
  if (!kernels::aligned(shift.const_data_ptr(), 16)) shift = shift.clone();
  p.bias = shift.const_data_ptr<float>();
  p.out = value.mutable_data_ptr();
  p.slope = slope.mutable_data_ptr();
  call.check(on_hopper(x, p) ? kernels::launch_hopper_linear(p, LinearKind::kGelu, call.stream())
                             : kernels::launch_linear_gelu(p, call.stream()));
  return {value, slope};
}

std::tuple<Tensor, Tensor> linear_slope(const Tensor& x, const Tensor& weight,
                                        const Tensor& slope) {
  constexpr const char* kOp = "linear_slope";
  TORCH_CHECK(weight.size(0) == x.size(1), kOp, ": weight must be (", x.size(1), ", n), got ",
              weight.sizes());
  Call call(kOp, x);
  LinearParams p = params_of(x, weight, weight.size(1));
  const Tensor value = at::empty({p.rows, p.n}, x.options()),
               sums = at::empty({p.n}, x.options().dtype(at::kFloat));
  p.out = value.mutable_data_ptr();
  p.slope = slope.data_ptr();
  const bool hopper = on_hopper(x, p);
  const int64_t count =
      kernels::linear_parts(p.rows, hopper ? kernels::hopper_linear_tile(p.rows, p.n)
                                           : kernels::linear_tile(p.rows, p.n));
  p.parts = static_cast<float*>(call.scratch(static_cast<size_t>(count * p.n) * sizeof(float)));
  call.check(hopper ? kernels::launch_hopper_linear(p, LinearKind::kSlope, call.stream())
                    : kernels::launch_linear_slope(p, call.stream()));
  call.beside([&](cudaStream_t stream) {
    return kernels::launch_sum_parts(p.parts, sums.mutable_data_ptr<float>(), count, p.n, stream);
  });
  return {value, sums};
}

bool linear_product_fits(const Tensor& x, const Tensor& weight) {
  if (!linear_fits(x, weight)) return false;
  const LinearParams p = params_of(x, weight, weight.numel() / x.size(1));
  return kernels::hopper_linear_pays(p.rows, p.n, p.k, p.storage) && on_hopper(x, p);
}

Tensor linear_product(const Tensor& x, const Tensor& weight, Terms terms) {
  constexpr const char* kOp = "linear_product";
  const bool by_rows = terms == Terms::kRows;
  TORCH_CHECK(weight.size(by_rows ? 0 : 1) == x.size(1), kOp, ": weight must be ",
              by_rows ? "(k, n)" : "(n, k)", " with k = ", x.size(1), ", got ", weight.sizes());
  Call call(kOp, x);
  LinearParams p = params_of(x, weight, weight.size(by_rows ? 1 : 0));
  const Tensor value = at::empty({p.rows, p.n}, x.options());
  p.out = value.mutable_data_ptr();
  call.check(kernels::launch_hopper_linear(
      p, by_rows ? LinearKind::kProductByTerms : LinearKind::kProduct, call.stream()));
  return value;
}

}  // namespace dmamba::ops::cuda_only
