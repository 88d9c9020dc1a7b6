// What a block of the policy's step does at every stage: products, sums of their parts, LayerNorm,
// what it sends to the others of its cluster.
#pragma once

#include "kernels/common/math.cuh"
#include "kernels/common/warp.cuh"
#include "kernels/policy_step/memory.cuh"

namespace dmamba::kernels {

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ __forceinline__ float4& quad_at(float* place) {
  return *reinterpret_cast<float4*>(place);
}

__device__ __forceinline__ float4 quad_at(const float* place) {
  return *reinterpret_cast<const float4*>(place);
}

/// In shared memory, token `k` of environment `e` is token 3 e + k.
template <int kEnvs>
class PolicyBlock {
 protected:
  using Tokens = PolicyTokens<kEnvs>;
  static constexpr int kAll = Tokens::kAll, kMine = Tokens::kMine, kPitch = Tokens::kPitch;
  static constexpr int kWarps = kPolicyThreads / 32;

  __device__ PolicyBlock(const PolicyStepParams& p, const PolicyStepMemory& m, float* shared)
      : p_(p),
        m_(m),
        shared_(shared),
        rank_(cluster_rank()),
        first_env_(static_cast<int>(blockIdx.x) / p.layout.ranks * kEnvs),
        thread_(static_cast<int>(threadIdx.x)),
        weights_(p, m, shared, rank_) {}

  __device__ float* at(int offset) const { return shared_ + offset; }
  __device__ PolicyBarriers* barriers() const {
    return reinterpret_cast<PolicyBarriers*>(at(m_.barriers));
  }
  __device__ int* facts() const { return reinterpret_cast<int*>(at(m_.facts)); }
  __device__ bool begins(int env) const { return facts()[2 * kEnvs + env] != 0; }
  __device__ bool exists(int env) const { return first_env_ + env < p_.num_envs; }

  __device__ static void load_tokens(const float* row, float (&values)[kMine]) {
#pragma unroll
    for (int i = 0; i < kMine; i += 4) {
      const float4 v = quad_at(row + i);  // what lies beyond the tokens is not used
      const float four[] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 4 && i + k < kMine; ++k) values[i + k] = four[k];
    }
  }

  /// The next matrix times `activations` (rows, pitch): its sums in parts, see sum_at(). Begins
  /// after a barrier of the block, ends with one.
  __device__ void multiply(const float* activations, const PolicyStepShape& shape) {
    const int quads = shape.cols / 4, places = quads * Tokens::kGroups;
    splits_ = min(kPolicyThreads / places, shape.rows);
    columns_ = shape.cols;
    const int quad = thread_ % quads, group = thread_ / quads % Tokens::kGroups,
              split = thread_ / places;
    const bool works = split < splits_;
    float sums[kMine][4] = {};
    for (int begin = 0; begin < shape.rows;) {
      const int rows = PolicyWeights::rows_from(shape, begin);
      const float* weights = weights_.take() + 4 * quad;
      const float* tokens = activations + begin * kPitch + group * kMine;
      if (works) {
#pragma unroll 4
        for (int row = split; row < rows; row += splits_) {
          const float4 w = quad_at(weights + row * shape.cols);
          float values[kMine];
          load_tokens(tokens + row * kPitch, values);
#pragma unroll
          for (int i = 0; i < kMine; ++i) {
            sums[i][0] = fmaf(w.x, values[i], sums[i][0]);
            sums[i][1] = fmaf(w.y, values[i], sums[i][1]);
            sums[i][2] = fmaf(w.z, values[i], sums[i][2]);
            sums[i][3] = fmaf(w.w, values[i], sums[i][3]);
          }
        }
      }
      begin += rows;
      if (begin == shape.rows && works) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const int token = group * kMine + i;
          quad_at(at(m_.sums) + (split * kAll + token) * shape.cols + 4 * quad) = {
              sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        }
      }
      __syncthreads();
      weights_.give_back();
    }
  }

  /// What multiply() left for a token and column.
  __device__ float sum_at(int token, int column) const {
    const float* part = at(m_.sums) + token * columns_ + column;
    float sum = 0.0F;
#pragma unroll 8
    for (int i = 0; i < splits_; ++i) sum += part[i * kAll * columns_];
    return sum;
  }

  __device__ float4 quad_sum_at(int token, int column) const {
    const float* part = at(m_.sums) + token * columns_ + column;
    float4 sum{};
#pragma unroll 4
    for (int i = 0; i < splits_; ++i) sum = sum + quad_at(part + i * kAll * columns_);
    return sum;
  }

  struct Row {
    float v[kPolicyWidest / 32];  // every 32nd column
  };

  /// By a warp: the row's LayerNorm, with weight and then bias at `parameters`.
  __device__ Row normed(const float* x, const float* parameters) const {
    constexpr float kEpsilon = 1e-5F;
    const int d = p_.sizes.d_model, lane = thread_ % 32;
    Row row{};
    float sum = 0.0F, squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kPolicyWidest / 32; ++i) {
      if (32 * i < d) sum += row.v[i] = x[32 * i + lane];
    }
    const float mean = sum_warp(sum) / static_cast<float>(d);
