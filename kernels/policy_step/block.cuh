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

struct Quotient {
  int whole, rest;
};

/// i / by for i up to 2^20, without the 25 instructions of an integer division: the quotient is
/// never as near to the next integer as rounding reaches.
__device__ __forceinline__ Quotient divide(int i, int by) {
  const float exact = (static_cast<float>(i) + 0.5F) * reciprocal_fast(static_cast<float>(by));
  const int whole = __float2int_rz(exact);
  return {whole, i - whole * by};
}

/// In shared memory, token `k` of environment `e` is token 3 e + k.
///
/// Loops over items are not unrolled, and a product has one place in the code: the step walks
/// through all of it once a layer, and the instruction cache must hold it.
template <int kEnvs>
class PolicyBlock {
 protected:
  using Tokens = PolicyTokens<kEnvs>;
  static constexpr int kAll = Tokens::kAll, kMine = Tokens::kMine, kPitch = Tokens::kPitch;
  static constexpr int kWarps = kPolicyThreads / 32;
  static constexpr int kTurns = kPolicyWidest / 32;
  static constexpr int kMostSplits = 16;  // of a product's rows: there is a sum to add up for each

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

  /// kRows rows of a matrix, `step` rows apart, times their inputs: all loads, then all products.
  template <int kRows>
  __device__ static void multiply_rows(const float* weights, int weights_step, const float* tokens,
                                       int tokens_step, float (&sums)[kMine][4]) {
    float4 w[kRows];
    float values[kRows][kMine];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      w[r] = quad_at(weights + r * weights_step);
      load_tokens(tokens + r * tokens_step, values[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        sums[i][0] = fmaf(w[r].x, values[r][i], sums[i][0]);
        sums[i][1] = fmaf(w[r].y, values[r][i], sums[i][1]);
        sums[i][2] = fmaf(w[r].z, values[r][i], sums[i][2]);
        sums[i][3] = fmaf(w[r].w, values[r][i], sums[i][3]);
      }
    }
  }

