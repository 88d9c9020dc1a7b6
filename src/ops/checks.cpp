// Argument checks of the ops: each message names the op, the argument, what it needs and what it
// got.
#include "src/ops/checks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "kernels/elementwise/params.h"

namespace dmamba::ops {
namespace {

/// A shape that a tensor must have, with the words for it.
struct Shape {
  const char* words;
  std::initializer_list<c10::SymInt> sizes;
};

void check_shape(const char* op, const char* name, const at::Tensor& t, const Shape& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.sizes.size());
  int64_t axis = 0;
  if (same) {
    for (const c10::SymInt& size : shape.sizes) same = same && t.sym_size(axis++) == size;
  }
  TORCH_CHECK(same, op, ": ", name, " must be ", shape.words, " = ",
              c10::SymIntArrayRef(shape.sizes.begin(), shape.sizes.size()), ", got ",
              t.sym_sizes());
}

void check_dtype(const char* op, const char* name, const at::Tensor& t, at::ScalarType dtype,
                 const char* why) {
  TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " must be ", dtype, " ", why, ", got ",
              t.scalar_type());
}

void check_device(const char* op, const char* name, const at::Tensor& t, const at::Tensor& like,
                  const char* like_name) {
  TORCH_CHECK(t.device() == like.device(), op, ": ", name, " is on ", t.device(), ", but ",
              like_name, " is on ", like.device(), "; move them to one device");
}

/// Everything about one argument beside the leading activation `like`.
void check_argument(const char* op, const char* name, const OptionalTensor& t, const Shape& shape,
                    at::ScalarType dtype, const char* why, const at::Tensor& like,
                    const char* like_name) {
  if (!t.has_value() || !t->defined()) return;
  check_shape(op, name, *t, shape);
  check_dtype(op, name, *t, dtype, why);
  check_device(op, name, *t, like, like_name);
}

void check_matrix(const char* op, const char* name, const at::Tensor& t) {
  check_activation(op, name, t);
  TORCH_CHECK(t.dim() == 2 && t.is_contiguous(), op, ": ", name,
              " must be (rows, channels), contiguous, got ", t.sizes(), " with strides ",
              t.strides());
}

constexpr const char* kLikeActivations = "as the activations are";
constexpr const char* kParameter = "(float32, or float64 with float64 activations)";
constexpr const char* kFlag = "(one flag a token)";

}  // namespace

void check_gradient(const char* op, const char* name, const at::Tensor& gradient,
                    const at::Tensor& input) {
  TORCH_CHECK(gradient.sym_sizes() == input.sym_sizes(), op, ": ", name, " must be ",
              input.sym_sizes(), " as its input is, got ", gradient.sym_sizes());
  check_dtype(op, name, gradient, input.scalar_type(), "as its input is");
  check_device(op, name, gradient, input, "its input");
  TORCH_CHECK(gradient.sym_size(-1) <= 1 || gradient.sym_stride(-1) == 1, op, ": ", name,
              " must have a contiguous last axis, got strides ", gradient.sym_strides());
}

void check_bias_gelu(const char* op, const at::Tensor& x, const at::Tensor& bias) {
  check_matrix(op, "x", x);
  const auto parameter = parameter_dtype(x.scalar_type());
  TORCH_CHECK(bias.sizes() == x.sizes().slice(1) && bias.scalar_type() == parameter, op,
              ": bias must be (channels,) = ", x.sizes().slice(1), " ", parameter, ", got ",
              bias.sizes(), " ", bias.scalar_type());
  check_device(op, "bias", bias, x, "x");
}

void check_dropout(const char* op, double p, int64_t first) {
  TORCH_CHECK(p >= 0.0 && p < 1.0, op, ": p must be in [0, 1), got ", p);
  TORCH_CHECK(first >= 0 && first % kernels::kDropoutStretch == 0, op,
              ": first must be a multiple of ", kernels::kDropoutStretch, ", got ", first);
}

void check_multiply_sum(const char* op, const at::Tensor& dy, const at::Tensor& slope) {
  check_matrix(op, "dy", dy);
  check_matrix(op, "slope", slope);
  check_gradient(op, "dy", dy, slope);
}

void check_activation(const char* op, const char* name, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kDouble, op, ": ", name,
              " must be float32, bfloat16 or float64, got ", dtype);
}

void check_written_in_place(const char* op, const char* name, const at::Tensor& t) {
  // Sorted by stride, each axis must step over everything that the axes before it span. Layouts
  // that interleave without overlap fail too; no view or permutation of a whole tensor does.
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1) axes.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(axes.begin(), axes.end());
  int64_t span = 1;
  for (const auto& [stride, size] : axes) {
    TORCH_CHECK(t.numel() == 0 || stride >= span, op, ": ", name, " of ", t.sizes(),
                " is written in place, but its strides ", t.strides(),
                " let elements share memory (as expand does); pass ", name, ".clone()");
    span += stride * (size - 1);
  }
}

