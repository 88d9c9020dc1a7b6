// The gradients of the embedding's parameters in one launch, whose blocks have two roles; both wait
// for the gradients of the tokens alone.
//
//   linear  a block has 32 columns, 8 features of a kind (the bias is its last), 256 steps: it
//           stages their values, holds 4 x 8 sums a thread, adds them up. Of several slices of
//           steps the last block to end adds up all, in their order (a ticket, an integer, counts
//           them: which block is last changes no bit).
//   time    a block has 16 rows of the table and 32 columns: it marks the steps of its rows in bit
//           masks, makes a list of them in order, and adds up what they point to. Rows of many
//           steps (padding has time 0) are shared by the block. Rows without steps become zero.
//
// All orders come from sizes and timesteps alone. At the sizes of RL: the latency of two or three
// rounds of loads. A step's gradients are read once by either role, its values by width / 32
// blocks.
#include <type_traits>

#include "kernels/common/launch.cuh"
#include "kernels/common/storage.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/embedding/launch.h"

namespace dmamba::kernels {
namespace {

constexpr int kWarps = kEmbeddingWarps, kThreads = kWarps * 32;
constexpr int kVector = 4, kPacks = kGradientColumns / kVector;  // a lane's columns; a row's lanes
constexpr int kAtOnce = 8;               // a thread's loads of single numbers
constexpr int kLaneSteps = 32 / kPacks;  // that a warp reads at once

// ---- The linear layers ----

constexpr int kOutputs = kGradientColumns * kGradientFeatures;  // of a block
static_assert(kOutputs == kThreads, "a thread an output");

struct LinearMemory {
  float values[kGradientSteps][kGradientFeatures];
  float sums[kWarps][kOutputs];
  bool last;
};

/// The blocks of the launch, worked out on the host.
struct Plan {
  int groups[kTokenKinds];  // of features, the bias included
  int slices;               // of steps
  int64_t tickets, linear_blocks;
};

/// What a block of the linear layers has to do.
struct LinearBlock {
  int kind, group, columns, slice;  // group: of the kind's features
  int64_t output;                   // where the kind's gradients begin in dlinear
  int64_t ticket;                   // of kind, group and columns
};

__device__ LinearBlock linear_block(const EmbeddingGradientParams& p, const Plan& plan) {
  const auto block = static_cast<int>(blockIdx.x), tickets = static_cast<int>(plan.tickets);
  const int column_blocks = static_cast<int>(p.width) / kGradientColumns;
  LinearBlock b{};
  b.slice = block / tickets;
  b.ticket = block - b.slice * tickets;
  b.group = static_cast<int>(b.ticket) / column_blocks;
  b.columns = static_cast<int>(b.ticket) - b.group * column_blocks;
#pragma unroll
  for (int k = 0; k + 1 < kTokenKinds; ++k) {
    if (b.kind != k || b.group < plan.groups[k]) continue;
    b.kind = k + 1;
    b.group -= plan.groups[k];
    b.output += (p.kinds[k].features + 1) * p.width;
  }
  return b;
}

/// The slice's values of the group's features; 1 for the bias, 0 beyond it and the last step.
__device__ __forceinline__ void stage_values(const TokenKind& kind, int group, int64_t first,
                                             int count, LinearMemory& memory) {
  constexpr int kTurns = kGradientSteps * kGradientFeatures / kThreads;
  float values[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), step = at / kGradientFeatures;
    const int64_t feature = int64_t{group} * kGradientFeatures + at % kGradientFeatures;
    values[i] = feature == kind.features ? 1.0F : 0.0F;
    if (step < count && feature < kind.features) {
      values[i] = kind.values[(first + step) * kind.features + feature];
    }
  }
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    (&memory.values[0][0])[i * kThreads + static_cast<int>(threadIdx.x)] = values[i];
  }
}

