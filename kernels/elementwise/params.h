// Parameters of the elementwise ops of the channel mixer. Free of torch and of CUDA.
#pragma once

#include <cmath>
#include <cstdint>

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

/// y = GELU(x + bias), and x becomes the slope GELU'(x + bias): x and y (rows, channels)
/// contiguous, bias (channels,) fp32 (fp64 with fp64 activations). Value and slope share the costly
/// parts, and the backward pass is left with one product.
struct BiasGeluParams {
  int64_t rows, channels;
  Storage storage;
  void* x;
  const void* bias;
  void* out;
};

/// dy *= slope, and the sum of the products over the rows: dy, slope (rows, channels) contiguous.
struct MultiplySumParams {
  int64_t rows, channels;
  Storage storage;
  void* dy;
  const void* slope;
  void* sum_partial;  // the CPU's: (ceil(rows / kRowsPerUnit), channels)
};

/// Rows that one unit of the two ops above covers.
constexpr int64_t kRowsPerUnit = 32;

/// round(p 2^32), at most 2^32 - 1.
inline uint32_t dropout_threshold(double p) {
  const double words = std::nearbyint(p * 4294967296.0);
  return static_cast<uint32_t>(words < 4294967295.0 ? words : 4294967295.0);
}

/// y = x / (1 - p) where a Philox word reaches p 2^32, else 0. Element e of a stretch of 64 takes
/// word e / 16 of the block whose counter is 16 stretch + e % 16, so that 16 lanes work side by
/// side.
struct DropoutParams {
  int64_t count;
  Storage storage;
  uint64_t key;
  uint32_t threshold;  // dropout_threshold(p)
  double scale;        // 1 / (1 - p)
  const void* x;
  void* out;
  int64_t first;  // number of x's first element in a mask that begins elsewhere: whole stretches
};

/// Elements of a stretch.
constexpr int64_t kDropoutStretch = 64;

/// Elements that one unit of these ops covers: whole stretches of the dropout.
constexpr int64_t kElementwiseUnit = 4096;

}  // namespace dmamba::kernels
