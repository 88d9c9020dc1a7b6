// x_proj and dt_proj, between the convolution and the scan, in one launch each way; at the sizes of
// RL two small products whose launches take longer than they do.
//
//   forward   u = SiLU(convolution of x), where it is asked for: three more tokens, that reach into
//             the block's; projected = u x_proj^T (the terms shared among four groups of warps), dt
//             its first columns, delta = dt dt_proj^T
//   backward  d dt = ddelta dt_proj (likewise), du += (d dt, dB, dC) x_proj, where dB and dC are
//             what the scan's blocks of channels leave, added up, or are there already
//
// A block has 32 tokens and all of both matrices in shared memory, 73 (of rank 8: three blocks a
// multiprocessor) to 137 KiB. Eight warps: two along the rows, four groups. Sums of a group's terms
// meet in shared memory in one order. Floor: 1.1 KB read and written a token forward, 1.7 KB
// backward.
#include "kernels/causal_conv1d/pair.cuh"
#include "kernels/common/copy.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/math.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/projections/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kRows = 32, kWarps = 8, kThreads = 32 * kWarps, kGroups = 4, kPack = 8;
constexpr int kMostWidth = 48, kPadded = kMostWidth + kPack;  // of projected, a row of it

/// Rows of shared memory are a pack longer than they look, so that eight of them lie in different
/// banks.
template <int kInner>
constexpr int kRowPitch = kInner + kPack;
template <int kInner, int kRank>
struct Memory {
  static constexpr int kPitch = kRowPitch<kInner>;
  alignas(16) bfloat16 rows[kRows * kPitch];  // u, or ddelta; then delta
  union {
    alignas(16) bfloat16 more[(kRows + kPairHalo) * kPitch];  // du; or x, from three tokens before
    float parts[kGroups * kRows * kMostWidth];                // forward, in its place
  };
  alignas(16) bfloat16 x_proj[kMostWidth * kPitch];
  alignas(16) bfloat16 dt_proj[kInner * kRank];
  alignas(16) bfloat16 projected[kRows * kPadded];
  uint2 tokens[kRows + kPairHalo];  // x's: bits where the mask holds, and where a token precedes
};

/// The first `count` of up to kMost rows of kPacks packs, to rows of kPitch numbers. Unrolled with
/// offsets that are known: two instructions a copy.
template <int kPacks, int kPitch, int kMost>
__device__ __forceinline__ void send(bfloat16* to, const void* from, int count) {
  static_assert(kThreads % kPacks == 0);
  constexpr int kTurn = kThreads / kPacks;  // rows at a time
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack;
  bfloat16* const shared = to + first * kPitch + pack;
  const bfloat16* const global = static_cast<const bfloat16*>(from) + first * kPacks * kPack + pack;
#pragma unroll
  for (int row = 0; row < kMost; row += kTurn) {
    if (first + row < count) {
      copy_async(shared + row * kPitch, global + row * kPacks * kPack, 16);
    }
  }
}

struct Place {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int row_warp = static_cast<int>(threadIdx.x) / 32 % 2;
  int group = static_cast<int>(threadIdx.x) / 64;
  int64_t first_row = int64_t{blockIdx.x} * kRows;

  /// Of a fragment A (16 x 16) in rows of `pitch`.
  template <int kPitch>
  __device__ __forceinline__ void load_a(uint32_t (&a)[4], const bfloat16* rows, int term) const {
    load_tiles(a, rows + (row_warp * 16 + lane % 16) * kPitch + term + lane / 16 * kPack);
  }
  /// Two fragments B (16 x 8): a row is a column's terms.
  template <int kPitch>
  __device__ __forceinline__ void load_b(uint32_t (&b)[4], const bfloat16* columns, int column,
                                         int term) const {
    load_tiles(
        b, columns + (column + lane % 8 + lane / 16 * 8) * kPitch + term + lane / 8 % 2 * kPack);
  }
  /// The same: a row is a term's columns.
  template <int kPitch>
  __device__ __forceinline__ void load_b_by_term(uint32_t (&b)[4], const bfloat16* terms,
                                                 int column, int term) const {
    load_tiles_transposed(b, terms + (term + lane % 16) * kPitch + column + lane / 16 * kPack);
  }
  /// The lane's row of fragments (and the eighth after), and its column in each eight.
  __device__ __forceinline__ int row() const { return row_warp * 16 + lane / 4; }
  __device__ __forceinline__ int column() const { return lane % 4 * 2; }
};

