// Parameters of the token chain: what lies between the scans of two layers. Free of torch and of
// CUDA.
#pragma once

#include <cstdint>

#include "kernels/normalization/params.h"

namespace dmamba::kernels {

/// Width of the residual stream that the kernels take.
constexpr int64_t kChainWidth = 128;
/// The other widths are multiples of this.
constexpr int64_t kChainChunk = 128;

/// Matrices (out, in) bfloat16, contiguous, on 16 bytes, as they stand in the layers.
struct ChainWeights {
  const void* out_proj;  // (128, inner)
  const void* first;     // (hidden, 128), of the channel mixer
  const void* second;    // (128, hidden)
  const void* in_proj;   // (next, 128), of the next layer; null: there is none
};

struct ChainNorm {
  const float* weight;
  const float* bias;
  float epsilon;
};

/// For each token, a row of every array:
///
///   sum1 = residual + out_proj y              normed1 = LayerNorm(sum1)
///   hidden = GELU(first normed1 + first_bias), slope = GELU' of the same
///   sum2 = sum1 + dropout(second hidden + second_bias)
///   normed2 = LayerNorm(sum2)                 next = in_proj normed2
///
/// Everything contiguous. y, normed, hidden, slope and next bfloat16; sums (of the residual stream)
/// and statistics (rows, 2) float32. What only the backward pass needs (sum1, both statistics,
/// normed1, hidden, slope, and normed2 where `next` follows) is written where it is not null.
struct TokenChainParams {
  int64_t rows, inner, hidden_width, next_width;
  ChainWeights weights;
  ChainNorm norms[2];
  const float* first_bias;
  const float* second_bias;
  DropoutMask dropout;
  const void* y;
  const float* residual;
  float* sums[2];
  float* statistics[2];
  void* normed[2];
  void* hidden;
  void* slope;
  void* next;
};

/// The gradients: of y, of the residual stream before the chain, and those in which the gradients
/// of the weights are products: dhidden (before the GELU) and dbranch, of what the first matrix and
/// of what the second leave to the stream.
///
/// `parts`: (token_chain_blocks(rows), 5 * 128 + hidden_width) sums over a block's rows, in this
/// order: norms[1] weight and bias, second_bias, norms[0] weight and bias, first_bias.
struct TokenChainBackwardParams {
  int64_t rows, inner, hidden_width, next_width;
  ChainWeights weights;
  const float* norm_weights[2];
  DropoutMask dropout;
  const void* dnext;  // of `next`, or of normed2 where there is no in_proj
  const float* dsum;  // of sum2, beside its way through the norm; null: zero
  const float* sums[2];
  const float* statistics[2];
  const void* slope;
  void* dy;
  float* dresidual;
  void* dhidden;
  void* dbranch[2];
  float* parts;
};

/// Rows of a block.
constexpr int64_t kChainRows = 32;
constexpr int64_t token_chain_blocks(int64_t rows) { return (rows + kChainRows - 1) / kChainRows; }

/// More rows take longer than the single ops do: a block reads all of the weights for its few rows.
constexpr int64_t kChainMostRows = 132 * kChainRows;

/// Columns of `parts`: those of norms and second_bias, and with the hidden layer's all.
constexpr int64_t kChainColumns = 5 * kChainWidth;
constexpr int64_t token_chain_columns(int64_t hidden_width) { return kChainColumns + hidden_width; }

}  // namespace dmamba::kernels