at::ScalarType parameter_dtype(at::ScalarType activations) {
  return activations == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor empty_state(const at::Tensor& activations, const c10::SymInt& batch,
                       const c10::SymInt& d_inner, const c10::SymInt& width) {
  const auto options = activations.options().dtype(parameter_dtype(activations.scalar_type()));
  return at::empty_symint({batch, width, d_inner}, options).transpose(1, 2);
}

at::Tensor absent_gradient(const at::Tensor& activations) {
  return at::empty({0}, activations.options());
}

void check_selective_scan(const char* op, const at::Tensor& u, const at::Tensor& delta,
                          const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                          const OptionalTensor& D, const OptionalTensor& z,
                          const OptionalTensor& delta_bias, const OptionalTensor& mask,
                          const OptionalTensor& segment_starts,
                          const OptionalTensor& initial_state) {
  TORCH_CHECK(u.dim() == 3, op, ": u must be (batch, L, d_inner), got ", u.sym_sizes());
  check_activation(op, "u", u);
  const auto batch = u.sym_size(0), length = u.sym_size(1), d_inner = u.sym_size(2);
  TORCH_CHECK(length >= 1, op, ": L must be at least 1, got u of ", u.sym_sizes());
  TORCH_CHECK(A.dim() == 2 && A.sym_size(0) == d_inner && A.sym_size(1) >= 1, op,
              ": A must be (d_inner, d_state) = (", d_inner, ", d_state), got ", A.sym_sizes());
  const auto d_state = A.sym_size(1);
  const auto dtype = u.scalar_type(), parameter = parameter_dtype(dtype);
  const Shape tokens{"(batch, L, d_inner)", {batch, length, d_inner}};
  const Shape projections{"(batch, L, d_state)", {batch, length, d_state}};
  const Shape channels{"(d_inner,)", {d_inner}};
  const Shape flags{"(batch, L)", {batch, length}};
  const Shape state{"(batch, d_inner, d_state)", {batch, d_inner, d_state}};
  check_argument(op, "delta", delta, tokens, dtype, kLikeActivations, u, "u");
  check_argument(op, "A", A, {"(d_inner, d_state)", {d_inner, d_state}}, parameter, kParameter, u,
                 "u");
  check_argument(op, "B", B, projections, dtype, kLikeActivations, u, "u");
  check_argument(op, "C", C, projections, dtype, kLikeActivations, u, "u");
  check_argument(op, "D", D, channels, parameter, kParameter, u, "u");
  check_argument(op, "z", z, tokens, dtype, kLikeActivations, u, "u");
  check_argument(op, "delta_bias", delta_bias, channels, parameter, kParameter, u, "u");
  check_argument(op, "mask", mask, flags, at::kBool, kFlag, u, "u");
  check_argument(op, "segment_starts", segment_starts, flags, at::kBool, kFlag, u, "u");
  check_argument(op, "initial_state", initial_state, state, parameter, kParameter, u, "u");
}

void check_causal_conv1d(const char* op, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& bias, const OptionalTensor& mask,
                         const OptionalTensor& segment_starts,
                         const OptionalTensor& initial_state) {
  TORCH_CHECK(x.dim() == 3, op, ": x must be (batch, L, d_inner), got ", x.sym_sizes());
  check_activation(op, "x", x);
  const auto batch = x.sym_size(0), length = x.sym_size(1), d_inner = x.sym_size(2);
  TORCH_CHECK(length >= 1, op, ": L must be at least 1, got x of ", x.sym_sizes());
  TORCH_CHECK(weight.dim() == 2 && weight.sym_size(0) == d_inner && weight.sym_size(1) >= 1, op,
              ": weight must be (d_inner, width) = (", d_inner, ", width), got ",
              weight.sym_sizes());
  const auto width = weight.sym_size(1);
  const auto parameter = parameter_dtype(x.scalar_type());
  const Shape flags{"(batch, L)", {batch, length}};
  check_argument(op, "weight", weight, {"(d_inner, width)", {d_inner, width}}, parameter,
                 kParameter, x, "x");
  check_argument(op, "bias", bias, {"(d_inner,)", {d_inner}}, parameter, kParameter, x, "x");
  check_argument(op, "mask", mask, flags, at::kBool, kFlag, x, "x");
  check_argument(op, "segment_starts", segment_starts, flags, at::kBool, kFlag, x, "x");
  check_argument(op, "initial_state", initial_state,
                 {"(batch, d_inner, width - 1)", {batch, d_inner, width - 1}}, parameter,
                 kParameter, x, "x");
}

}  // namespace dmamba::ops