/// Leaves a group's sums of 8 columns.
__device__ __forceinline__ void leave_part(float* part, int width, const float (&sums)[4],
                                           int column, const Place& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    *reinterpret_cast<float2*>(part + (at.row() + 8 * half) * width + column + at.column()) =
        make_float2(sums[2 * half], sums[2 * half + 1]);
  }
}

/// Adds the groups' parts of `columns` columns, rounds them, and leaves them in `projected` and in
/// global memory (rows of `width`).
template <class Memory>
__device__ __forceinline__ void join_parts(Memory& memory, const float* parts, int columns,
                                           void* global, int width, int rows, const Place& at) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * columns / 2; i += kThreads) {
    const int row = i / (columns / 2), column = i % (columns / 2) * 2;
    float2 sum = make_float2(0.0F, 0.0F);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float2 part =
          *reinterpret_cast<const float2*>(parts + (g * kRows + row) * columns + column);
      sum = make_float2(sum.x + part.x, sum.y + part.y);
    }
    const uint32_t words = two_words(sum.x, sum.y);
    *reinterpret_cast<uint32_t*>(memory.projected + row * kPadded + column) = words;
    if (row < rows) {
      auto* to = static_cast<bfloat16*>(global) + (at.first_row + row) * width + column;
      *reinterpret_cast<uint32_t*>(to) = words;
    }
  }
}

/// Rows of kInner numbers from shared to global memory.
template <int kInner>
__device__ __forceinline__ void store_rows(void* global, const bfloat16* rows, int count,
                                           const Place& at) {
  constexpr int kPacks = kInner / kPack, kTurn = kThreads / kPacks;
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack;
  const bfloat16* from = rows + first * kRowPitch<kInner> + pack;
  bfloat16* to = static_cast<bfloat16*>(global) + (at.first_row + first) * kInner + pack;
#pragma unroll
  for (int row = 0; row < kRows; row += kTurn) {
    if (first + row < count) {
      *reinterpret_cast<uint4*>(to + row * kInner) =
          *reinterpret_cast<const uint4*>(from + row * kRowPitch<kInner>);
    }
  }
}

/// What both directions begin with; without activations the matrices alone.
template <int kInner, int kRank, class Params>
__device__ __forceinline__ void send_all(Memory<kInner, kRank>& memory, const Params& p,
                                         const void* activations, int rows, const Place& at) {
  constexpr int kPacks = kInner / kPack, kPitch = kRowPitch<kInner>;
  if (activations != nullptr) {
    send<kPacks, kPitch, kRows>(
        memory.rows, static_cast<const bfloat16*>(activations) + at.first_row * kInner, rows);
  }
  send<kPacks, kPitch, kMostWidth>(memory.x_proj, p.x_proj, p.width);
  send<kRank / kPack, kRank, kInner>(memory.dt_proj, p.dt_proj, kInner);
}

/// Asks for x and the three tokens before.
template <int kInner, int kRank>
__device__ __forceinline__ void send_inputs(Memory<kInner, kRank>& memory,
                                            const ProjectionsConvolution& c, int rows,
                                            const Place& at) {
  constexpr int kPacks = kInner / kPack, kTurn = kThreads / kPacks;
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack;
  const int64_t token = at.first_row - kPairHalo + first;
  const bfloat16* from = static_cast<const bfloat16*>(c.x) + token * c.x_stride + pack;
  bfloat16* const to = memory.more + first * kRowPitch<kInner> + pack;
#pragma unroll
  for (int row = 0; row < kRows + kPairHalo; row += kTurn) {
    if (first + row < rows + kPairHalo) {
      const bool there = token + row >= 0;
      copy_async(to + row * kRowPitch<kInner>, there ? from : c.x, there ? 16 : 0);
    }
    from += kTurn * c.x_stride;
  }
}

template <int kInner, int kRank>
__device__ __forceinline__ void note_flags(Memory<kInner, kRank>& memory,
                                           const ProjectionsConvolution& c, int rows,
                                           const Place& at) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= rows + kPairHalo) return;
  const int token = static_cast<int>(at.first_row) - kPairHalo + i;
  const auto* mask = reinterpret_cast<const uint8_t*>(c.mask.data);
  const auto* starts = reinterpret_cast<const uint8_t*>(c.segment_starts.data);
  const uint8_t live = mask != nullptr && token >= 0 ? mask[token] : 1;
  const uint8_t start = starts != nullptr && token >= 0 ? starts[token] : 0;
  const bool follows = token % c.length != 0 && start == 0;
  memory.tokens[i] = make_uint2(live != 0 ? ~0U : 0U, follows ? ~0U : 0U);
}

