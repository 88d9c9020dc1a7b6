// What both directions of the token chain share: weights in flight, products, rows.
//
// A block takes kRows tokens through all of the chain, eight warps. The weights pass through shared
// memory in slots of 128 x 128 numbers, each asked for some products before it is needed, by one
// thread (tensor_map.cuh); with a slot may come 128 columns of the block's rows of another matrix.
// A product is one of tensor cores from shared memory to registers (wgmma.cuh), and the other way
// round than it is written: (outputs, tokens) = weights (outputs, terms) x activations (terms,
// tokens), since the hardware wants 64 rows of the first matrix and as few columns as there are
// tokens. Each of the two warpgroups has 64 of a slot's outputs. Results go back to shared memory
// by stmatrix, which turns them, so that a token's numbers lie side by side again, and from there
// to global memory as whole panels.
//
// Between the products a warp has whole rows (kernels/normalization/row.cuh).
#pragma once

#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/common/tensor_map.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/elementwise/params.h"
#include "kernels/normalization/row.cuh"
#include "kernels/token_chain/params.h"

namespace dmamba::kernels::chain {

constexpr int kWidth = kChainWidth, kChunk = kChainChunk, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = kChainRows, kRowsOfWarp = kRows / kWarps, kSlots = 3;
constexpr int kPack = 8;  // numbers of 16 bytes
static_assert(kChunk == kWidth && kChunk == 2 * kPanelColumns);

/// Bytes of a matrix of kCount rows and 128 columns.
template <int kCount>
constexpr uint32_t kTileBytes = 2 * kCount * kChunk;

struct Memory {
  alignas(1024) unsigned char slots[kSlots][kTileBytes<kChunk>];
  unsigned char terms[kSlots][kTileBytes<kRows>];  // what came with the slots
  unsigned char tile[kTileBytes<kRows>];           // what the next product takes
  union {
    unsigned char hidden[2][kTileBytes<kRows>];
    float products[kRows * kWidth];
    float warp_columns[kWarps * kWidth];
  };
  alignas(8) uint64_t arrived[kSlots];
};

/// Where a pack lies, in bytes, in a matrix of kRows rows.
__device__ __forceinline__ uint32_t pack_at(int row, int pack) {
  return pack / 8 * (kRows * 128) + row * 128 + ((pack % 8) ^ (row & 7)) * 16;
}

/// The block's place, and the thread's in it.
struct Place {
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int64_t first_row = int64_t{blockIdx.x} * kRows;
  int rows;  // of the block that exist

  explicit __device__ __forceinline__ Place(int64_t all)
      : rows(static_cast<int>(min(int64_t{kRows}, all - int64_t{blockIdx.x} * kRows))) {}
  /// The warp's first output of a slot's 128, and the lane's (another is the eighth after).
  __device__ __forceinline__ int outputs() const { return warp * 16; }
  __device__ __forceinline__ int output() const { return warp * 16 + lane / 4; }
  /// The r-th row of this warp between products.
  __device__ __forceinline__ int row(int r) const { return warp * kRowsOfWarp + r; }
};

/// The sums of a lane: its two outputs for every eight tokens 2 (lane % 4) and the next.
using Sums = float[kRows / 8][4];

/// So that other sums can take the first's registers.
__device__ __forceinline__ void copy(Sums& to, const Sums& from) {
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[j][e] = from[j][e];
  }
}

/// Begins sums (+)= weights x activations for the warpgroup's 64 outputs and all tokens; a row of
/// the slot is an output's terms or (kByTerm) a term's outputs.
template <bool kByTerm>
__device__ __forceinline__ void multiply(Sums& sums, uint32_t slot, uint32_t activations,
                                         bool add) {
  constexpr uint32_t kPanel = 128 * kChunk, kTokens = 128 * kRows;
  const uint32_t group = __shfl_sync(~0U, threadIdx.x / 128, 0);  // known to be the warp's
  const uint64_t a = panel_descriptor(slot + group * (kByTerm ? kPanel : 64 * 128));
  const uint64_t b = panel_descriptor(activations);
  begin_products();
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    const uint32_t a_bytes = kByTerm ? k * 16 * 128 : k / 4 * kPanel + k % 4 * 32;
    const uint32_t b_bytes = k / 4 * kTokens + k % 4 * 32;
    multiply_panels<kByTerm>(sums, a + a_bytes / 16, b + b_bytes / 16, add || k > 0);
  }
  commit_products();
}

/// Leaves the warp's 16 outputs of all tokens, rounded, in a matrix in shared memory.
__device__ __forceinline__ void leave_rounded(uint32_t matrix, const Sums& sums, const Place& at) {
  const int token = at.lane / 16 * 8 + at.lane % 8, pack = at.outputs() / kPack + at.lane / 8 % 2;
  const uint32_t to = matrix + pack_at(token, pack);
#pragma unroll
  for (int j = 0; j < kRows / 8; j += 2) {
    store_tiles_transposed(
        to + j * 8 * 128, two_words(sums[j][0], sums[j][1]), two_words(sums[j][2], sums[j][3]),
        two_words(sums[j + 1][0], sums[j + 1][1]), two_words(sums[j + 1][2], sums[j + 1][3]));
  }
}