/// This thread's output of the block: column threadIdx.x / 8, feature threadIdx.x % 8.
__device__ float sum_slice(const EmbeddingGradientParams& p, const LinearBlock& b,
                           LinearMemory& memory) {
  constexpr int kRounds = kGradientSteps / (kWarps * kLaneSteps), kHalf = kRounds / 2;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = int64_t{b.slice} * kGradientSteps;
  const auto count = static_cast<int>(min(int64_t{kGradientSteps}, p.steps - first));
  const int64_t pitch = kTokenKinds * p.width;
  const float* gradients = p.dtokens + first * pitch + b.kind * p.width +
                           b.columns * kGradientColumns + lane % kPacks * kVector;
  const auto step_of = [&](int round) {
    return (round * kWarps + warp) * kLaneSteps + lane / kPacks;
  };
  Pack<float, kVector> packs[kHalf];
  const auto load = [&](int round) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int step = step_of(round + i);
      packs[i] = fetch<kVector, true>(gradients + step * pitch, step < count ? kVector : 0, true);
    }
  };
  load(0);
  stage_values(p.kinds[b.kind], b.group, first, count, memory);
  __syncthreads();
  float sums[kVector * kGradientFeatures] = {};  // a column's features side by side
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      float values[kGradientFeatures];
      load_pack<float, kGradientFeatures>(memory.values[step_of(half * kHalf + i)], values);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
#pragma unroll
        for (int f = 0; f < kGradientFeatures; ++f) {
          float& sum = sums[e * kGradientFeatures + f];
          sum = fmaf(packs[i].v[e], values[f], sum);
        }
      }
    }
    if (half == 0) load(kHalf);
  }
  // Over the lanes that have other steps; each is left with one of its pack's columns.
  static_assert(kLaneSteps == kVector);
  const int left = reduce_scatter<kLaneSteps, kPacks, kVector * kGradientFeatures>(sums, lane);
  const int column = lane % kPacks * kVector + left / kGradientFeatures;
  float own[kGradientFeatures];
#pragma unroll
  for (int f = 0; f < kGradientFeatures; ++f) own[f] = sums[f];
  store_pack<float, kGradientFeatures>(&memory.sums[warp][column * kGradientFeatures], own);
  __syncthreads();
  float sum = memory.sums[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += memory.sums[w][threadIdx.x];
  return sum;
}

/// Adds up the slices in the last of their blocks; false in the others.
__device__ bool add_slices(const EmbeddingGradientParams& p, const Plan& plan, const LinearBlock& b,
                           LinearMemory& memory, float& sum) {
  if (plan.slices == 1) return true;
  float* scratch = p.scratch + b.ticket * kOutputs + threadIdx.x;
  const int64_t pitch = plan.tickets * kOutputs;
  scratch[b.slice * pitch] = sum;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) memory.last = atomicAdd(p.tickets + b.ticket, 1) == plan.slices - 1;
  __syncthreads();
  if (!memory.last) return false;
  __threadfence();
  sum = 0.0F;
#pragma unroll 1
  for (int first = 0; first < plan.slices; first += kAtOnce) {
    float parts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int slice = first + i;
      parts[i] = slice < plan.slices ? __ldcg(scratch + slice * pitch) : 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += parts[i];
  }
  return true;
}

__device__ void linear_gradient(const EmbeddingGradientParams& p, const Plan& plan,
                                LinearMemory& memory) {
  const LinearBlock b = linear_block(p, plan);
  float sum = sum_slice(p, b, memory);
  if (!add_slices(p, plan, b, memory, sum)) return;
  const int64_t features = p.kinds[b.kind].features;
  const int64_t column = b.columns * kGradientColumns + threadIdx.x / kGradientFeatures;
  const int64_t feature = b.group * kGradientFeatures + threadIdx.x % kGradientFeatures;
  float* to = p.dlinear + b.output;
  if (feature < features) to[column * features + feature] = sum;
  if (feature == features) to[features * p.width + column] = sum;
}

// ---- The table ----

constexpr int kRows = 16;  // of a block
constexpr int kWarpRows = kRows / kWarps;
constexpr int kMarked = 8192;  // steps that are looked at together
constexpr int kWords = kMarked / 32;
constexpr int kLongRow = 32;  // a row of more steps is the whole block's
constexpr int kInFlight = 4;  // loads of a thread

