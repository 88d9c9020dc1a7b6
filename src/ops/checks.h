// Argument checks shared by every backend of the ops, Meta included (hence symbolic sizes).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace dmamba::ops {

using OptionalTensor = std::optional<at::Tensor>;

/// Checks every tensor of a scan against u (batch, L, d_inner) and A (d_inner, d_state): shapes,
/// dtypes, devices. `op` opens each message.
void check_selective_scan(const char* op, const at::Tensor& u, const at::Tensor& delta,
                          const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                          const OptionalTensor& D, const OptionalTensor& z,
                          const OptionalTensor& delta_bias, const OptionalTensor& mask,
                          const OptionalTensor& segment_starts,
                          const OptionalTensor& initial_state);

/// The same for a convolution with x (batch, L, d_inner) and weight (d_inner, width).
void check_causal_conv1d(const char* op, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& bias, const OptionalTensor& mask,
                         const OptionalTensor& segment_starts, const OptionalTensor& initial_state);

/// Checks a tensor that takes the gradient `name` of `input`: its sizes, dtype and device, and a
/// contiguous last axis.
void check_gradient(const char* op, const char* name, const at::Tensor& gradient,
                    const at::Tensor& input);

/// Checks the arguments of bias_gelu_: x (rows, channels) contiguous, bias (channels,).
void check_bias_gelu(const char* op, const at::Tensor& x, const at::Tensor& bias);

/// The same for multiply_sum_: dy and slope (rows, channels) contiguous.
void check_multiply_sum(const char* op, const at::Tensor& dy, const at::Tensor& slope);

/// Checks the arguments of dropout beside its tensor.
void check_dropout(const char* op, double p, int64_t first);

/// Checks that t is float32, bfloat16 or float64.
void check_activation(const char* op, const char* name, const at::Tensor& t);

/// Checks that no two elements of a tensor that the op writes in place share memory.
void check_written_in_place(const char* op, const char* name, const at::Tensor& t);

/// dtype of parameters and states beside activations of this dtype: float64 for float64, else
/// float32.
at::ScalarType parameter_dtype(at::ScalarType activations);

/// An uninitialised state (batch, d_inner, width) whose channels are contiguous in memory.
at::Tensor empty_state(const at::Tensor& activations, const c10::SymInt& batch,
                       const c10::SymInt& d_inner, const c10::SymInt& width);

/// The gradient of an input that was absent: empty, and a tensor of its own each time, because the
/// results of an op must not share memory.
at::Tensor absent_gradient(const at::Tensor& activations);

}  // namespace dmamba::ops
