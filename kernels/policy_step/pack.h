// A model's weights as the policy's step reads them. On the host; free of torch and of CUDA.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "kernels/policy_step/params.h"

namespace dmamba::kernels {

/// A model's parameters on the host as torch keeps them: a matrix is (outputs, inputs), contiguous.
struct PolicyStepModel {
  struct Linear {
    const float *weight, *bias;  // no bias: nullptr
  };
  struct Layer {
    Linear norm, in_proj, conv, x_proj, dt_proj;  // conv: (d_inner, d_conv)
    const float *A_log, *D;                       // (d_inner, d_state), (d_inner,)
    Linear out_proj;
    Linear mixer_norm, wide, back;  // with a channel mixer
  };
  Linear embed_action, embed_return, embed_state, embed_ln;
  std::vector<Layer> layers;
  Linear ln_f, head;
};

/// Writes one float after the other.
class PolicyStepPacker {
 public:
  PolicyStepPacker(const PolicyStepSizes& sizes, const PolicyStepModel& model, int ranks)
      : s_(sizes), m_(model), l_(policy_step_layout(sizes, ranks)) {
    packed_.reserve(static_cast<size_t>(l_.size));
  }

  std::vector<float> pack() && {
    for (int rank = 0; rank < l_.ranks; ++rank) pack_matrices(rank);
    for (int rank = 0; rank < l_.ranks; ++rank) {
      for (const auto& layer : m_.layers) pack_vectors(layer, rank);
    }
    vector(m_.embed_ln.weight, s_.d_model);
    vector(m_.embed_ln.bias, s_.d_model);
    vector(m_.ln_f.weight, s_.d_model);
    vector(m_.ln_f.bias, s_.d_model);
    vector(m_.head.bias, s_.act_dim);
    packed_.resize(static_cast<size_t>(l_.size), 0.0F);
    return std::move(packed_);
  }

 private:
  void vector(const float* from, int64_t count) {
    packed_.insert(packed_.end(), from, from + count);
  }

  static float entry(const float* matrix, int64_t row, int64_t width, int64_t column) {
    return matrix[row * width + column];
  }

  template <class At>
  void table(int rows, int columns, At at) {
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) packed_.push_back(at(row, column));
    }
  }

  template <class At>
  void matrix(const PolicyStepShape& shape, At at) {
    table(shape.rows, shape.cols, at);
  }

  void pack_matrices(int rank) {
    matrix(l_.shapes[kPolicyEmbed],
           [&](int row, int column) { return embedding(row, rank * l_.columns + column); });
    for (const auto& layer : m_.layers) {
      const int d = s_.d_model, inner = s_.d_inner, first = rank * l_.channels;
      matrix(l_.shapes[kPolicyIn], [&](int row, int column) {
        const bool z = column >= l_.channels;
        const int output = z ? inner + first + column - l_.channels : first + column;
        return entry(layer.in_proj.weight, output, d, row);
      });
      matrix(l_.shapes[kPolicyX], [&](int row, int column) {
        const int states = 2 * kPolicyStates;  // dt comes first in x_proj, and last here
        if (column >= states + s_.dt_rank) return 0.0F;
        const int output = column < states ? s_.dt_rank + column : column - states;
        return entry(layer.x_proj.weight, output, inner, first + row);
      });
      matrix(l_.shapes[kPolicyOut], [&](int row, int column) {
        return entry(layer.out_proj.weight, column, inner, first + row);
      });
      matrix(l_.shapes[kPolicyWide], [&](int row, int column) {
        return entry(layer.wide.weight, rank * l_.units + column, d, row);
      });
      matrix(l_.shapes[kPolicyBack], [&](int row, int column) {
        return entry(layer.back.weight, column, s_.hidden, rank * l_.units + row);
      });
    }
    vector(m_.head.weight, int64_t{s_.act_dim} * s_.d_model);
  }

  /// Of the inputs of all kinds side by side, and then of a one for the token's kind.
  float embedding(int row, int column) const {
    if (row < s_.act_dim) return entry(m_.embed_action.weight, column, s_.act_dim, row);
    row -= s_.act_dim;
    if (row < 1) return m_.embed_return.weight[column];
    row -= 1;
    if (row < s_.state_dim) return entry(m_.embed_state.weight, column, s_.state_dim, row);
    row -= s_.state_dim;
    const auto& kind = row == 0 ? m_.embed_action : row == 1 ? m_.embed_return : m_.embed_state;
    return kind.bias[column];
  }

  void pack_vectors(const PolicyStepModel::Layer& layer, int rank) {
    constexpr float kLog2e = 1.4426950408889634F;
    const int n = l_.channels, first = rank * n;
    vector(layer.norm.weight, s_.d_model);
    vector(layer.norm.bias, s_.d_model);
    table(kPolicyTaps, n,
          [&](int tap, int c) { return entry(layer.conv.weight, first + c, kPolicyTaps, tap); });
    vector(layer.conv.bias + first, n);
    table(s_.dt_rank, n,
          [&](int row, int c) { return entry(layer.dt_proj.weight, first + c, s_.dt_rank, row); });
    vector(layer.dt_proj.bias + first, n);
    table(kPolicyStates, n, [&](int state, int c) {
      return -kLog2e * std::exp(entry(layer.A_log, first + c, kPolicyStates, state));
    });
    vector(layer.D + first, n);
    if (s_.hidden == 0) return;
    vector(layer.mixer_norm.weight, s_.d_model);
    vector(layer.mixer_norm.bias, s_.d_model);
    vector(layer.wide.bias + int64_t{rank} * l_.units, l_.units);
    vector(layer.back.bias + int64_t{rank} * l_.columns, l_.columns);
  }

  const PolicyStepSizes& s_;
  const PolicyStepModel& m_;
  const PolicyStepLayout l_;
  std::vector<float> packed_;
};

/// PolicyStepLayout::size floats.
inline std::vector<float> pack_policy_step(const PolicyStepSizes& sizes,
                                           const PolicyStepModel& model, int ranks) {
  return PolicyStepPacker(sizes, model, ranks).pack();
}

}  // namespace dmamba::kernels
