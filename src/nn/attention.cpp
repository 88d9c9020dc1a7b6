// Attention over a whole sequence, and over the kept keys and values.
#include "src/nn/attention.h"

#include <cmath>
#include <limits>

#include "dmamba/common/error.h"
#include "dmamba/nn/token_kinds.h"
#include "src/nn/linear.h"
#include "src/nn/mixer_support.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

/// The number of each token's segment, (batch, L), counted on from `before` (batch,).
Tensor segments_of(const Tensor& before, const ops::TokenFlags& flags, int64_t L) {
  const Tensor last = before.unsqueeze(1);
  return flags.segment_starts.has_value() ? last + flags.segment_starts->cumsum(1)
                                          : last.expand({before.size(0), L});
}

/// The same as others see it: a masked token is of none.
Tensor seen_segments(const Tensor& segments, const ops::TokenFlags& flags) {
  return flags.mask.has_value() ? segments.masked_fill(~*flags.mask, -1) : segments;
}

ops::TokenFlags part_of(const ops::TokenFlags& flags, int64_t first, int64_t count) {
  ops::TokenFlags part;
  if (flags.mask.has_value()) part.mask = flags.mask->narrow(1, first, count);
  if (flags.segment_starts.has_value()) {
    part.segment_starts = flags.segment_starts->narrow(1, first, count);
  }
  return part;
}

}  // namespace

AttentionState::AttentionState(int64_t batch, int64_t capacity, int64_t d_model,
                               const torch::TensorOptions& options)
    : keys(torch::zeros({batch, capacity, d_model}, options)),
      values(torch::zeros_like(keys)),
      segments(torch::full({batch, capacity}, -1, options.dtype(torch::kLong))),
      next(torch::zeros({batch}, options.dtype(torch::kLong))),
      segment(torch::zeros_like(next)) {}

void AttentionState::take(const Tensor& which, const MixerState& other) {
  const auto& theirs = dynamic_cast<const AttentionState&>(other);
  take_rows(keys, theirs.keys, which);
  take_rows(values, theirs.values, which);
  take_rows(segments, theirs.segments, which);
  take_rows(next, theirs.next, which);
  take_rows(segment, theirs.segment, which);
}

AttentionImpl::AttentionImpl(const config::ModelConfig& config)
    : d_model_(config.d_model),
      n_head_(config.n_head),
      capacity_(TokenKinds(config).count() * config.context_length) {
  if (n_head_ < 1 || d_model_ % n_head_ != 0) {
    throw ConfigError("model.n_head: " + std::to_string(n_head_) +
                      " heads do not divide model.d_model, " + std::to_string(d_model_));
  }
  c_attn_ = register_module("c_attn", torch::nn::Linear(d_model_, 3 * d_model_));
  c_proj_ = register_module("c_proj", torch::nn::Linear(d_model_, d_model_));
  resid_dropout_ = register_module("resid_dropout", Dropout(config.dropout));
}

/// (batch, L, d_model) -> (batch, n_head, L, d_model / n_head).
Tensor AttentionImpl::heads(const Tensor& x) const {
  return x.unflatten(2, {n_head_, d_model_ / n_head_}).transpose(1, 2);
}

/// visible: (batch, queries, keys) bool. On CUDA by single operators: the fused ones take no such
/// mask, or add with atomics in their backward pass.
Tensor AttentionImpl::attend(const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& visible) {
  const Tensor mask = visible.unsqueeze(1);
  Tensor y;
  if (q.is_cuda()) {
    const int64_t width = d_model_ / n_head_;
    const double scale = 1.0 / std::sqrt(static_cast<double>(width));
    const Tensor scores = at::matmul(heads(q) * scale, heads(k).transpose(2, 3));
    const Tensor weights =
        at::softmax(scores.masked_fill(~mask, -std::numeric_limits<double>::infinity()), 3);
    y = at::matmul(weights, heads(v));
  } else {
    y = at::scaled_dot_product_attention(heads(q), heads(k), heads(v), mask);
  }
  return resid_dropout_(linear(*c_proj_, y.transpose(1, 2).flatten(2)));
}

Tensor AttentionImpl::forward(const Tensor& x, const ops::TokenFlags& flags) {
  check_tokens("attention", x, d_model_);
  const int64_t batch = x.size(0), L = x.size(1);
  const auto parts = linear(*c_attn_, x).chunk(3, 2);
  const auto index = x.options().dtype(torch::kLong);
  const Tensor token = torch::arange(L, index), query = token.unsqueeze(1);
  const Tensor mine = segments_of(torch::zeros({batch}, index), flags, L);
  const Tensor others = seen_segments(mine, flags);
  // Itself always: a softmax over nothing would not be a number.
  const Tensor visible =
      ((mine.unsqueeze(2) == others.unsqueeze(1)) & (token <= query)) | (token == query);
  return attend(parts[0], parts[1], parts[2], visible);
}

std::unique_ptr<MixerState> AttentionImpl::initial_state(int64_t batch) const {
  return std::make_unique<AttentionState>(batch, capacity_, d_model_,
                                          c_attn_->weight.options().requires_grad(false));
}

Tensor AttentionImpl::step(const Tensor& x, const ops::TokenFlags& flags, MixerState& state) {
  torch::NoGradGuard no_grad;
  check_tokens("attention", x, d_model_);
  auto& now = dynamic_cast<AttentionState&>(state);
  const int64_t n = x.size(1);
  if (n <= capacity_) return step_within(x, flags, now);
  std::vector<Tensor> parts;
  for (int64_t first = 0; first < n; first += capacity_) {
    const int64_t count = std::min(capacity_, n - first);
    parts.push_back(step_within(x.narrow(1, first, count), part_of(flags, first, count), now));
  }
  return torch::cat(parts, 1);
}

/// At most as many tokens as there are slots.
Tensor AttentionImpl::step_within(const Tensor& x, const ops::TokenFlags& flags,
                                  AttentionState& state) {
  const int64_t batch = x.size(0), n = x.size(1);
  const auto parts = linear(*c_attn_, x).chunk(3, 2);
  const Tensor order = torch::arange(n, state.next.options());
  const Tensor slots = (state.next.unsqueeze(1) + order).remainder(capacity_);
  const Tensor rows = slots.unsqueeze(2).expand({batch, n, d_model_});
  const Tensor mine = segments_of(state.segment, flags, n);
  state.keys.scatter_(1, rows, parts[1].to(state.keys.scalar_type()));
  state.values.scatter_(1, rows, parts[2].to(state.values.scalar_type()));
  state.segments.scatter_(1, slots, seen_segments(mine, flags));
  // Of the tokens of this call a slot holds, the ones after a query are hidden from it.
  const Tensor held =
      torch::full_like(state.segments, -1).scatter_(1, slots, order.expand({batch, n}));
  const Tensor query = order.view({1, n, 1});
  const Tensor visible =
      ((mine.unsqueeze(2) == state.segments.unsqueeze(1)) & (held.unsqueeze(1) <= query)) |
      (held.unsqueeze(1) == query);
  state.next.copy_((state.next + n).remainder(capacity_));
  state.segment.copy_(mine.select(1, n - 1));
  return attend(parts[0], state.keys, state.values, visible);
}

}  // namespace dmamba::nn
