// The operators of the Mamba block, as C++ functions over the registered torch ops (dmamba::*).
//
// Activations are (batch, L, channels), channels contiguous; other strides are copied. Storage is
// float32, bfloat16 (arithmetic in fp32) or, on the CPU, float64 (throughout); parameters and
// states are float32 (float64 with float64 activations). All functions are differentiable but the
// *_update pair, and thread-safe; the same inputs give the same bits with any number of threads.
//
// Errors: c10::Error naming the op, the argument, the shape it needs and the one it got.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dmamba::ops {

using OptionalTensor = std::optional<at::Tensor>;

/// What a sequence says of its tokens; each (batch, L), bool, or absent.
struct TokenFlags {
  OptionalTensor mask;  ///< false: padding. dt = 0 in the scan, input 0 in the convolution.
  OptionalTensor segment_starts;  ///< true: state and convolution window restart before this token.
  /// Which of a step's kinds of token the first one is; they follow each other in turn.
  int64_t first_kind = 0;
};

/// Selective scan (Gu and Dao, arXiv 2312.00752, section 3.2; equations in
/// kernels/selective_scan/params.h).
///
/// u, delta, z: (batch, L, d_inner); A: (d_inner, d_state); B, C: (batch, L, d_state);
/// D, delta_bias: (d_inner,); initial_state: (batch, d_inner, d_state), any strides.
/// Returns out (batch, L, d_inner) and the state after the last token (batch, d_inner, d_state).
std::tuple<at::Tensor, at::Tensor> selective_scan(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const OptionalTensor& D = {}, const OptionalTensor& z = {},
    const OptionalTensor& delta_bias = {}, bool delta_softplus = false,
    const TokenFlags& flags = {}, const OptionalTensor& initial_state = {});

/// One token of the scan; `state` (batch, d_inner, d_state) is updated in place, whatever its
/// strides. u, delta, z: (batch, d_inner); B, C: (batch, d_state). Returns out (batch, d_inner). No
/// gradient.
at::Tensor selective_state_update(at::Tensor& state, const at::Tensor& u, const at::Tensor& delta,
                                  const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                                  const OptionalTensor& D = {}, const OptionalTensor& z = {},
                                  const OptionalTensor& delta_bias = {},
                                  bool delta_softplus = false);

/// Causal depthwise convolution, then SiLU where asked.
///
/// x: (batch, L, d_inner); weight: (d_inner, width); bias: (d_inner,);
/// initial_state: (batch, d_inner, width - 1), the inputs before x, oldest first.
/// Returns y (batch, L, d_inner) and the last width - 1 inputs (batch, d_inner, width - 1).
std::tuple<at::Tensor, at::Tensor> causal_conv1d(const at::Tensor& x, const at::Tensor& weight,
                                                 const OptionalTensor& bias = {}, bool silu = true,
                                                 const TokenFlags& flags = {},
                                                 const OptionalTensor& initial_state = {});

/// One token of the convolution; `state` (batch, d_inner, width - 1) is updated in place.
/// x: (batch, d_inner). Returns y (batch, d_inner). No gradient.
at::Tensor causal_conv1d_update(at::Tensor& state, const at::Tensor& x, const at::Tensor& weight,
                                const OptionalTensor& bias = {}, bool silu = true);

/// GELU(x) = x Phi(x), exact (Hendrycks and Gimpel, arXiv 1606.08415), elementwise.
at::Tensor gelu(const at::Tensor& x);

/// x / (1 - p) where the Philox stream of `key` says so, with probability 1 - p, else 0. The same
/// key and size give the same mask on any processor; the mask is drawn again in the backward pass
/// and not kept. p in [0, 1). x may be a piece of what the mask is for: `first`, a multiple of 64,
/// is the number of its first element there.
at::Tensor dropout(const at::Tensor& x, double p, int64_t key, int64_t first = 0);

/// Instruction sets whose kernels this processor can run, best first: "avx512", "avx2", "portable".
std::vector<std::string> cpu_capabilities();

/// The one in use: the best, unless set_cpu_capability or DMAMBA_CPU_CAPABILITY says otherwise.
std::string cpu_capability();

/// Chooses the CPU kernels, for tests and comparisons. Throws dmamba::Error on a name that is not
/// in cpu_capabilities(). Not to be called while ops run in other threads.
void set_cpu_capability(const std::string& name);

/// Whether this library was built with the ops' CUDA side.
bool built_with_cuda();

/// Forces how the CUDA kernels cut a scan, forward and backward, for tests and measurements: chunks
/// of `chunk_length` tokens (a multiple of 16) are walked at the same time. 0 leaves it to the
/// measured rule. Throws dmamba::Error on other numbers and where the library was built without
/// CUDA.
void set_cuda_scan_plan(int64_t chunk_length);

/// Whether layers whose widths fit compute on CUDA, in bfloat16, all that lies between two scans in
/// one launch each way; it does from the start. For tests and measurements: both ways differ in
/// roundings alone. Graphs that were recorded stay as they are. Throws dmamba::Error where the
/// library was built without CUDA.
void set_token_chain(bool on);

/// Whether they do; false in a library without CUDA.
bool token_chain_enabled();

}  // namespace dmamba::ops