  /// The next matrix times `activations` (rows, pitch): its sums in parts, see quad_sum_at().
  /// Begins after a barrier of the block, ends with one.
  __device__ void multiply(const float* activations, const PolicyStepShape& shape) {
    constexpr int kRows = kMine <= 6 ? 4 : 2;  // at once
    const int cols = shape.cols, quads = cols / 4, places = quads * Tokens::kGroups;
    splits_ = min(min(divide(kPolicyThreads, places).whole, kMostSplits), shape.rows);
    columns_ = cols;
    const Quotient place = divide(thread_, places), mine = divide(place.rest, quads);
    const int split = place.whole, group = mine.whole, quad = mine.rest;
    const int weights_step = splits_ * cols, tokens_step = splits_ * kPitch;
    const bool works = split < splits_;
    float sums[kMine][4] = {};
#pragma unroll 1
    for (int begin = 0; begin < shape.rows;) {
      const int rows = min(shape.rows - begin, shape.piece);
      const float* weights = weights_.take() + split * cols + 4 * quad;
      const float* tokens = activations + (begin + split) * kPitch + group * kMine;
      if (works) {
        int row = split;
#pragma unroll 1
        for (; row + (kRows - 1) * splits_ < rows; row += kRows * splits_) {
          multiply_rows<kRows>(weights, weights_step, tokens, tokens_step, sums);
          weights += kRows * weights_step;
          tokens += kRows * tokens_step;
        }
#pragma unroll 1
        for (; row < rows; row += splits_) {
          multiply_rows<1>(weights, weights_step, tokens, tokens_step, sums);
          weights += weights_step;
          tokens += tokens_step;
        }
      }
      begin += rows;
      if (begin == shape.rows && works) {
        float* part = at(m_.sums) + (split * kAll + group * kMine) * cols + 4 * quad;
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          quad_at(part + i * cols) = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        }
      }
      __syncthreads();
      weights_.give_back();
    }
  }

  /// What multiply() left for a token and four columns.
  __device__ float4 quad_sum_at(int token, int column) const {
    const float* part = at(m_.sums) + token * columns_ + column;
    const int stride = kAll * columns_;
    float4 sum{};
#pragma unroll 4
    for (int i = 0; i < splits_; ++i, part += stride) sum = sum + quad_at(part);
    return sum;
  }

  /// The same for an environment's tokens and one column.
  __device__ void sums_at(int env, int column, float (&sums)[kPolicyTokens]) const {
    const float* part = at(m_.sums) + kPolicyTokens * env * columns_ + column;
    const int stride = kAll * columns_;
#pragma unroll
    for (float& sum : sums) sum = 0.0F;
#pragma unroll 4
    for (int i = 0; i < splits_; ++i, part += stride) {
#pragma unroll
      for (int k = 0; k < kPolicyTokens; ++k) sums[k] += part[k * columns_];
    }
  }

  struct Row {
    float v[kTurns];  // every 32nd column
  };

  /// By a warp: the row's LayerNorm, with weight and then bias at `parameters`.
  __device__ Row normed(const float* x, const float* parameters) const {
    constexpr float kEpsilon = 1e-5F;
    const int d = p_.sizes.d_model, lane = thread_ % 32;
    const float share = 1.0F / static_cast<float>(d);
    Row row{};
    float sum = 0.0F, squares = 0.0F;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      if (32 * i < d) sum += row.v[i] = x[32 * i + lane];
    }
    const float mean = sum_warp(sum) * share;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      if (32 * i < d) squares = fmaf(row.v[i] - mean, row.v[i] - mean, squares);
    }
    const float scale = rsqrtf(fmaf(sum_warp(squares), share, kEpsilon));
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
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
#pragma unroll 1
    for (int i = 0; i < ranks; ++i) send((rank_ + i) & (ranks - 1), here, value, barrier);
  }

  /// x_proj's sums of all ranks, in all ranks.
  __device__ void share_projected(int layer) {
    const int quads = columns_ / 4, size = kAll * columns_, ranks = p_.layout.ranks;
    uint64_t* barrier = &barriers()->projected;
    expect(barrier, ranks * size);
#pragma unroll 1
    for (int i = thread_; i < kAll * quads; i += kPolicyThreads) {
      const Quotient item = divide(i, quads);
      send_to_all(at(m_.x_parts) + rank_ * size + 4 * i, quad_sum_at(item.whole, 4 * item.rest),
                  barrier);
    }
    wait_for_phase(barrier, static_cast<uint32_t>(layer) & 1U);
#pragma unroll 1
    for (int i = thread_; i < size; i += kPolicyThreads) {
      float sum = 0.0F;
#pragma unroll 2
      for (int rank = 0; rank < ranks; ++rank) sum += at(m_.x_parts)[rank * size + i];
      at(m_.projected)[i] = sum;
    }
    __syncthreads();
  }

  /// Sends the product's sums to the ranks that own the columns.
  __device__ void send_parts() {
    const int d = p_.sizes.d_model, width = p_.layout.columns;
    uint64_t* barrier = &barriers()->parts;
    expect(barrier, kAll * d);
#pragma unroll 1
    for (int i = thread_; i < kAll * (d / 4); i += kPolicyThreads) {
      const Quotient item = divide(i, d / 4), owner = divide(4 * item.rest, width);
      send(owner.whole, at(m_.parts) + (rank_ * kAll + item.whole) * width + owner.rest,
           quad_sum_at(item.whole, 4 * item.rest), barrier);
    }
    wait_for_phase(barrier, parts_phase_);
    parts_phase_ ^= 1U;
  }

  /// Adds to the stream: sums of all the columns over the inputs of this rank (then `bias` too), or
  /// those of this rank's columns over all inputs. A rank adds up its own columns and hands them
  /// round.
  __device__ void add_to_stream(bool own_inputs, const float* bias) {
    const int d = p_.sizes.d_model, width = p_.layout.columns, ranks = p_.layout.ranks;
    if (own_inputs) send_parts();
    expect(&barriers()->stream, kAll * d);
#pragma unroll 1
    for (int i = thread_; i < kAll * (width / 4); i += kPolicyThreads) {
      const Quotient item = divide(i, width / 4);
      const int token = item.whole, column = 4 * item.rest;
      float* place = at(m_.x) + token * d + rank_ * width + column;
      float4 sum = quad_at(place);
      if (bias != nullptr) sum = sum + quad_at(bias + column);
      if (own_inputs) {
#pragma unroll 2
        for (int rank = 0; rank < ranks; ++rank) {
          sum = sum + quad_at(at(m_.parts) + (rank * kAll + token) * width + column);
        }
      } else {
        sum = sum + quad_sum_at(token, column);
      }
      send_to_all(place, sum, &barriers()->stream);
    }
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
