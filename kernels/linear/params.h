// Parameters of products of activations and a weight. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace dmamba::kernels {

/// What a launch computes; the first two are the channel mixer's, whose GELU becomes a part of the
/// products beside it:
///
///   kGelu            out = GELU(x w^T + bias) and slope = GELU'(x w^T + bias), for w (n, k)
///   kSlope           out = (x w) slope, and the sums of that over the rows, for w (k, n)
///   kProduct         out = x w^T, for w (n, k)
///   kProductByTerms  out = x w, for w (k, n)
enum class LinearKind { kGelu, kSlope, kProduct, kProductByTerms };

/// Whether a row of the weight is a term's.
constexpr bool weight_by_terms(LinearKind kind) {
  return kind == LinearKind::kSlope || kind == LinearKind::kProductByTerms;
}

/// Everything of `storage`, contiguous, on 16 bytes, rows a multiple of 16 bytes long; x's may lie
/// further apart. float32: factors are rounded to TF32. Sums, GELU and its slope are float32 until
/// they are stored.
struct LinearParams {
  int64_t rows;
  int n, k;
  Storage storage;
  const void* x;     // (rows, k)
  int64_t x_stride;  // elements from row to row
  const void* weight;
  const float* bias;  // (n,), on 16 bytes: kGelu
  void* out;          // (rows, n)
  void* slope;        // (rows, n): written by kGelu, read by kSlope
  float* parts;       // (parts, n): kSlope's sums, a part for each block's rows
};

/// A block's share of the output.
struct LinearTile {
  int rows, columns;
};

constexpr LinearTile kLargeTile{128, 128}, kSmallTile{64, 64};

/// The large one where it gives about every multiprocessor of a large device one. From sizes alone,
/// so that sums over rows have one order on any device.
constexpr LinearTile linear_tile(int64_t rows, int64_t n) {
  constexpr int64_t kEnough = 100;
  const int64_t blocks = ((rows + kLargeTile.rows - 1) / kLargeTile.rows) *
                         ((n + kLargeTile.columns - 1) / kLargeTile.columns);
  return n > 64 && blocks >= kEnough ? kLargeTile : kSmallTile;
}

/// The same of launch_hopper_linear.
constexpr LinearTile hopper_linear_tile(int64_t rows, int64_t n) {
  const LinearTile tile = linear_tile(rows, n);
  if (tile.rows == kLargeTile.rows) return tile;
  constexpr LinearTile kNarrowTile{128, 64};
  constexpr int64_t kEnough = 100;
  const int64_t blocks = (rows + 127) / 128 * ((n + 63) / 64);
  return blocks >= kEnough ? kNarrowTile : tile;
}

/// Whether launch_hopper_linear was measured to be faster than cuBLAS for products alone: in
/// bfloat16 of so many rows, in TF32 of all.
constexpr bool hopper_linear_pays(int64_t rows, Storage storage) {
  return storage == Storage::kFloat32 || rows <= 8448;
}

/// Blocks' sums that kSlope leaves.
constexpr int64_t linear_parts(int64_t rows, LinearTile tile) {
  return (rows + tile.rows - 1) / tile.rows;
}

}  // namespace dmamba::kernels
