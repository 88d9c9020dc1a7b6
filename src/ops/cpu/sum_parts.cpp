// Adds the partial sums that units leave behind, always in the same order.
#include "src/ops/cpu/tensors.h"

namespace dmamba::ops::cpu {
namespace {

template <class R>
void add_rows(const R* parts, int64_t rows, int64_t columns, R* out) {
  at::parallel_for(0, columns, 4096, [&](int64_t begin, int64_t end) {
    std::copy(parts + begin, parts + end, out + begin);
    for (int64_t i = 1; i < rows; ++i) {
      const R* part = parts + i * columns;
      for (int64_t j = begin; j < end; ++j) out[j] += part[j];
    }
  });
}

}  // namespace

at::Tensor sum_parts(const at::Tensor& parts) {
  const int64_t rows = parts.size(0);
  if (rows == 1) return parts[0];
  at::Tensor out = at::zeros(parts.sizes().slice(1), parts.options());
  if (rows == 0 || out.numel() == 0) return out;
  if (parts.scalar_type() == at::kDouble) {
    add_rows(parts.const_data_ptr<double>(), rows, out.numel(), out.mutable_data_ptr<double>());
  } else {
    add_rows(parts.const_data_ptr<float>(), rows, out.numel(), out.mutable_data_ptr<float>());
  }
  return out;
}

}  // namespace dmamba::ops::cpu
