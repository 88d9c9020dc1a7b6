// What both directions of the token chain share: weights in flight, products, rows.
//
// A block takes kRows tokens through all of the chain. The weights pass through shared memory in
// slots of 128 x 128 numbers, each asked for two products before it is needed (cp.async); with a
// slot may come 128 columns of the block's rows of another matrix. Sixteen warps: kRows / 16 along
// the rows, the others (groups) share out the columns or, where a sum is long, its terms. A pack of
// 16 bytes p of row r lies at p ^ (r % 8), so that eight rows of an 8 x 8 load lie in different
// banks.
//
//   Columns   128 columns, a group has 128 / kGroups of them; their terms lie in shared memory
//   Terms     a group has 128 / kGroups terms, in registers, of 128 columns
//
// Between the products a warp has whole rows (kernels/normalization/row.cuh).
#pragma once

#include <algorithm>

#include "kernels/common/copy.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/normalization/row.cuh"
#include "kernels/token_chain/params.h"

namespace dmamba::kernels::chain {

constexpr int kWidth = kChainWidth, kChunk = kChainChunk, kWarps = 16, kThreads = 32 * kWarps;
constexpr int kSlots = 3, kPack = 8, kPacks = kChunk / kPack;  // a pack: numbers of 16 bytes
static_assert(kChunk == kWidth);

template <int kRows>
struct Shape {
  static constexpr int kRowWarps = kRows / 16, kGroups = kWarps / kRowWarps;
  static constexpr int kTiles = kChunk / 8 / kGroups, kPairs = kTiles / 2;  // of a group's columns
  static constexpr int kParts = kGroups / 2;  // of a sum whose terms the groups share
  static constexpr int kRowsOfWarp = kRows / kWarps;
};

struct alignas(256) Slot {
  bfloat16 weights[kChunk * kChunk];
};

template <int kRows>
struct Memory {
  Slot slots[kSlots];
  alignas(256) bfloat16 tile[kRows * kWidth];  // what the next product takes
  union {
    alignas(256) bfloat16 terms[kSlots][kRows * kChunk];  // what came with the slots
    float products[Shape<kRows>::kParts][kRows * kWidth];
    float warp_columns[kWarps * kWidth];
  };
  float hidden_sums[Shape<kRows>::kRowWarps][kChunk];  // of a chunk's columns, backward
};

/// Where a pack lies, in bytes.
__device__ __forceinline__ uint32_t pack_at(int row, int pack) {
  return static_cast<uint32_t>(row * kPacks + (pack ^ (row & 7))) * 16;
}

/// A thread's part in sending rows of 128 numbers: its packs lie kStep rows apart.
struct Sender {
  static constexpr int kStep = kThreads / kPacks;  // a multiple of 8
  int row = static_cast<int>(threadIdx.x) / kPacks, pack = static_cast<int>(threadIdx.x) % kPacks;
  uint32_t to = pack_at(row, pack);

  /// kCount rows of a matrix `width` wide, from `from` on, to the address `at`; with kSome, those
  /// below `exist`.
  template <int kCount, bool kSome = false>
  __device__ __forceinline__ void send(uint32_t at, const void* from, int64_t width,
                                       int exist = kCount) const {
    static_assert(kCount % kStep == 0);
    const bfloat16* source = static_cast<const bfloat16*>(from) + row * width + pack * kPack;
#pragma unroll
    for (int n = 0; n < kCount / kStep; ++n) {
      const bool exists = !kSome || row + n * kStep < exist;
      const void* p = exists ? source + n * kStep * width : from;
      copy_async(at + to + n * kStep * kPacks * 16, p, exists ? 16 : 0);
    }
  }
  /// The chunk-th 128 rows, or columns, of a matrix (of `width` columns).
  __device__ __forceinline__ void send_rows(uint32_t at, const void* matrix, int chunk) const {
    send<kChunk>(at, static_cast<const bfloat16*>(matrix) + chunk * (kChunk * kWidth), kWidth);
  }
  __device__ __forceinline__ void send_columns(uint32_t at, const void* matrix, int64_t width,
                                               int chunk) const {
    send<kChunk>(at, static_cast<const bfloat16*>(matrix) + chunk * kChunk, width);
  }
};

/// The block's place, and the thread's in it.
template <int kRows>
struct Place {
  using S = Shape<kRows>;
  int lane = static_cast<int>(threadIdx.x) % 32;
  int warp = static_cast<int>(threadIdx.x) / 32;
  int row_warp = warp % S::kRowWarps, group = warp / S::kRowWarps;
  int64_t first_row = int64_t{blockIdx.x} * kRows;
  int rows;  // of the block that exist