/// u, from x to `rows`: a thread has two channels of a few neighbouring rows. Rows that don't exist
/// get what happens to lie there.
template <int kInner, int kRank>
__device__ __forceinline__ void convolve(Memory<kInner, kRank>& memory,
                                         const PairWeights& weights) {
  constexpr int kPairs = kInner / 2, kShare = kRows * kPairs / kThreads;
  constexpr int kPitch = kRowPitch<kInner>;
  const int channel = static_cast<int>(threadIdx.x) % kPairs * 2;
  const int first = static_cast<int>(threadIdx.x) / kPairs * kShare;
  const bfloat16* x = memory.more + first * kPitch + channel;
  const uint2* tokens = memory.tokens + first;
  bfloat16* u = memory.rows + (first - kPairHalo) * kPitch + channel;
  float window[kPairHalo][2] = {};
  const auto take = [&](int row, float(&v)[2]) {
    const uint2 token = tokens[row];
    load_pair(x + row * kPitch, token.x, v);
    if (token.y != 0) return;
#pragma unroll
    for (int k = 0; k < kPairHalo; ++k) window[k][0] = window[k][1] = 0.0F;
  };
#pragma unroll
  for (int row = 0; row < kPairHalo; ++row) {
    float v[2];
    take(row, v);
    move_window(window, v);
  }
#pragma unroll 4
  for (int row = kPairHalo; row < kPairHalo + kShare; ++row) {
    float v[2], y[2];
    take(row, v);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float a = weights.activation(c, window, v[c]);
      y[c] = a * sigmoid(a);
    }
    store_pack<bfloat16, 2>(u + row * kPitch, y);
    move_window(window, v);
  }
}

