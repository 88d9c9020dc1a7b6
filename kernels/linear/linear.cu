// Products of activations and a weight on the tensor cores, with the GELU that follows or its
// slope.
//
// A block has a tile of the output, and walks along the terms in pieces, the next ones on their way
// meanwhile. The sums then go through shared memory to threads that end them.
//
//   128 x 128    3 pieces of both factors, 96 KiB (99 for float32 by terms)
//   64 x 64      4, 64 (68) KiB; where there are few large tiles
//
// What bounds it is L2, from which 128 rows and columns are read for every tile: at 19200 x 512 x
// 128 in bfloat16 77 MB with what is written, 14 us, where memory would take 11.
#include <limits>

#include "kernels/common/alignment.h"
#include "kernels/common/launch.cuh"
#include "kernels/linear/ending.cuh"
#include "kernels/linear/launch.h"

namespace dmamba::kernels {
namespace {

using namespace linear;

template <class Tile, LinearKind kKind>
__global__ void __launch_bounds__(kThreads, 2)
    linear_kernel(const __grid_constant__ LinearParams p, int across) {
  fetch_early(p.weight, static_cast<int64_t>(sizeof(typename Tile::Number)) * p.n * p.k);
  wait_for_stream();
  auto& memory = *dynamic_shared<typename Tile::Memory>();
  const int tile = static_cast<int>(blockIdx.x);
  const int64_t first_row = int64_t{tile / across} * Tile::kRows;
  const int first_column = tile % across * Tile::kColumns;
  const Warp<Tile> at;
  const Pieces<Tile> pieces(p, first_row, first_column);
  const int steps = (p.k + Tile::kTerms - 1) / Tile::kTerms;
  const auto send = [&](int step) {
    if (step < steps) pieces.send(memory.stages[step % Tile::kStages], step * Tile::kTerms);
    commit_copies();
  };
  Sums<Tile> sums = {};
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) send(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<Tile::kStages - 2>();
    __syncthreads();  // the piece is there for all, and the one before is used up
    send(step + Tile::kStages - 1);
    multiply<Tile>(memory.stages[step % Tile::kStages], at, sums);
  }
  __syncthreads();  // the sums take the pieces' place
  leave_sums<Tile::kColumns>(memory.sums, at.row, at.column, sums);
  end_tile<Tile, kKind>(memory.sums, {p, first_row, first_column});
}

template <class T, LinearKind kKind>
cudaError_t launch_stored(const LinearParams& p, cudaStream_t stream) {
  const auto launch = [&]<class Tile>(Tile) {
    const int64_t across = (p.n + Tile::kColumns - 1) / Tile::kColumns;
    const int64_t tiles = tiles_of({Tile::kRows, Tile::kColumns}, p.rows, p.n);
    if (tiles > std::numeric_limits<int>::max()) return cudaErrorInvalidValue;
    return launch_early(linear_kernel<Tile, kKind>, static_cast<unsigned>(tiles), kThreads,
                        sizeof(typename Tile::Memory), stream, p, static_cast<int>(across));
  };
  return linear_tile(p.rows, p.n).rows == kLargeTile.rows
             ? launch(Tile<T, kLargeTile.rows, kLargeTile.columns, weight_by_terms(kKind)>{})
             : launch(Tile<T, kSmallTile.rows, kSmallTile.columns, weight_by_terms(kKind)>{});
}

template <LinearKind kKind>
cudaError_t launch_any(const LinearParams& p, cudaStream_t stream) {
  if (!linear_fits(p)) return cudaErrorInvalidValue;
  if (p.rows == 0 || p.n == 0) return cudaSuccess;
  return p.storage == Storage::kBFloat16 ? launch_stored<bfloat16, kKind>(p, stream)
                                         : launch_stored<float, kKind>(p, stream);
}

}  // namespace

bool linear_fits(const LinearParams& p) {
  if (p.storage == Storage::kFloat64) return false;
  const int64_t pack = kPackBytes / storage_bytes(p.storage);
  return p.n % pack == 0 && p.k % pack == 0 && p.x_stride % pack == 0 && aligned(p.x, kPackBytes) &&
         aligned(p.weight, kPackBytes) && aligned(p.bias, kPackBytes) &&
         aligned(p.out, kPackBytes) && aligned(p.slope, kPackBytes);
}

cudaError_t launch_linear_gelu(const LinearParams& p, cudaStream_t stream) {
  return launch_any<LinearKind::kGelu>(p, stream);
}

cudaError_t launch_linear_slope(const LinearParams& p, cudaStream_t stream) {
  return launch_any<LinearKind::kSlope>(p, stream);
}

}  // namespace dmamba::kernels
