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

constexpr LinearTile kLargeTile{128, 128}, kNarrowTile{128, 64}, kSmallTile{64, 64};

/// Tiles that cover an output.
constexpr int64_t tiles_of(LinearTile tile, int64_t rows, int64_t n) {
  return ((rows + tile.rows - 1) / tile.rows) * ((n + tile.columns - 1) / tile.columns);
}

/// About every multiprocessor of a large device has one.
constexpr int64_t kEnoughTiles = 100;

/// The large one where there are enough. From sizes alone, so that sums over rows have one order on
/// any device.
constexpr LinearTile linear_tile(int64_t rows, int64_t n) {
  return n > 64 && tiles_of(kLargeTile, rows, n) >= kEnoughTiles ? kLargeTile : kSmallTile;
}

/// The same of launch_hopper_linear.
constexpr LinearTile hopper_linear_tile(int64_t rows, int64_t n) {
  const LinearTile tile = linear_tile(rows, n);
  if (tile.columns == kLargeTile.columns) return tile;
  return tiles_of(kNarrowTile, rows, n) >= kEnoughTiles ? kNarrowTile : kSmallTile;
}

/// Whether launch_hopper_linear was measured to be faster than cuBLAS for products alone: of
/// weights up to 1024 x 256, in bfloat16 up to so many rows.
constexpr bool hopper_linear_pays(int64_t rows, int64_t n, int64_t k, Storage storage) {
  constexpr int64_t kLargestWeight = 1024 * 256, kMostRows = 8448;
  return n * k <= kLargestWeight && (storage == Storage::kFloat32 || rows <= kMostRows);
}

/// Blocks' sums that kSlope leaves.
constexpr int64_t linear_parts(int64_t rows, LinearTile tile) {
  return (rows + tile.rows - 1) / tile.rows;
}

}  // namespace dmamba::kernels