template <int kInner, int kRank, bool kConvolves>
__global__ void __launch_bounds__(kThreads, 3)
    projections_kernel(const __grid_constant__ ProjectionsParams p) {
  constexpr int kPitch = kRowPitch<kInner>, kShare = kInner / kGroups;
  auto& memory = *dynamic_shared<Memory<kInner, kRank>>();
  const Place at;
  const int rows = static_cast<int>(min(int64_t{kRows}, p.rows - at.first_row));
  fetch_early(p.x_proj, int64_t{2} * p.width * kInner);
  fetch_early(p.dt_proj, int64_t{2} * kRank * kInner);
  if constexpr (kConvolves) fetch_early(p.convolution.weight, int64_t{16} * kInner);
  wait_for_stream();
  if constexpr (kConvolves) {
    const ProjectionsConvolution& c = p.convolution;
    send_inputs(memory, c, rows, at);
    commit_copies();
    send_all<kInner, kRank>(memory, p, nullptr, rows, at);
    commit_copies();
    note_flags(memory, c, rows, at);
    const PairWeights weights(c.weight, c.bias, static_cast<int>(threadIdx.x) % (kInner / 2) * 2);
    wait_for_copies<1>();
    __syncthreads();
    convolve(memory, weights);
  } else {
    send_all<kInner, kRank>(memory, p, p.u, rows, at);
    commit_copies();
  }
  wait_for_copies<0>();
  __syncthreads();
  if constexpr (kConvolves) store_rows<kInner>(p.u, memory.rows, rows, at);
  {
    float sums[kMostWidth / 8][4] = {};
#pragma unroll
    for (int term = 0; term < kShare; term += 16) {
      uint32_t a[4], b[4];
      at.load_a<kPitch>(a, memory.rows, at.group * kShare + term);
#pragma unroll
      for (int c = 0; c < kMostWidth / 8; c += 2) {  // some may not exist, and are not left
        at.load_b<kPitch>(b, memory.x_proj, c * 8, at.group * kShare + term);
        multiply_add(sums[c], a, b[0], b[1]);
        multiply_add(sums[c + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int c = 0; c < kMostWidth / 8; ++c) {
      if (c * 8 < p.width)
        leave_part(memory.parts + at.group * kRows * p.width, p.width, sums[c], c * 8, at);
    }
  }
  __syncthreads();
  join_parts(memory, memory.parts, p.width, p.projected, p.width, rows, at);
  __syncthreads();
  uint32_t a[4];
  at.load_a<kPadded>(a, memory.projected, 0);
  if (kRank == 8) a[2] = a[3] = 0;  // the terms beyond are B's
#pragma unroll
  for (int c = 0; c < kShare / 8; c += 32 / kRank) {
    float sums[32 / kRank][4] = {};
    uint32_t b[4];
    const int first = at.group * kShare + c * 8;
    if constexpr (kRank == 8) {
      load_tiles(b, memory.dt_proj + (first + at.lane) * kRank);
    } else {
      at.load_b<kRank>(b, memory.dt_proj, first, 0);
    }
#pragma unroll
    for (int i = 0; i < 32 / kRank; ++i) {
      if constexpr (kRank == 8) {
        multiply_add(sums[i], a, b[i], 0);
      } else {
        multiply_add(sums[i], a, b[2 * i], b[2 * i + 1]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bfloat16* to = memory.rows + (at.row() + 8 * half) * kPitch + first + i * 8 + at.column();
        *reinterpret_cast<uint32_t*>(to) = two_words(sums[i][2 * half], sums[i][2 * half + 1]);
      }
    }
  }
  __syncthreads();
  store_rows<kInner>(p.delta, memory.rows, rows, at);
}

/// dB and dC, from what the scan's blocks leave, to shared and to global memory. Rounded after the
/// last sum, as where a launch of its own adds them.
template <int kRank, class Shared>
__device__ __forceinline__ void add_scan_parts(Shared& memory, const ProjectionsBackwardParams& p,
                                               int rows, const Place& at) {
  const int columns = p.width - kRank, packs = columns / 4;
  const int64_t part = p.rows * columns;
  constexpr int kInFlight = 8;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * packs; i += kThreads) {
    const int row = i / packs, column = i % packs * 4;
    const float* from = p.parts + (at.first_row + row) * columns + column;
    float sum[4] = {};
#pragma unroll 1
    for (int n = 0; n < p.n_parts; n += kInFlight) {
      float4 next[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        next[j] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        if (n + j < p.n_parts) next[j] = *reinterpret_cast<const float4*>(from);
        from += part;
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        sum[0] += next[j].x, sum[1] += next[j].y, sum[2] += next[j].z, sum[3] += next[j].w;
      }
    }
    const uint2 words = make_uint2(two_words(sum[0], sum[1]), two_words(sum[2], sum[3]));
    *reinterpret_cast<uint2*>(memory.projected + row * kPadded + kRank + column) = words;
    auto* to = static_cast<bfloat16*>(p.dprojected) + (at.first_row + row) * p.width;
    *reinterpret_cast<uint2*>(to + kRank + column) = words;
  }
}

template <int kInner, int kRank>
__global__ void __launch_bounds__(kThreads, 3)
    projections_backward_kernel(const __grid_constant__ ProjectionsBackwardParams p) {
  constexpr int kPitch = kRowPitch<kInner>, kShare = kInner / kGroups;
  auto& memory = *dynamic_shared<Memory<kInner, kRank>>();
  const Place at;
  const int rows = static_cast<int>(min(int64_t{kRows}, p.rows - at.first_row));
  auto* dprojected = static_cast<bfloat16*>(p.dprojected) + at.first_row * p.width;
  fetch_early(p.x_proj, int64_t{2} * p.width * kInner);
  fetch_early(p.dt_proj, int64_t{2} * kRank * kInner);
  wait_for_stream();
  send_all<kInner, kRank>(memory, p, p.ddelta, rows, at);
  if (p.parts == nullptr) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows * p.width / kPack; i += kThreads) {
      const int row = i / (p.width / kPack), pack = i % (p.width / kPack);
      if (pack < kRank / kPack) continue;
      copy_async(memory.projected + row * kPadded + pack * kPack,
                 dprojected + row * p.width + pack * kPack, 16);
    }
  }
  commit_copies();
  send<kInner / kPack, kPitch, kRows>(memory.more,
                                      static_cast<bfloat16*>(p.du) + at.first_row * kInner, rows);
  commit_copies();
  if (p.parts != nullptr) add_scan_parts<kRank>(memory, p, rows, at);
  // Terms that don't exist are zero in both factors.
  constexpr int kPacks = kInner / kPack;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (kMostWidth - p.width) * kPacks; i += kThreads) {
    bfloat16* to = memory.x_proj + (p.width + i / kPacks) * kPitch + i % kPacks * kPack;
    *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
  }
  const int row = static_cast<int>(threadIdx.x) % kRows;
  for (int column = p.width + static_cast<int>(threadIdx.x) / kRows * kPack; column < kMostWidth;
       column += kWarps * kPack) {
    *reinterpret_cast<uint4*>(memory.projected + row * kPadded + column) = make_uint4(0, 0, 0, 0);
  }
  wait_for_copies<1>();
  __syncthreads();
  auto* const parts = reinterpret_cast<float*>(memory.rows);
  static_assert(sizeof(float) * kGroups * kRows * kRank <= sizeof(memory.rows));
  {
    float sums[2][4] = {};
#pragma unroll
    for (int term = 0; term < kShare; term += 32) {
      const int first = at.group * kShare + term;
      uint32_t a[2][4], b[4];
      at.load_a<kPitch>(a[0], memory.rows, first);
      at.load_a<kPitch>(a[1], memory.rows, first + 16);
      if constexpr (kRank == 8) {
        load_tiles_transposed(b, memory.dt_proj + (first + at.lane) * kRank);
        multiply_add(sums[0], a[0], b[0], b[1]);
        multiply_add(sums[1], a[1], b[2], b[3]);
      } else {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          at.load_b_by_term<kRank>(b, memory.dt_proj, 0, first + 16 * k);
          multiply_add(sums[0], a[k], b[0], b[1]);
          multiply_add(sums[1], a[k], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // the parts take the place of ddelta
    float* const part = parts + at.group * kRows * kRank;
    if constexpr (kRank == 8) {  // even and odd halves of the same columns
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][e] += sums[1][e];
    } else {
      leave_part(part, kRank, sums[1], 8, at);
    }
    leave_part(part, kRank, sums[0], 0, at);
  }
  __syncthreads();
  join_parts(memory, parts, kRank, p.dprojected, p.width, rows, at);
  wait_for_copies<0>();
  __syncthreads();
  uint32_t a[kMostWidth / 16][4];
#pragma unroll
  for (int k = 0; k < kMostWidth / 16; ++k) at.load_a<kPadded>(a[k], memory.projected, 16 * k);
#pragma unroll
  for (int c = 0; c < kShare / 8; c += 2) {
    const int first = at.group * kShare + c * 8;
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kMostWidth / 16; ++k) {
      uint32_t b[4];
      at.load_b_by_term<kPitch>(b, memory.x_proj, first, 16 * k);
      multiply_add(sums[0], a[k], b[0], b[1]);
      multiply_add(sums[1], a[k], b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bfloat16* to = memory.more + (at.row() + 8 * half) * kPitch + first + i * 8 + at.column();
        float du[2];
        load_pack<bfloat16, 2>(to, du);
        store_pack<bfloat16, 2>(to, {du[0] + sums[i][2 * half], du[1] + sums[i][2 * half + 1]});
      }
    }
  }
  __syncthreads();
  store_rows<kInner>(p.du, memory.more, rows, at);
}

/// The kernel of these widths that `kernel_of` names.
template <class Params, class F>
cudaError_t launch_blocks(const Params& p, cudaStream_t stream, const F& kernel_of) {
  const auto launch = [&]<int kInner, int kRank>() {
    const auto blocks = static_cast<unsigned>((p.rows + kRows - 1) / kRows);
    return launch_early(kernel_of.template operator()<kInner, kRank>(), blocks, kThreads,
                        sizeof(Memory<kInner, kRank>), stream, p);
  };
  if (p.inner == 256) {
    return p.rank == 8 ? launch.template operator()<256, 8>()
                       : launch.template operator()<256, 16>();
  }
  return p.rank == 8 ? launch.template operator()<512, 8>() : launch.template operator()<512, 16>();
}

template <bool kConvolves>
cudaError_t launch_forward(const ProjectionsParams& p, cudaStream_t stream) {
  return launch_blocks(p, stream, [&]<int kInner, int kRank>() {
    return projections_kernel<kInner, kRank, kConvolves>;
  });
}

}  // namespace

int projections_shared_bytes(int64_t inner) {
  return static_cast<int>(inner == 256 ? sizeof(Memory<256, 16>) : sizeof(Memory<512, 16>));
}

cudaError_t launch_projections(const ProjectionsParams& p, cudaStream_t stream) {
  if (!projections_fit(p.rows, p.inner, p.rank, p.width)) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  return p.convolution.x != nullptr ? launch_forward<true>(p, stream)
                                    : launch_forward<false>(p, stream);
}

cudaError_t launch_projections_backward(const ProjectionsBackwardParams& p, cudaStream_t stream) {
  if (!projections_fit(p.rows, p.inner, p.rank, p.width)) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  return launch_blocks(p, stream, [&]<int kInner, int kRank>() {
    return projections_backward_kernel<kInner, kRank>;
  });
}

}  // namespace dmamba::kernels