  explicit __device__ __forceinline__ Place(int64_t all)
      : rows(static_cast<int>(min(int64_t{kRows}, all - int64_t{blockIdx.x} * kRows))) {}
  /// The rows of this lane's fragments: this one and the eighth after.
  __device__ __forceinline__ int fragment_row() const { return row_warp * 16 + lane / 4; }
  /// The r-th row of this warp between products, and whether it exists.
  __device__ __forceinline__ int row(int r) const { return warp * S::kRowsOfWarp + r; }
};

/// Two fragments B (16 x 8) next to each other. In shared memory a row is a column's terms or
/// (kByTerm) a term's columns. A lane's address for the first ones is computed once; further
/// columns and terms, multiples of 16, are a constant added or, in a row, one that changes some of
/// its bits.
template <bool kByTerm>
struct FragmentsB {
  uint32_t first;

  __device__ __forceinline__ FragmentsB(int column, int term, int lane)
      : first(kByTerm ? pack_at(term + lane % 16, column / kPack + lane / 16)
                      : pack_at(column + lane % 8 + lane / 16 * 8, term / kPack + lane / 8 % 2)) {}

  __device__ __forceinline__ void load(uint32_t (&b)[4], uint32_t slot, int column,
                                       int term) const {
    if constexpr (kByTerm) {
      load_tiles_transposed(b, ((slot + first) ^ (column / kPack * 16)) + term * kPacks * 16);
    } else {
      load_tiles(b, ((slot + first) ^ (term / kPack * 16)) + column * kPacks * 16);
    }
  }
};

/// 128 columns of which this group has its share: all of their terms, rows of the tile or of what
/// came with a slot.
template <bool kByTerm, int kRows>
struct Columns {
  static constexpr int kTiles = Shape<kRows>::kTiles;
  using Halves = float[2][kTiles][4];  // even and odd terms apart: fewer products wait for another
  uint32_t rows;
  FragmentsB<kByTerm> weights;

  explicit __device__ __forceinline__ Columns(const Place<kRows>& at)
      : rows(pack_at(at.row_warp * 16 + at.lane % 16, at.lane / 16)),
        weights(at.group * kTiles * 8, 0, at.lane) {}

  __device__ __forceinline__ void add(Halves& sums, uint32_t terms, uint32_t slot) const {
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      uint32_t a[4];
      load_tiles(a, (terms + rows) ^ (k * 32));
#pragma unroll
      for (int c = 0; c < kTiles; c += 2) {
        uint32_t b[4];
        weights.load(b, slot, c * 8, k * 16);
        multiply_add(sums[k % 2][c], a, b[0], b[1]);
        multiply_add(sums[k % 2][c + 1], a, b[2], b[3]);
      }
    }
  }
  static __device__ __forceinline__ void join(float (&sums)[kTiles][4], const Halves& halves) {
#pragma unroll
    for (int c = 0; c < kTiles; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[c][e] = halves[0][c][e] + halves[1][c][e];
    }
  }
};

/// 128 terms of which this group has its share, in registers: all of their columns.
template <bool kByTerm, int kRows>
struct Terms {
  static constexpr int kPairs = Shape<kRows>::kPairs;
  FragmentsB<kByTerm> weights;

  explicit __device__ __forceinline__ Terms(const Place<kRows>& at)
      : weights(0, at.group * kPairs * 16, at.lane) {}

