// Packs matrices into panels; the layout stands with ProductParams.
#include "src/ops/cpu/packed_matrix.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dmamba::ops::cpu {
namespace {

/// Calls put(row, column) for every place of the packed matrix, in order.
template <class F>
void for_places(int64_t rows, int64_t columns, int64_t lanes, int64_t together, const F& put) {
  for (int64_t panel = 0; panel < rows; panel += kPanelVectors * lanes) {
    const int64_t vectors = std::min(kPanelVectors, (rows - panel + lanes - 1) / lanes);
    for (int64_t k = 0; k < columns; k += together) {
      for (int64_t row = panel; row < panel + vectors * lanes; ++row) {
        for (int64_t j = 0; j < together; ++j) put(row, k + j);
      }
    }
  }
}

template <class T>
at::Tensor pack(const at::Tensor& weight, int64_t lanes, int64_t together) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const int64_t padded_rows = (rows + lanes - 1) / lanes * lanes;
  const int64_t padded_columns = (columns + together - 1) / together * together;
  at::Tensor packed = at::empty({padded_rows * padded_columns}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = packed.mutable_data_ptr<T>();
  for_places(rows, columns, lanes, together, [&](int64_t row, int64_t column) {
    *to++ = row < rows && column < columns ? from[row * columns + column] : T(0);
  });
  return packed;
}

}  // namespace

PackedMatrix::PackedMatrix(const at::Tensor& weight, const at::Tensor& bias,
                           kernels::Storage storage, const KernelTable& table)
    : rows_(weight.size(0)), columns_(weight.size(1)), storage_(storage) {
  packed_ = storage == kernels::Storage::kBFloat16
                ? pack<at::BFloat16>(weight.to(at::kBFloat16).contiguous(), table.lanes, 2)
                : pack<float>(weight.contiguous(), table.lanes, 1);
  if (bias.defined()) bias_ = bias.clone(at::MemoryFormat::Contiguous);
}

ProductParams PackedMatrix::params() const {
  ProductParams p{};
  p.rows = rows_;
  p.columns = columns_;
  p.weights = storage_;
  p.weight = packed_.const_data_ptr();
  p.bias = bias_.defined() ? bias_.const_data_ptr() : nullptr;
  return p;
}

}  // namespace dmamba::ops::cpu