/// Both panels of such a matrix to global memory, from this column on; by one thread.
__device__ __forceinline__ void store_tile(const CUtensorMap& map, int column, uint32_t matrix,
                                           const Place& at) {
  const int row = static_cast<int>(at.first_row);
  store_panel(map, column, row, matrix);
  store_panel(map, column + kPanelColumns, row, matrix + 128 * kRows);
}

/// A matrix of kCount rows from global memory, from this column and row of it on; by one thread.
template <int kCount>
__device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap& map, int column, int row,
                                          uint32_t barrier) {
  load_panel(to, map, column, row, barrier);
  load_panel(to + 128 * kCount, map, column + kPanelColumns, row, barrier);
}

/// Where a number lies among the products: a warp's lanes in different banks.
__device__ __forceinline__ int product_at(int token, int output) {
  return token * kWidth + (output ^ (token / 2 % 4) * 8);
}

/// Leaves the warp's outputs for whole rows to be read.
__device__ __forceinline__ void leave_products(Memory& memory, const Sums& sums, const Place& at) {
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = j * 8 + at.lane % 4 * 2 + e % 2;
      memory.products[product_at(token, at.output() + e / 2 * 8)] = sums[j][e];
    }
  }
}

__device__ __forceinline__ Row<1> take_products(const Memory& memory, int row, const Lane& lane) {
  Row<1> products;
  load_pack<float, kRowVector>(memory.products + product_at(row, lane.column(0)), products.v[0]);
  return products;
}

/// A row into the tile.
__device__ __forceinline__ void leave_row(Memory& memory, int row, const Row<1>& values,
                                          const Lane& lane) {
  const int column = lane.column(0);
  store_pack<bfloat16, kRowVector>(
      reinterpret_cast<bfloat16*>(memory.tile + pack_at(row, column / kPack)) + column % kPack,
      values.v[0]);
}

/// The first of the warp's rows of a matrix in global memory, 128 columns.
template <class T>
__device__ __forceinline__ T* rows_of_warp(T* matrix, const Place& at) {
  return matrix + (at.first_row + at.row(0)) * kWidth;
}

/// Fetches a row, or zeros.
template <class T>
__device__ __forceinline__ Row<1> row_or_zero(const T* row, bool exists, const Lane& lane) {
  return exists ? load_row<1>(row, lane) : Row<1>{};
}

/// A step's numbers: which matrix, from which column and row on; and what comes with them.
struct Request {
  const CUtensorMap* weights;
  int column, row;
  const CUtensorMap* terms;  // null: nothing comes
  int terms_column;
};

/// The order of the channel mixer's products: the first of a chunk comes before the second of the
/// chunk before. With the first of chunk 0: 0; 1, 0'; 2, 1'; ...
struct MixerStep {
  bool first;
  int chunk;
  __device__ __forceinline__ MixerStep(int step, int chunks)
      : first(step == 0 || (step % 2 == 1 && step != 2 * chunks - 1)),
        chunk(first ? (step + 1) / 2 : (step - 1) / 2) {}
};

/// The block's slots in their turn. `request(step)` says what a step needs. The thread that `leads`
/// asks for it.
template <class F>
struct Pipeline {
  uint32_t slots, terms, arrived;
  int first_row, steps;
  F request;
  int next = 0;         // step
  int place = 0;        // next % kSlots
  uint32_t parity = 0;  // next / kSlots % 2

  static __device__ __forceinline__ bool leads() { return threadIdx.x == 0; }
  __device__ __forceinline__ uint32_t slot(int i) const { return slots + i * kTileBytes<kChunk>; }
  __device__ __forceinline__ uint32_t terms_of(int i) const {
    return terms + i * kTileBytes<kRows>;
  }
  __device__ __forceinline__ void ask(int step, int i) {
    if (step >= steps) return;
    const Request r = request(step);
    const uint32_t barrier = arrived + 8 * i;
    expect_bytes(barrier, kTileBytes<kChunk> + (r.terms != nullptr ? kTileBytes<kRows> : 0));
    load_tile<kChunk>(slot(i), *r.weights, r.column, r.row, barrier);
    if (r.terms == nullptr) return;
    load_tile<kRows>(terms_of(i), *r.terms, r.terms_column, first_row, barrier);
  }
  __device__ __forceinline__ void begin() {
    if (!leads()) return;
    for (int i = 0; i < kSlots; ++i) make_barrier(arrived + 8 * i);
    publish_barriers();
    for (int step = 0; step < kSlots - 2; ++step) ask(step, step);
  }
  /// The number of the next step's slot, there for all, as is what else was written to shared
  /// memory; what is stored from there may be written over after the next take(). The products of
  /// the step before may still read their slot, those before must be done.
  __device__ __forceinline__ int take() {
    if (leads()) wait_for_stores();
    publish_to_products();
    __syncthreads();
    const int now = place;
    if (leads()) ask(next + kSlots - 2, now < 2 ? now + kSlots - 2 : now - 2);
    __syncwarp();
    wait_for_barrier(arrived + 8 * now, parity);
    ++next;
    place = now + 1;
    if (place == kSlots) {
      place = 0;
      parity ^= 1;
    }
    return now;
  }
};

