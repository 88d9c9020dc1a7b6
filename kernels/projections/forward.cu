// x_proj and dt_proj, between the convolution and the scan, in one launch; at the sizes of RL two
// small products whose launches take longer than they do.
//
// u = SiLU(convolution of x), where it is asked for: three more tokens, that reach into the
// block's; projected = u x_proj^T (the terms shared among four groups of warps), dt its first
// columns, delta = dt dt_proj^T. Floor: 1.1 KB read and written a token in bfloat16.
#include "kernels/common/math.cuh"
#include "kernels/projections/block.cuh"

namespace dmamba::kernels {
namespace {

using namespace projections;

/// Asks for x and the three tokens before.
template <class Memory>
__device__ __forceinline__ void send_inputs(Memory& memory, const ProjectionsConvolution& c,
                                            int rows, const Place& at) {
  using T = typename Memory::T;
  constexpr int kPacks = Memory::kInner / kPack<T>, kTurn = kThreads / kPacks;
  const int first = static_cast<int>(threadIdx.x) / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks * kPack<T>;
  const int64_t token = at.first_row - kPairHalo + first;
  const T* from = static_cast<const T*>(c.x) + token * c.x_stride + pack;
  T* const to = memory.more + first * Memory::kPitch + pack;
#pragma unroll
  for (int row = 0; row < kRows + kPairHalo; row += kTurn) {
    if (first + row < rows + kPairHalo) {
      const bool there = token + row >= 0;
      copy_async(to + row * Memory::kPitch, there ? from : c.x, there ? 16 : 0);
    }
    from += kTurn * c.x_stride;
  }
}

template <class Memory>
__device__ __forceinline__ void note_flags(Memory& memory, const ProjectionsConvolution& c,
                                           int rows, const Place& at) {
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
template <class Memory>
__device__ __forceinline__ void convolve(Memory& memory, const PairWeights& weights) {
  using T = typename Memory::T;
  constexpr int kPairs = Memory::kInner / 2, kShare = kRows * kPairs / kThreads;
  constexpr int kPitch = Memory::kPitch;
  const int channel = static_cast<int>(threadIdx.x) % kPairs * 2;
  const int first = static_cast<int>(threadIdx.x) / kPairs * kShare;
  const T* x = memory.more + first * kPitch + channel;
  const uint2* tokens = memory.tokens + first;
  T* u = memory.rows + (first - kPairHalo) * kPitch + channel;
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
    store_pack<T, 2>(u + row * kPitch, y);
    move_window(window, v);
  }
}

/// projected's parts, of u in `rows`: of the group's terms.
template <class Memory>
__device__ __forceinline__ void project(Memory& memory, int width, const Place& at) {
  using T = typename Memory::T;
  constexpr int kPitch = Memory::kPitch, kShare = Memory::kInner / kGroups;
  float sums[kMostWidth / 8][4] = {};
#pragma unroll
  for (int term = 0; term < kShare; term += kStep<T>) {
    uint32_t a[4], b[4];
    at.load_a<kPitch>(a, memory.rows, at.group * kShare + term);
#pragma unroll
    for (int c = 0; c < kMostWidth / 8; c += 2) {  // some may not exist, and are not left
      at.load_b<kPitch>(b, memory.x_proj, c * 8, at.group * kShare + term);
      multiply<T>(sums[c], a, b[0], b[1]);
      multiply<T>(sums[c + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int c = 0; c < kMostWidth / 8; ++c) {
    if (c * 8 < width)
      leave_part(memory.parts + at.group * kRows * width, width, sums[c], c * 8, at);
  }
}

/// delta of the group's channels, of dt in `projected`, to `rows`.
template <class Memory>
__device__ __forceinline__ void project_dt(Memory& memory, const Place& at) {
  using T = typename Memory::T;
  constexpr int kRank = Memory::kRank, kShare = Memory::kInner / kGroups;
  constexpr bool kHalf = kRank < kStep<T>;  // a step is longer than the terms
  constexpr int kSteps = kHalf ? 1 : kRank / kStep<T>, kTogether = kHalf ? 4 : 2;
  uint32_t a[kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) at.load_a<kPadded<T>>(a[k], memory.projected, k * kStep<T>);
  if (kHalf) a[0][2] = a[0][3] = 0;  // the terms beyond are B's
#pragma unroll
  for (int c = 0; c < kShare / 8; c += kTogether) {
    float sums[kTogether][4] = {};
    uint32_t b[4];
    const int first = at.group * kShare + c * 8;
    if constexpr (kHalf) {
      load_tiles(b, memory.dt_proj + (first + at.lane) * kRank);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) multiply<T>(sums[i], a[0], b[i], 0);
    } else {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        at.load_b<kRank>(b, memory.dt_proj, first, k * kStep<T>);
        multiply<T>(sums[0], a[k], b[0], b[1]);
        multiply<T>(sums[1], a[k], b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* to = memory.rows + (at.row() + 8 * half) * Memory::kPitch + first + i * 8 + at.column();
        store_pack<T, 2>(to, {sums[i][2 * half], sums[i][2 * half + 1]});
      }
    }
  }
}

template <class T, int kInner, int kRank, bool kConvolves>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    projections_kernel(const __grid_constant__ ProjectionsParams p) {
  using Shared = Memory<T, kInner, kRank>;
  auto& memory = *dynamic_shared<Shared>();
  const Place at;
  const int rows = static_cast<int>(min(int64_t{kRows}, p.rows - at.first_row));
  fetch_matrices_early<T>(p);
  if constexpr (kConvolves) fetch_early(p.convolution.weight, int64_t{16} * kInner);
  wait_for_stream();
  if constexpr (kConvolves) {
    const ProjectionsConvolution& c = p.convolution;
    send_inputs(memory, c, rows, at);
    commit_copies();
    send_all<Shared::kPitch>(memory, p, nullptr, rows, at);
    commit_copies();
    note_flags(memory, c, rows, at);
    const PairWeights weights(c.weight, c.bias, static_cast<int>(threadIdx.x) % (kInner / 2) * 2);
    wait_for_copies<1>();
    __syncthreads();
    convolve(memory, weights);
  } else {
    send_all<Shared::kPitch>(memory, p, p.u, rows, at);
    commit_copies();
  }
  wait_for_copies<0>();
  __syncthreads();
  if constexpr (kConvolves) store_rows<kInner>(p.u, memory.rows, rows, at);
  project(memory, p.width, at);
  __syncthreads();
  join_parts(memory, memory.parts, p.width, p.projected, p.width, rows, at);
  __syncthreads();
  project_dt(memory, at);
  __syncthreads();
  store_rows<kInner>(p.delta, memory.rows, rows, at);
}

template <bool kConvolves>
cudaError_t launch(const ProjectionsParams& p, cudaStream_t stream) {
  return launch_blocks(p, stream, [&]<class T, int kInner, int kRank>() {
    return projections_kernel<T, kInner, kRank, kConvolves>;
  });
}

}  // namespace

int projections_shared_bytes(int64_t inner, Storage storage) {
  if (storage == Storage::kFloat32) return sizeof(Memory<float, 256, 16>);
  return inner == 256 ? sizeof(Memory<bfloat16, 256, 16>) : sizeof(Memory<bfloat16, 512, 16>);
}

cudaError_t launch_projections(const ProjectionsParams& p, cudaStream_t stream) {
  return p.convolution.x != nullptr ? launch<true>(p, stream) : launch<false>(p, stream);
}

}  // namespace dmamba::kernels
