// How the policy's step lies in shared memory, and the stream of weights through it.
#pragma once

#include <algorithm>

#include "kernels/policy_step/cluster.cuh"
#include "kernels/policy_step/params.h"

namespace dmamba::kernels {

constexpr int kPolicyThreads = 256;
constexpr int kPolicyWidest = 256;  // d_model
constexpr int kMostSlots = 6;
constexpr int kPolicySender = kPolicyThreads - 32;  // a thread of a warp that often has less to do

/// The tokens of kEnvs environments, and how many of them a thread multiplies at once.
template <int kEnvs>
struct PolicyTokens {
  static constexpr int kAll = kPolicyTokens * kEnvs;
  static constexpr int kMine = std::min(kAll, 12);
  static constexpr int kGroups = kAll / kMine;
  static constexpr int kPitch = (kAll + 3) / 4 * 4;  // of a row of activations
};

/// Barriers in shared memory.
struct PolicyBarriers {
  uint64_t weights[kMostSlots];
  uint64_t vectors[2], ends;
  uint64_t projected, parts, stream;  // what is sent
};

/// Offsets in floats.
struct PolicyStepMemory {
  int x;          // (tokens, d_model): the residual stream
  int wide;       // (d_model or inputs, pitch): what all ranks have alike, tokens innermost
  int own;        // (channels or units, pitch): what this one has
  int gate;       // (tokens, channels)
  int sums;       // (splits, tokens, columns of a product)
  int x_parts;    // (ranks, tokens, columns of x_proj): written by all ranks
  int projected;  // (tokens, columns of x_proj)
  int parts;      // (ranks, tokens, columns of this rank): written by all ranks
  int states;     // (envs, kPolicyStateRows, channels)
  int vectors;    // (2, layer_stride): of this layer and the next one
  int ends;
  int facts;     // (3, envs) int: rows of the action's time and of the others', whether it is first
  int barriers;  // PolicyBarriers
  int weights;   // (slots, kPolicySlot)
  int slots;
  int bytes;
};

/// With as many slots as fit; fewer than 2 is too few.
template <int kEnvs>
PolicyStepMemory policy_step_memory(const PolicyStepSizes& s, const PolicyStepLayout& l,
                                    int vectors_size, int most_bytes) {
  using Tokens = PolicyTokens<kEnvs>;
  PolicyStepMemory m{};
  int size = 0;
  const auto take = [&](int& where, int count) {
    where = size;
    size += round_up_to_4(count);
  };
  take(m.x, Tokens::kAll * s.d_model);
  take(m.wide, std::max(s.d_model, l.shapes[kPolicyEmbed].rows) * Tokens::kPitch);
  take(m.own, std::max(l.channels, l.units) * Tokens::kPitch);
  take(m.gate, Tokens::kAll * l.channels);
  take(m.sums, kPolicyThreads * 4 * Tokens::kMine);
  take(m.x_parts, l.ranks * Tokens::kAll * l.shapes[kPolicyX].cols);
  take(m.projected, Tokens::kAll * l.shapes[kPolicyX].cols);
  take(m.parts, Tokens::kAll * s.d_model);
  take(m.states, kEnvs * kPolicyStateRows * l.channels);
  take(m.vectors, 2 * vectors_size);
  take(m.ends, l.ends_size);
  take(m.facts, 3 * kEnvs);
  take(m.barriers, sizeof(PolicyBarriers) / 4);
  size = (size + 31) / 32 * 32;
  m.weights = size;
  m.slots = std::min((most_bytes / 4 - size) / kPolicySlot, kMostSlots);
  m.bytes = 4 * (size + std::max(m.slots, 0) * kPolicySlot);
  return m;
}

/// A product's place in the step.
struct PolicyStage {
  int matrix = kPolicyEmbed, layer = 0;

  __device__ bool ends_layer(const PolicyStepSizes& s) const {
    return matrix == (s.hidden > 0 ? kPolicyBack : kPolicyOut);
  }
  __device__ void advance(const PolicyStepSizes& s) {
    if (!ends_layer(s)) {
      ++matrix;
    } else {
      matrix = ++layer < s.n_layer ? kPolicyIn : kPolicyHead;
    }
  }
};

/// All matrices of a rank on their way through the slots, in pieces of as many rows as fit. One
/// thread sends for them.
class PolicyWeights {
 public:
  __device__ PolicyWeights(const PolicyStepParams& p, const PolicyStepMemory& m, float* shared,
                           int rank)
      : p_(p),
        slots_(shared + m.weights),
        barriers_(reinterpret_cast<PolicyBarriers*>(shared + m.barriers)->weights),
        count_(m.slots),
        next_(p.packed + rank * p.layout.rank_stride) {}

  /// The sender: sends for the first pieces.
  __device__ void begin() {
#pragma unroll 1
    for (int i = 0; i < count_; ++i) send_for_next();
  }

  /// The next piece, once it is there.
  __device__ const float* take() {
    wait_for_phase(barriers_ + slot_, phase_);
    return slots_ + slot_ * kPolicySlot;
  }

  /// After the block's barrier: nobody reads the last piece any more.
  __device__ void give_back() {
    if (threadIdx.x == kPolicySender) send_for_next();
    if (++slot_ == count_) {
      slot_ = 0;
      phase_ ^= 1U;
    }
  }

 private:
  __device__ void send_for_next() {
    if (stage_.matrix == kPolicyMatrices) return;
    const PolicyStepShape& shape = p_.layout.shapes[stage_.matrix];
    const int rows = min(shape.rows - row_, shape.piece);
    copy_in_bulk(slots_ + to_ * kPolicySlot, next_, rows * shape.cols, barriers_ + to_);
    next_ += rows * shape.cols;
    to_ = to_ + 1 == count_ ? 0 : to_ + 1;
    row_ += rows;
    if (row_ == shape.rows) {
      row_ = 0;
      stage_.advance(p_.sizes);
    }
  }

  const PolicyStepParams& p_;
  float* slots_;
  uint64_t* barriers_;
  int count_;
  int slot_ = 0;
  uint32_t phase_ = 0;
  // Of the sender:
  const float* next_;
  PolicyStage stage_;
  int row_ = 0, to_ = 0;
};

}  // namespace dmamba::kernels