  __device__ __forceinline__ void add(float (&sums)[kWidth / 8][4], const uint32_t (&a)[kPairs][4],
                                      uint32_t slot) const {
#pragma unroll
    for (int c = 0; c < kWidth / 8; c += 2) {
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        uint32_t b[4];
        weights.load(b, slot, c * 8, k * 16);
        multiply_add(sums[c], a[k], b[0], b[1]);
        multiply_add(sums[c + 1], a[k], b[2], b[3]);
      }
    }
  }
};

__device__ __forceinline__ uint32_t two_words(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(two);
}

/// Sums of 16 columns, rounded, as the terms of the next product.
__device__ __forceinline__ void as_terms(uint32_t (&a)[4], const float (&low)[4],
                                         const float (&high)[4]) {
  a[0] = two_words(low[0], low[1]);
  a[1] = two_words(low[2], low[3]);
  a[2] = two_words(high[0], high[1]);
  a[3] = two_words(high[2], high[3]);
}

/// Neighbouring lanes exchange words, so that a lane has four neighbouring columns of both rows:
/// even lanes of the fragment's first eight, odd ones of the others.
__device__ __forceinline__ void exchange(uint32_t& first, uint32_t& second, uint32_t& third,
                                         uint32_t& fourth, bool odd) {
  const uint32_t x = __shfl_xor_sync(~0U, odd ? first : third, 1);
  const uint32_t y = __shfl_xor_sync(~0U, odd ? second : fourth, 1);
  (odd ? first : third) = x;
  (odd ? second : fourth) = y;
}

/// Where a lane has the four columns of its two rows that exchange() gives it, in a matrix in
/// global memory, from the block's first row and the warp's first column on.
struct FragmentPlace {
  bfloat16* row[2];
  bool exists[2];

  template <int kRows>
  __device__ __forceinline__ FragmentPlace(const void* matrix, int64_t width, int column,
                                           const Place<kRows>& at) {
    const int row_index = at.fragment_row(), lane = at.lane % 4;
    bfloat16* p = static_cast<bfloat16*>(const_cast<void*>(matrix)) +
                  (at.first_row + row_index) * width + column + lane % 2 * 8 + lane / 2 * 4;
    row[0] = p;
    row[1] = p + 8 * width;
    exists[0] = row_index < at.rows;
    exists[1] = row_index + 8 < at.rows;
  }
  __device__ __forceinline__ void advance(int columns) {
    row[0] += columns;
    row[1] += columns;
  }
};

/// Stores 16 columns from `column` of the place on.
__device__ __forceinline__ void store_fragment(const FragmentPlace& to, int column,
                                               const uint32_t (&words)[4], int lane) {
  uint32_t a[4] = {words[0], words[1], words[2], words[3]};
  exchange(a[0], a[1], a[2], a[3], lane % 2 != 0);
  // Even: a[0] and, from the neighbour, a[2] are of the first row; odd: the other way round.
  if (to.exists[0]) *reinterpret_cast<uint2*>(to.row[0] + column) = make_uint2(a[0], a[2]);
  if (to.exists[1]) *reinterpret_cast<uint2*>(to.row[1] + column) = make_uint2(a[1], a[3]);
}

struct FragmentWords {
  uint2 row[2];
};

__device__ __forceinline__ FragmentWords load_fragment(const FragmentPlace& from, int column) {
  FragmentWords words = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (from.exists[i]) words.row[i] = *reinterpret_cast<const uint2*>(from.row[i] + column);
  }
  return words;
}

/// The words as a fragment has them.
__device__ __forceinline__ void spread(uint32_t (&a)[4], const FragmentWords& words, int lane) {
  a[0] = words.row[0].x;
  a[1] = words.row[1].x;
  a[2] = words.row[0].y;
  a[3] = words.row[1].y;
  exchange(a[0], a[1], a[2], a[3], lane % 2 != 0);
}

/// Where a number lies among a group's products: eight rows of a fragment in different banks.
__device__ __forceinline__ int product_at(int row, int column) {
  return row * kWidth + (column ^ (row & 7) * 8);
}