#pragma unroll
    for (int i = 0; i < kPolicyWidest / 32; ++i) {
      if (32 * i < d) squares = fmaf(row.v[i] - mean, row.v[i] - mean, squares);
    }
    const float scale = rsqrtf(sum_warp(squares) / static_cast<float>(d) + kEpsilon);
#pragma unroll
    for (int i = 0; i < kPolicyWidest / 32; ++i) {
      const int c = 32 * i + lane;
      if (32 * i < d) {
        row.v[i] = fmaf((row.v[i] - mean) * scale, parameters[c], parameters[d + c]);
      }
    }
    return row;
  }

  // ---- What is sent. Every block sends as much to each of the others at each of these times, and
  // goes on when all that is sent to it has come; so when a block sends anew, the others have read
  // what it sent before.

  /// Thread 0 of each block says how much comes.
  __device__ void expect(uint64_t* barrier, int floats) const {
    if (thread_ == 0) expect_bytes(barrier, 4 * floats);
  }

  __device__ void send_to_all(const float* here, float4 value, const uint64_t* barrier) const {
    const int ranks = p_.layout.ranks;
    for (int i = 0; i < ranks; ++i) send((rank_ + i) & (ranks - 1), here, value, barrier);
  }

  /// x_proj's sums of all ranks, in all ranks.
  __device__ void share_projected(int layer) {
    const int quads = columns_ / 4, size = kAll * columns_;
    uint64_t* barrier = &barriers()->projected;
    expect(barrier, p_.layout.ranks * size);
    for (int i = thread_; i < kAll * quads; i += kPolicyThreads) {
      const int token = i / quads, column = i % quads * 4;
      send_to_all(at(m_.x_parts) + rank_ * size + token * columns_ + column,
                  quad_sum_at(token, column), barrier);
    }
    wait_for_phase(barrier, static_cast<uint32_t>(layer) & 1U);
    for (int i = thread_; i < size; i += kPolicyThreads) {
      float sum = 0.0F;
      for (int rank = 0; rank < p_.layout.ranks; ++rank) sum += at(m_.x_parts)[rank * size + i];
      at(m_.projected)[i] = sum;
    }
    __syncthreads();
  }

  /// The product's sums of all ranks and the bias, added to the stream in all ranks: a rank adds up
  /// its own columns and hands them round.
  __device__ void add_to_stream(const float* bias) {
    const int d = p_.sizes.d_model, width = p_.layout.columns, ranks = p_.layout.ranks;
    uint64_t* barrier = &barriers()->parts;
    expect(barrier, kAll * d);
    for (int i = thread_; i < kAll * (d / 4); i += kPolicyThreads) {
      const int token = i / (d / 4), column = i % (d / 4) * 4;
      send(column / width, at(m_.parts) + (rank_ * kAll + token) * width + column % width,
           quad_sum_at(token, column), barrier);
    }
    wait_for_phase(barrier, parts_phase_);
    parts_phase_ ^= 1U;
    expect(&barriers()->stream, kAll * d);
    for (int i = thread_; i < kAll * (width / 4); i += kPolicyThreads) {
      const int token = i / (width / 4), column = i % (width / 4) * 4;
      float* place = at(m_.x) + token * d + rank_ * width + column;
      float4 sum = quad_at(place);
      if (bias != nullptr) sum = sum + quad_at(bias + column);
      for (int rank = 0; rank < ranks; ++rank) {
        sum = sum + quad_at(at(m_.parts) + (rank * kAll + token) * width + column);
      }
      send_to_all(place, sum, &barriers()->stream);
    }
    wait_for_stream_columns();
  }

  /// All columns of the stream have come.
  __device__ void wait_for_stream_columns() {
    wait_for_phase(&barriers()->stream, stream_phase_);
    stream_phase_ ^= 1U;
  }

  const PolicyStepParams& p_;
  const PolicyStepMemory& m_;
  float* shared_;
  int rank_, first_env_, thread_;
  int splits_ = 0, columns_ = 0;  // of the last product
  uint32_t parts_phase_ = 0, stream_phase_ = 0;
  PolicyWeights weights_;
};

}  // namespace dmamba::kernels