template <class F>
__device__ __forceinline__ Pipeline<F> make_pipeline(const Memory& memory, const Place& at,
                                                     int steps, F request) {
  return {shared_address(memory.slots),
          shared_address(memory.terms),
          shared_address(memory.arrived),
          static_cast<int>(at.first_row),
          steps,
          request};
}

/// Which elements of the warp's rows a dropout keeps, a word a row; all where there is none. The
/// factor of those that are kept.
__device__ __forceinline__ float keep_rows(uint32_t (&keep)[kRowsOfWarp], const DropoutMask& mask,
                                           const Place& at) {
  const uint64_t key = mask.key != nullptr ? static_cast<uint64_t>(*mask.key) : 0;
  const auto first =
      static_cast<uint64_t>(mask.first + (at.first_row + at.row(0)) * kWidth) / kDropoutStretch;
#pragma unroll 1  // a copy of the generator is enough
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const uint32_t bits = mask.key == nullptr
                              ? ~0U
                              : keep_bits<kRowVector>(first + r * (kWidth / kDropoutStretch), key,
                                                      mask.threshold, at.lane);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      if (i == r) keep[i] = bits;
    }
  }
  return mask.key != nullptr ? mask.scale : 1.0F;
}

__device__ __forceinline__ void drop(Row<1>& row, uint32_t keep, float scale) {
#pragma unroll
  for (int e = 0; e < kRowVector; ++e) {
    row.v[0][e] = (keep >> e & 1U) != 0 ? row.v[0][e] * scale : 0.0F;
  }
}

/// The last product: the tile times the rest of the slots, rounded, to global memory, by three
/// tiles of the terms' memory in turn: while a chunk is computed, the one before is rounded and the
/// one before that is stored.
template <bool kByTerm, class F>
__device__ __forceinline__ void store_columns(const CUtensorMap& map, int chunks,
                                              Pipeline<F>& pipeline, uint32_t tile,
                                              const Place& at) {
  const auto store = [&](int chunk) {
    if (chunk < 0 || !pipeline.leads()) return;
    store_tile(map, chunk * kChunk, pipeline.terms_of(chunk % 3), at);
    commit_stores();
  };
  if (chunks == 0) return;
  Sums next;
  const auto begin = [&] { multiply<kByTerm>(next, pipeline.slot(pipeline.take()), tile, false); };
  begin();
  wait_for_products<0>(next);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    Sums sums;
    copy(sums, next);
    if (chunk + 1 < chunks) {
      begin();
      store(chunk - 1);
      __syncwarp();
    }
    leave_rounded(pipeline.terms_of(chunk % 3), sums, at);
    wait_for_products<0>(next);
  }
  publish_to_products();
  __syncthreads();
  store(chunks - 2);
  store(chunks - 1);
  if (pipeline.leads()) wait_for_stores();
}

/// While the kernel before this one still runs.
template <class Params>
__device__ __forceinline__ void fetch_weights(const Params& p) {
  constexpr int64_t kRowBytes = 2 * kWidth;
  fetch_early(p.weights.out_proj, p.inner * kRowBytes);
  fetch_early(p.weights.first, p.hidden_width * kRowBytes);
  fetch_early(p.weights.second, p.hidden_width * kRowBytes);
  if (p.weights.in_proj != nullptr) fetch_early(p.weights.in_proj, p.next_width * kRowBytes);
}

/// Launches a kernel for blocks of kRows rows.
template <class Params, class Maps>
cudaError_t launch_blocks(void (*kernel)(Params, Maps), const Params& p, const Maps& maps,
                          cudaStream_t stream) {
  return launch_early(kernel, static_cast<unsigned>(token_chain_blocks(p.rows)), kThreads,
                      sizeof(Memory), stream, p, maps);
}

/// The maps of a chain's weights.
struct WeightMaps {
  CUtensorMap out_proj, first, second, in_proj;
};

inline cudaError_t make_weight_maps(WeightMaps& maps, const ChainWeights& w, int64_t inner,
                                    int64_t hidden, int64_t next) {
  cudaError_t error = make_tensor_map(maps.out_proj, w.out_proj, kWidth, inner, kChunk);
  if (error == cudaSuccess) error = make_tensor_map(maps.first, w.first, hidden, kWidth, kChunk);
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.second, w.second, kWidth, hidden, kChunk);
  }
  if (error == cudaSuccess) {
    error = make_tensor_map(maps.in_proj, w.in_proj, next, kWidth, kChunk);
  }
  return error;
}

}  // namespace dmamba::kernels::chain
