// GELU and dropout on the CPU.
#include <torch/library.h>

#include <cmath>

#include "src/ops/checks.h"
#include "src/ops/cpu/dispatch.h"
#include "src/ops/cpu/tensors.h"

namespace dmamba::ops::cpu {
namespace {

using at::Tensor;

/// Calls f(begin, end) over `count` elements in whole units.
template <class F>
void for_elements(int64_t count, const F& f) {
  constexpr int64_t kUnit = kernels::kElementwiseUnit;
  at::parallel_for(0, (count + kUnit - 1) / kUnit, 4, [&](int64_t begin, int64_t end) {
    f(begin * kUnit, std::min(end * kUnit, count));
  });
}

Tensor gelu_cpu(const Tensor& x) {
  check_activation("gelu", "x", x);
  const Tensor input = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  const kernels::GeluParams p{input.numel(), storage_of(input), input.const_data_ptr(), nullptr,
                              y.mutable_data_ptr()};
  const KernelTable& table = kernels_for(p.storage);
  for_elements(p.count, [&](int64_t begin, int64_t end) { table.gelu_forward(p, begin, end); });
  return y;
}

Tensor gelu_backward_cpu(const Tensor& dy, const Tensor& x) {
  check_activation("gelu_backward", "x", x);
  TORCH_CHECK(dy.sizes() == x.sizes() && dy.scalar_type() == x.scalar_type(),
              "gelu_backward: dy must be as x, ", x.sizes(), " ", x.scalar_type(), ", got ",
              dy.sizes(), " ", dy.scalar_type());
  const Tensor input = x.contiguous(), gradient = dy.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  const kernels::GeluParams p{input.numel(), storage_of(input), input.const_data_ptr(),
                              gradient.const_data_ptr(), dx.mutable_data_ptr()};
  const KernelTable& table = kernels_for(p.storage);
  for_elements(p.count, [&](int64_t begin, int64_t end) { table.gelu_backward(p, begin, end); });
  return dx;
}

/// Calls f(begin, end) over the units of the ops on rows.
template <class F>
void for_rows(int64_t rows, const F& f) {
  at::parallel_for(0, (rows + kernels::kRowsPerUnit - 1) / kernels::kRowsPerUnit, 1, f);
}

Tensor bias_gelu_cpu(const Tensor& x, const Tensor& bias) {
  check_bias_gelu("bias_gelu_", x, bias);
  const Tensor shift = bias.contiguous(), y = at::empty(x.sizes(), x.options());
  const kernels::BiasGeluParams p{
      x.size(0),           x.size(1), storage_of(x), x.mutable_data_ptr(), shift.const_data_ptr(),
      y.mutable_data_ptr()};
  const KernelTable& table = kernels_for(p.storage);
  for_rows(p.rows, [&](int64_t begin, int64_t end) { table.bias_gelu(p, begin, end); });
  return y;
}

Tensor multiply_sum_cpu(const Tensor& dy, const Tensor& slope) {
  check_multiply_sum("multiply_sum_", dy, slope);
  const int64_t units = (dy.size(0) + kernels::kRowsPerUnit - 1) / kernels::kRowsPerUnit;
  const Tensor sums =
      at::empty({units, dy.size(1)}, dy.options().dtype(parameter_dtype(dy.scalar_type())));
  const kernels::MultiplySumParams p{dy.size(0),
                                     dy.size(1),
                                     storage_of(dy),
                                     dy.mutable_data_ptr(),
                                     slope.const_data_ptr(),
                                     sums.mutable_data_ptr()};
  const KernelTable& table = kernels_for(p.storage);
  for_rows(p.rows, [&](int64_t begin, int64_t end) { table.multiply_sum(p, begin, end); });
  return sum_parts(sums);
}

Tensor dropout_cpu(const Tensor& x, double p, int64_t key, int64_t first) {
  check_activation("dropout", "x", x);
  check_dropout("dropout", p, first);
  const Tensor input = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  const kernels::DropoutParams params{input.numel(),
                                      storage_of(input),
                                      static_cast<uint64_t>(key),
                                      kernels::dropout_threshold(p),
                                      1.0 / (1.0 - p),
                                      input.const_data_ptr(),
                                      y.mutable_data_ptr(),
                                      first};
  const KernelTable& table = kernels_for(params.storage);
  for_elements(params.count,
               [&](int64_t begin, int64_t end) { table.dropout(params, begin, end); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmamba, CPU, m) {
  m.impl("gelu", &gelu_cpu);
  m.impl("gelu_backward", &gelu_backward_cpu);
  m.impl("bias_gelu_", &bias_gelu_cpu);
  m.impl("multiply_sum_", &multiply_sum_cpu);
  m.impl("dropout", &dropout_cpu);
}

}  // namespace dmamba::ops::cpu
