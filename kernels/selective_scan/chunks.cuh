// Long sequences with few channels: chunks of the sequence are walked at the same time and joined.
//
// Over a chunk the scan is linear in the state that enters it, h_out = P h_in + q, with the product
// P of all exp(dt A) and the state q that a walk from zero ends in. A first pass leaves P and q of
// every chunk but the last, the join walks over the chunks, and the second pass starts each from
// its right state. The backward pass does the same with the gradient that enters from the right.
// The price is a second evaluation of the exponentials.
#pragma once

#include <cuda_runtime.h>

#include "kernels/selective_scan/params.h"

namespace dmamba::kernels {

/// The product P of a chunk in which a segment starts: zero with a minus sign, which no product of
/// exponentials has. What enters such a chunk is not looked at, be it finite or not.
constexpr float kForgets = -0.0F;

/// What the first pass leaves and the join turns into the states that enter the chunks;
/// (batch, n_chunks, d_inner, d_state) each, of which the first pass leaves all but the last
/// chunk's (walking down: the first's).
struct ChunkCarries {
  float* factor;  // P
  float* state;   // q, then h_in
};

/// The join: state[k] becomes what enters chunk k, walking up from `first` (or down, for
/// gradients). first.data may be null: zero.
cudaError_t launch_join_chunks(const ChunkCarries& carries, const StateView& first,
                               const SelectiveScanParams& p, int64_t n_chunks, bool descending,
                               cudaStream_t stream);

}  // namespace dmamba::kernels