/// Leaves fragments for whole rows to be read, or (kAdd) adds them to what is there.
template <bool kAdd = false, int kTiles>
__device__ __forceinline__ void leave_products(float* products, const float (&sums)[kTiles][4],
                                               int row, int column, int lane) {
#pragma unroll
  for (int c = 0; c < kTiles; ++c) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = product_at(row + 8 * half, column + c * 8 + lane % 4 * 2);
      auto& to = *reinterpret_cast<float2*>(products + at);
      float2 sum = make_float2(sums[c][2 * half], sums[c][2 * half + 1]);
      if constexpr (kAdd) sum = make_float2(to.x + sum.x, to.y + sum.y);
      to = sum;
    }
  }
}

/// Leaves sums whose terms the groups shared, in kParts parts.
template <int kRows>
__device__ __forceinline__ void leave_parts(Memory<kRows>& memory,
                                            const float (&sums)[kWidth / 8][4],
                                            const Place<kRows>& at) {
  constexpr int kParts = Shape<kRows>::kParts;
  if (at.group >= kParts) {
    leave_products(memory.products[at.group - kParts], sums, at.fragment_row(), 0, at.lane);
  }
  __syncthreads();
  if (at.group < kParts) {
    leave_products<true>(memory.products[at.group], sums, at.fragment_row(), 0, at.lane);
  }
  __syncthreads();
}

/// A row of the sum of kParts parts.
template <int kParts, int kRows>
__device__ __forceinline__ Row<1> take_products(const Memory<kRows>& memory, int row,
                                                const Lane& lane) {
  Row<1> sum = {};
#pragma unroll
  for (int g = 0; g < kParts; ++g) {
    float part[kRowVector];
    load_pack<float, kRowVector>(memory.products[g] + product_at(row, lane.column(0)), part);
#pragma unroll
    for (int e = 0; e < kRowVector; ++e) sum.v[0][e] += part[e];
  }
  return sum;
}

/// A row into the tile.
template <int kRows>
__device__ __forceinline__ void leave_row(Memory<kRows>& memory, int row, const Row<1>& values,
                                          const Lane& lane) {
  const int column = lane.column(0);
  store_pack<bfloat16, kRowVector>(memory.tile + pack_at(row, column / kPack) / 2 + column % kPack,
                                   values.v[0]);
}

/// Fetches a row, or zeros.
template <class T>
__device__ __forceinline__ Row<1> row_or_zero(const T* matrix, int64_t row, bool exists,
                                              const Lane& lane) {
  return exists ? load_row<1>(matrix + row * kWidth, lane) : Row<1>{};
}

/// The block's slots in their turn. `send(slot, terms, step)` asks for a step's numbers, to these
/// addresses.
template <int kRows, class Send>
struct Pipeline {
  uint32_t slots, terms;
  int steps;
  Send send;
  int next = 0;   // step
  int place = 0;  // next % kSlots

  __device__ __forceinline__ uint32_t slot(int i) const {
    return slots + i * static_cast<int>(sizeof(Slot));
  }
  __device__ __forceinline__ uint32_t terms_of(int i) const {
    return terms + i * (2 * kRows * kChunk);
  }
  __device__ __forceinline__ void ask(int step, int i) {
    if (step < steps) send(slot(i), terms_of(i), step);
    commit_copies();
  }
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int step = 0; step < kSlots - 1; ++step) ask(step, step);
  }
  /// The number of the next step's slot, there for all; the one before is used up.
  __device__ __forceinline__ int take() {
    wait_for_copies<kSlots - 2>();
    __syncthreads();
    const int now = place;
    ask(next + kSlots - 1, now == 0 ? kSlots - 1 : now - 1);
    ++next;
    place = now == kSlots - 1 ? 0 : now + 1;
    return now;
  }
};

template <int kRows, class Send>
__device__ __forceinline__ Pipeline<kRows, Send> make_pipeline(const Memory<kRows>& memory,
                                                               int steps, Send send) {
  return {shared_address(memory.slots), shared_address(memory.terms), steps, send};
}

/// Launches a kernel for blocks of kRows rows.
template <int kRows, class Params>
cudaError_t launch_blocks(void (*kernel)(Params), const Params& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Memory<kRows>);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  return launch_early(kernel, static_cast<unsigned>(token_chain_blocks(p.rows)), kThreads, kBytes,
                      stream, p);
}

}  // namespace dmamba::kernels::chain
