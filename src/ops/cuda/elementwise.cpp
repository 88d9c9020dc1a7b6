// The channel mixer's elementwise ops on CUDA: GELU, alone and with its bias, the product with its
// slope, dropout.
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "kernels/elementwise/launch.h"
#include "src/ops/cuda/tensors.h"

namespace dmamba::ops::cuda {
namespace {

using at::Tensor;

Tensor gelu_cuda(const Tensor& x) {
  constexpr const char* kOp = "gelu";
  check_cuda_storage(kOp, "x", x);
  Call call(kOp, x);
  const Tensor input = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  call.check(kernels::launch_gelu_forward(
      {input.numel(), storage_of(input), input.const_data_ptr(), nullptr, y.mutable_data_ptr()},
      call.stream()));
  return y;
}

Tensor gelu_backward_cuda(const Tensor& dy, const Tensor& x) {
  constexpr const char* kOp = "gelu_backward";
  check_cuda_storage(kOp, "x", x);
  check_gradient(kOp, "dy", dy, x, "x");
  Call call(kOp, x);
  const Tensor input = x.contiguous(), gradient = dy.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  call.check(
      kernels::launch_gelu_backward({input.numel(), storage_of(input), input.const_data_ptr(),
                                     gradient.const_data_ptr(), dx.mutable_data_ptr()},
                                    call.stream()));
  return dx;
}

Tensor bias_gelu_cuda(const Tensor& x, const Tensor& bias) {
  constexpr const char* kOp = "bias_gelu_";
  check_bias_gelu(kOp, x, bias);
  check_cuda_storage(kOp, "x", x);
  Call call(kOp, x);
  const Tensor shift = bias.contiguous(), y = at::empty(x.sizes(), x.options());
  call.check(kernels::launch_bias_gelu({x.size(0), x.size(1), storage_of(x), x.mutable_data_ptr(),
                                        shift.const_data_ptr(), y.mutable_data_ptr()},
                                       call.stream()));
  return y;
}

Tensor multiply_sum_cuda(const Tensor& dy, const Tensor& slope) {
  constexpr const char* kOp = "multiply_sum_";
  check_multiply_sum(kOp, dy, slope);
  check_cuda_storage(kOp, "dy", dy);
  Call call(kOp, dy);
  const Tensor sums = at::empty({dy.size(1)}, dy.options().dtype(at::kFloat));
  const kernels::MultiplySumParams p{dy.size(0),
                                     dy.size(1),
                                     storage_of(dy),
                                     dy.mutable_data_ptr(),
                                     slope.const_data_ptr(),
                                     /*sum_partial=*/nullptr};
  const int64_t count = kernels::multiply_sum_parts(p);
  auto* parts =
      static_cast<float*>(call.scratch(static_cast<size_t>(count * p.channels) * sizeof(float)));
  call.check(kernels::launch_multiply_sum(p, parts, call.stream()));
  call.beside([&](cudaStream_t stream) {
    return kernels::launch_sum_parts(parts, sums.mutable_data_ptr<float>(), count, p.channels,
                                     stream);
  });
  return sums;
}

Tensor dropout_cuda(const Tensor& x, double p, int64_t key, int64_t first) {
  constexpr const char* kOp = "dropout";
  check_cuda_storage(kOp, "x", x);
  check_dropout(kOp, p, first);
  Call call(kOp, x);
  const Tensor input = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  call.check(kernels::launch_dropout(
      {input.numel(), storage_of(input), static_cast<uint64_t>(key), kernels::dropout_threshold(p),
       1.0 / (1.0 - p), input.const_data_ptr(), y.mutable_data_ptr(), first},
      /*device_key=*/nullptr, call.stream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, CUDA, m) {
  m.impl("gelu", &gelu_cuda);
  m.impl("gelu_backward", &gelu_backward_cuda);
  m.impl("bias_gelu_", &bias_gelu_cuda);
  m.impl("multiply_sum_", &multiply_sum_cuda);
  m.impl("dropout", &dropout_cuda);
}

}  // namespace dmamba::ops::cuda