struct TimeMemory {
  uint32_t marks[kRows][kWords];  // a bit a step
  uint16_t list[kMarked];         // row by row, steps in order
  int counts[kRows];
  float sums[kRows][kGradientColumns];
  float warps[kWarps][kGradientColumns];
};

/// Marks the steps [first, first + count) that belong to the block's rows.
__device__ void mark_steps(const EmbeddingGradientParams& p, int64_t first_row, int64_t first,
                           int count, TimeMemory& memory) {
  constexpr int kEach = kThreads / kRows;  // threads of a row
  for (int w = static_cast<int>(threadIdx.x) % kEach; w * 32 < count; w += kEach) {
    memory.marks[threadIdx.x / kEach][w] = 0;
  }
  __syncthreads();
#pragma unroll 1
  for (int begin = static_cast<int>(threadIdx.x); begin < count; begin += kAtOnce * kThreads) {
    int64_t times[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = begin + j * kThreads;
      times[j] = i < count ? p.timesteps[first + i] : 0;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = begin + j * kThreads;
      const int64_t t = times[j], last = p.max_timestep - 1;
      const int64_t row = (t < 0 ? 0 : t < last ? t : last) - first_row;
      if (i < count && row >= 0 && row < kRows) {
        atomicOr(&memory.marks[row][i / 32], 1U << i % 32);
      }
    }
  }
  __syncthreads();
}

/// Makes the list of marked steps; the place where this warp's rows, warp and warp + kWarps, begin
/// in it.
__device__ void list_steps(int count, TimeMemory& memory, int (&begins)[kWarpRows]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int words = (count + 31) / 32, each = (words + 31) / 32;  // words of a lane
  const int from = min(lane * each, words), to = min(from + each, words);
  int before[kWarpRows];  // this lane's marks, in its row
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp + r * kWarps;
    int mine = 0;
#pragma unroll 2
    for (int w = from; w < to; ++w) mine += __popc(memory.marks[row][w]);
    int sum = mine;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int other = __shfl_up_sync(~0U, sum, lanes);
      if (lane >= lanes) sum += other;
    }
    before[r] = sum - mine;
    if (lane == 31) memory.counts[row] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp + r * kWarps;
    begins[r] = 0;
#pragma unroll
    for (int other = 0; other < kRows; ++other) {
      begins[r] += other < row ? memory.counts[other] : 0;
    }
    int at = begins[r] + before[r];
#pragma unroll 1
    for (int w = from; w < to; ++w) {
#pragma unroll 1
      for (uint32_t marks = memory.marks[row][w]; marks != 0; marks &= marks - 1) {
        memory.list[at++] = static_cast<uint16_t>(w * 32 + __ffs(static_cast<int>(marks)) - 1);
      }
    }
  }
  __syncthreads();
}

/// The sum of every `stride`-th of `count` listed steps from `first` on.
__device__ void add_steps(const float* steps, int64_t width, const uint16_t* list, int first,
                          int count, int stride, float (&sum)[kVector]) {
#pragma unroll 1
  for (int i = first; i < count; i += kInFlight * stride) {
    Pack<float, kVector> packs[kInFlight];
#pragma unroll
    for (int f = 0; f < kInFlight; ++f) {
      const bool there = i + f * stride < count;
      const int step = there ? list[i + f * stride] : 0;
      packs[f] = fetch<kVector, true>(steps + step * width, there ? kVector : 0, true);
    }
#pragma unroll
    for (int f = 0; f < kInFlight; ++f) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum[e] += packs[f].v[e];
    }
  }
}

/// Over `kGroups` neighbouring groups of lanes that have the same columns.
template <int kGroups>
__device__ void add_groups(float (&sum)[kVector]) {
#pragma unroll
  for (int lanes = kPacks; lanes < kPacks * kGroups; lanes *= 2) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum[e] += __shfl_xor_sync(~0U, sum[e], lanes);
  }
}

