// Parameters of the elementwise ops of the channel mixer. Free of torch and of CUDA.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::kernels {

/// GELU(x) = x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415), exact; contiguous arrays of
/// `count`.
struct GeluParams {
  int64_t count;
  Storage storage;
  const void* x;
  const void* dy;  // backward only
  void* out;       // y forward, dx backward
};

/// y = x / (1 - p) where a Philox word reaches p 2^32, else 0. Element e of a stretch of 64 takes
/// word e / 16 of the block whose counter is 16 stretch + e % 16, so that 16 lanes work side by
/// side.
struct DropoutParams {
  int64_t count;
  Storage storage;
  uint64_t key;
  uint32_t threshold;  // round(p 2^32)
  double scale;        // 1 / (1 - p)
  const void* x;
  void* out;
};

/// Elements that one unit of these ops covers: whole stretches of the dropout.
constexpr int64_t kElementwiseUnit = 4096;

}  // namespace dmamba::kernels
