// Parameters of the products beside a GELU. Free of torch and of CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/types.h"

namespace dmamba::kernels {

/// The products beside the channel mixer's GELU, which becomes a part of them:
///
///   gelu    out = GELU(x w^T + bias) and slope = GELU'(x w^T + bias), for w (n, k)
///   slope   out = (x w) slope, and the sums of that over the rows, for w (k, n)
///
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
  const float* bias;  // (n,), on 16 bytes: gelu
  void* out;          // (rows, n)
  void* slope;        // (rows, n): written by gelu, read by slope
  float* parts;       // (linear_parts(rows, n), n): the sums of slope, a part for each block's rows
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

/// Blocks' sums that slope leaves.
constexpr int64_t linear_parts(int64_t rows, int64_t n) {
  const int64_t tile = linear_tile(rows, n).rows;
  return (rows + tile - 1) / tile;
}

}  // namespace dmamba::kernels
