// A matrix laid out for ProductParams, in the order in which one instruction set reads it.
#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/cpu/dispatch.h"

namespace dmamba::ops::cpu {

class PackedMatrix {
 public:
  PackedMatrix() = default;

  /// Copies weight (rows, columns) and bias (rows,) or an undefined tensor, both float32 on the
  /// CPU, the weight rounded to bfloat16 if that is asked for. `table` is the kernels' that will
  /// read it.
  PackedMatrix(const at::Tensor& weight, const at::Tensor& bias, kernels::Storage storage,
               const KernelTable& table);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  /// What the product kernel needs to know of the matrix.
  ProductParams params() const;

 private:
  int64_t rows_ = 0, columns_ = 0;
  kernels::Storage storage_ = kernels::Storage::kFloat32;
  at::Tensor packed_, bias_;
};

}  // namespace dmamba::ops::cpu
