// What the token mixers share.
#pragma once

#include <torch/types.h>

namespace dmamba::nn {

/// Throws, opening with the mixer's name, unless x is (batch, L, d_model).
void check_tokens(const char* mixer, const torch::Tensor& x, int64_t d_model);

/// Takes over the sequences (rows) of `theirs` where `which` (batch,) bool, in the memory of
/// `mine`.
void take_rows(torch::Tensor& mine, const torch::Tensor& theirs, const torch::Tensor& which);

/// (n,) logarithms of step sizes, uniform between those of 0.001 and 0.1, from torch's default
/// generator.
torch::Tensor log_step_sizes(int64_t n);

}  // namespace dmamba::nn
