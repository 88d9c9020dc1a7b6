// Back through x_proj and dt_proj in one launch: d dt = ddelta dt_proj (the terms shared among four
// groups of warps), du += (d dt, dB, dC) x_proj, where dB and dC are what the scan's blocks of
// channels leave, added up, or are there already. Floor: 1.7 KB read and written a token in
// bfloat16.
#include "kernels/projections/block.cuh"

namespace dmamba::kernels {
namespace {

using namespace projections;

/// dB and dC, from what the scan's blocks leave, to shared and to global memory. Rounded after the
/// last sum, as where a launch of its own adds them.
template <class Memory>
__device__ __forceinline__ void add_scan_parts(Memory& memory, const ProjectionsBackwardParams& p,
                                               int rows, const Place& at) {
  using T = typename Memory::T;
  constexpr int kRank = Memory::kRank;
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
    store_pack<T, 4>(memory.projected + row * kPadded<T> + kRank + column, sum);
    store_pack<T, 4>(
        static_cast<T*>(p.dprojected) + (at.first_row + row) * p.width + kRank + column, sum);
  }
}

/// Asks for dB and dC, where they are there already.
template <class Memory>
__device__ __forceinline__ void send_projected(Memory& memory, const ProjectionsBackwardParams& p,
                                               int rows, const Place& at) {
  using T = typename Memory::T;
  const auto* from = static_cast<const T*>(p.dprojected) + at.first_row * p.width;
  const int packs = p.width / kPack<T>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * packs; i += kThreads) {
    const int row = i / packs, pack = i % packs;
    if (pack < Memory::kRank / kPack<T>) continue;
    copy_async(memory.projected + row * kPadded<T> + pack * kPack<T>,
               from + row * p.width + pack * kPack<T>, 16);
  }
}

/// Terms that don't exist are zero in both factors.
template <class Memory>
__device__ __forceinline__ void clear_missing(Memory& memory, int width) {
  using T = typename Memory::T;
  constexpr int kInner = Memory::kInner, kPacks = kInner / kPack<T>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (kMostWidth - width) * kPacks; i += kThreads) {
    T* to = memory.x_proj + (width + i / kPacks) * kTermPitch<kInner> + i % kPacks * kPack<T>;
    *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
  }
  const int row = static_cast<int>(threadIdx.x) % kRows;
  for (int column = width + static_cast<int>(threadIdx.x) / kRows * kPack<T>; column < kMostWidth;
       column += kWarps * kPack<T>) {
    *reinterpret_cast<uint4*>(memory.projected + row * kPadded<T> + column) =
        make_uint4(0, 0, 0, 0);
  }
}

/// The group's sums of d dt: columns 0 to 7 and 8 to 15, or two halves of the terms of the eight.
template <class Memory>
__device__ __forceinline__ void multiply_dt(Memory& memory, const Place& at, float (&sums)[2][4]) {
  using T = typename Memory::T;
  constexpr int kRank = Memory::kRank, kShare = Memory::kInner / kGroups;
#pragma unroll
  for (int term = 0; term < kShare; term += 2 * kStep<T>) {
    const int first = at.group * kShare + term;
    uint32_t a[2][4], b[4];
    at.load_a<Memory::kPitch>(a[0], memory.rows, first);
    at.load_a<Memory::kPitch>(a[1], memory.rows, first + kStep<T>);
    if constexpr (kRank == 8) {
      if constexpr (sizeof(T) == 2) {
        load_tiles_transposed(b, memory.dt_proj + (first + at.lane) * kRank);
      } else {
        const float* from = memory.dt_proj + (first + at.lane % 4) * kRank + at.lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = to_tf32(from[i * 4 * kRank]);
      }
      multiply<T>(sums[0], a[0], b[0], b[1]);
      multiply<T>(sums[1], a[1], b[2], b[3]);
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        at.load_b_by_term<kRank>(b, memory.dt_proj, 0, first + k * kStep<T>);
        multiply<T>(sums[0], a[k], b[0], b[1]);
        multiply<T>(sums[1], a[k], b[2], b[3]);
      }
    }
  }
}

/// du += the block's dprojected x_proj, of the group's channels, in `more`.
template <class Memory>
__device__ __forceinline__ void add_to_du(Memory& memory, const Place& at) {
  using T = typename Memory::T;
  constexpr int kShare = Memory::kInner / kGroups, kSteps = kMostWidth / kStep<T>;
  uint32_t a[kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) at.load_a<kPadded<T>>(a[k], memory.projected, kStep<T> * k);
#pragma unroll
  for (int c = 0; c < kShare / 8; c += 2) {
    const int first = at.group * kShare + c * 8;
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t b[4];
      at.load_b_by_term<kTermPitch<Memory::kInner>>(b, memory.x_proj, first, kStep<T> * k);
      multiply<T>(sums[0], a[k], b[0], b[1]);
      multiply<T>(sums[1], a[k], b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* to = memory.more + (at.row() + 8 * half) * Memory::kPitch + first + i * 8 + at.column();
        float du[2];
        load_pack<T, 2>(to, du);
        store_pack<T, 2>(to, {du[0] + sums[i][2 * half], du[1] + sums[i][2 * half + 1]});
      }
    }
  }
}

template <class T, int kInner, int kRank>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    projections_backward_kernel(const __grid_constant__ ProjectionsBackwardParams p) {
  using Shared = Memory<T, kInner, kRank>;
  auto& memory = *dynamic_shared<Shared>();
  const Place at;
  const int rows = static_cast<int>(min(int64_t{kRows}, p.rows - at.first_row));
  fetch_matrices_early<T>(p);
  wait_for_stream();
  send_all<kTermPitch<kInner>>(memory, p, p.ddelta, rows, at);
  if (p.parts == nullptr) send_projected(memory, p, rows, at);
  commit_copies();
  send<kInner / kPack<T>, Shared::kPitch, kRows>(
      memory.more, static_cast<T*>(p.du) + at.first_row * kInner, rows);
  commit_copies();
  if (p.parts != nullptr) add_scan_parts(memory, p, rows, at);
  clear_missing(memory, p.width);
  wait_for_copies<1>();
  __syncthreads();
  auto* const parts = reinterpret_cast<float*>(memory.rows);
  static_assert(sizeof(float) * kGroups * kRows * kRank <= sizeof(memory.rows));
  float sums[2][4] = {};
  multiply_dt(memory, at, sums);
  __syncthreads();  // the parts take the place of ddelta
  float* const part = parts + at.group * kRows * kRank;
  if constexpr (kRank == 8) {  // two halves of the terms of the same columns
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[0][e] += sums[1][e];
  } else {
    leave_part(part, kRank, sums[1], 8, at);
  }
  leave_part(part, kRank, sums[0], 0, at);
  __syncthreads();
  join_parts(memory, parts, kRank, p.dprojected, p.width, rows, at);
  wait_for_copies<0>();
  __syncthreads();
  add_to_du(memory, at);
  __syncthreads();
  store_rows<kInner>(p.du, memory.more, rows, at);
}

}  // namespace

cudaError_t launch_projections_backward(const ProjectionsBackwardParams& p, cudaStream_t stream) {
  return launch_blocks(p, stream, [&]<class T, int kInner, int kRank>() {
    return projections_backward_kernel<T, kInner, kRank>;
  });
}

}  // namespace dmamba::kernels