/// Adds what the listed steps have. `steps`: dsteps of the first that the list can name, at this
/// lane's columns.
__device__ void add_listed(const float* steps, int64_t width, const int (&begins)[kWarpRows],
                           TimeMemory& memory) {
  static_assert(kWarpRows == 2);
  constexpr int kGroups = kLaneSteps / kWarpRows;  // that share a short row; both rows at a time
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / kPacks, column = lane % kPacks * kVector;
  const int own = group / kGroups, own_row = warp + own * kWarps;
  const int own_count = memory.counts[own_row] > kLongRow ? 0 : memory.counts[own_row];
  float own_sum[kVector] = {};
  add_steps(steps, width, memory.list + (own == 0 ? begins[0] : begins[1]), group % kGroups,
            own_count, kGroups, own_sum);
  add_groups<kGroups>(own_sum);
  if (group % kGroups == 0) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) memory.sums[own_row][column + e] += own_sum[e];
  }
  int begin = 0;
  for (int row = 0; row < kRows; ++row) {
    const int count = memory.counts[row];
    if (count > kLongRow) {
      float sum[kVector] = {};
      add_steps(steps, width, memory.list + begin, warp * kLaneSteps + group, count,
                kWarps * kLaneSteps, sum);
      add_groups<kLaneSteps>(sum);
      __syncthreads();
      if (group == 0) store_pack<float, kVector>(&memory.warps[warp][column], sum);
      __syncthreads();
      if (threadIdx.x < kGradientColumns) {
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          memory.sums[row][threadIdx.x] += memory.warps[w][threadIdx.x];
        }
      }
    }
    begin += count;
  }
}

__device__ void time_gradient(const EmbeddingGradientParams& p, int64_t block, TimeMemory& memory) {
  const int column_blocks = static_cast<int>(p.width) / kGradientColumns;
  const int64_t first_row = block / column_blocks * kRows;
  const int64_t first_column = block % column_blocks * kGradientColumns;
  float* sums = &memory.sums[0][0];
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kGradientColumns; i += kThreads) {
    sums[i] = 0.0F;
  }
  const float* steps = p.dsteps + first_column + threadIdx.x % kPacks * kVector;
  for (int64_t first = 0; first < p.steps; first += kMarked) {
    const auto count = static_cast<int>(min(int64_t{kMarked}, p.steps - first));
    int begins[kWarpRows];
    mark_steps(p, first_row, first, count, memory);
    list_steps(count, memory, begins);
    add_listed(steps + first * p.width, p.width, begins, memory);
    __syncthreads();
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kGradientColumns; i += kThreads) {
    const int64_t row = first_row + i / kGradientColumns;
    if (row >= p.max_timestep) break;
    p.dtime[row * p.width + first_column + i % kGradientColumns] = sums[i];
  }
}

union Memory {
  LinearMemory linear;
  TimeMemory time;
};

__global__ void __launch_bounds__(kThreads, 3)
    gradients_kernel(const __grid_constant__ EmbeddingGradientParams p,
                     const __grid_constant__ Plan plan) {
  wait_for_stream();
  __shared__ __align__(128) unsigned char bytes[sizeof(Memory)];
  auto& memory = reinterpret_cast<Memory&>(bytes);
  if (blockIdx.x < plan.linear_blocks) {
    linear_gradient(p, plan, memory.linear);
  } else {
    time_gradient(p, blockIdx.x - plan.linear_blocks, memory.time);
  }
}

}  // namespace

cudaError_t launch_embedding_gradients(const EmbeddingGradientParams& p, cudaStream_t stream) {
  if (!norm_width_fits(p.width)) return cudaErrorInvalidValue;
  Plan plan{};
  for (int k = 0; k < kTokenKinds; ++k) {
    plan.groups[k] = static_cast<int>(feature_groups(p.kinds[k].features));
  }
  plan.slices = static_cast<int>(embedding_slices(p.steps));
  plan.tickets = embedding_tickets(p.kinds, p.width);
  plan.linear_blocks = plan.slices * plan.tickets;
  const int64_t time_blocks = (p.max_timestep + kRows - 1) / kRows * (p.width / kGradientColumns);
  return launch_early(gradients_kernel, static_cast<unsigned>(plan.linear_blocks + time_blocks),
                      kThreads, 0, stream, p, plan);
}

}  // namespace dmamba::kernels
