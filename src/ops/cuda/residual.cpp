// The residual stream, the embedding and the head on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include "kernels/action_head/launch.h"
#include "kernels/elementwise/launch.h"
#include "kernels/embedding/launch.h"
#include "kernels/normalization/launch.h"
#include "src/ops/cuda/dropout_mask.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops::cuda_only {
namespace {

using cuda::Call;
using cuda::mask_of;

const float* floats(const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

Tensor empty_floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

kernels::TokenKind kind_of(const EmbeddingInputs& in, int k) {
  const Tensor& timesteps =
      k == 0 && in.first_timesteps.defined() ? in.first_timesteps : in.timesteps;
  return {floats(in.values[k]), floats(in.weights[k]), floats(in.biases[k]), in.values[k].size(1),
          timesteps.const_data_ptr<int64_t>()};
}

}  // namespace

Tensor dropout(const Tensor& x, const Dropout& dropout) {
  if (!dropout.key.defined() || dropout.p == 0.0) return x;
  Call call("dropout", x);
  const Tensor input = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  call.check(kernels::launch_dropout(
      {input.numel(), storage_of(input), 0, kernels::dropout_threshold(dropout.p),
       1.0 / (1.0 - dropout.p), input.const_data_ptr(), y.mutable_data_ptr(), dropout.first},
      reinterpret_cast<const uint64_t*>(dropout.key.const_data_ptr<int64_t>()), call.stream()));
  return y;
}

Tensor sum_parts(const Tensor& parts) {
  Call call("sum_parts", parts);
  const Tensor sums = empty_floats(parts.sizes().slice(1), parts);
  call.check(kernels::launch_sum_parts(floats(parts), sums.mutable_data_ptr<float>(), parts.size(0),
                                       sums.numel(), call.stream()));
  return sums;
}

AddNorm add_norm(const Tensor& residual, const Tensor& branch, const Tensor& bias,
                 const Dropout& dropout, const Tensor& weight, const Tensor& norm_bias,
                 double epsilon, at::ScalarType type) {
  Call call("add_norm", residual);
  const int64_t width = residual.size(-1), rows = residual.numel() / width;
  AddNorm out;
  out.sum = branch.defined() ? at::empty(residual.sizes(), residual.options()) : residual;
  out.normed = at::empty(residual.sizes(), residual.options().dtype(type));
  out.statistics = empty_floats({rows, 2}, residual);
  kernels::AddNormParams p{};
  p.rows = rows;
  p.width = width;
  p.storage = storage_of(out.normed);
  p.residual = floats(residual);
  p.branch = branch.defined() ? branch.const_data_ptr() : nullptr;
  p.bias = floats(bias);
  p.dropout = mask_of(dropout);
  p.weight = floats(weight);
  p.norm_bias = floats(norm_bias);
  p.epsilon = static_cast<float>(epsilon);
  p.sum = out.sum.mutable_data_ptr<float>();
  p.normed = out.normed.mutable_data_ptr();
  p.statistics = out.statistics.mutable_data_ptr<float>();
  call.check(kernels::launch_add_norm(p, call.stream()));
  return out;
}

AddNormGradients add_norm_backward(const Tensor& dnormed, const Tensor& dsum, const Tensor& sum,
                                   const Tensor& statistics, const Tensor& weight,
                                   const Dropout& dropout, bool has_bias, bool wants_branch) {
  Call call("add_norm_backward", sum);
  const int64_t width = sum.size(-1), rows = sum.numel() / width;
  AddNormGradients out;
  out.dresidual = at::empty(sum.sizes(), sum.options());
  if (wants_branch) out.dbranch = at::empty(sum.sizes(), dnormed.options());
  out.parts =
      empty_floats({kernels::norm_backward_blocks(rows, width), has_bias ? 3 : 2, width}, sum);
  kernels::AddNormBackwardParams p{};
  p.rows = rows;
  p.width = width;
  p.storage = storage_of(dnormed);
  p.dnormed = dnormed.const_data_ptr();
  p.dsum_in = floats(dsum);
  p.sum = floats(sum);
  p.statistics = floats(statistics);
  p.weight = floats(weight);
  p.dropout = mask_of(dropout);
  p.has_bias = has_bias;
  p.dresidual = out.dresidual.mutable_data_ptr<float>();
  p.dbranch = wants_branch ? out.dbranch.mutable_data_ptr() : nullptr;
  p.parts = out.parts.mutable_data_ptr<float>();
  call.check(kernels::launch_add_norm_backward(p, call.stream()));
  return out;
}

Embedding embed(const EmbeddingInputs& in) {
  Call call("embed", in.time);
  const int64_t steps = in.timesteps.numel(), width = in.time.size(1);
  Embedding out{empty_floats({3 * steps, width}, in.time),
                empty_floats({3 * steps, width}, in.time),
                empty_floats({3 * steps, 2}, in.time),
                {},
                {},
                {}};
  if (in.mask.defined()) out.token_mask = at::empty({3 * steps}, in.mask.options());
  kernels::EmbeddingParams p{};
  p.steps = steps;
  p.width = width;
  for (int k = 0; k < kernels::kTokenKinds; ++k) p.kinds[k] = kind_of(in, k);
  p.time = floats(in.time);
  p.max_timestep = in.time.size(0);
  p.norm_weight = floats(in.norm_weight);
  p.norm_bias = floats(in.norm_bias);
  p.epsilon = static_cast<float>(in.epsilon);
  p.dropout = mask_of(in.dropout);
  if (in.mask.defined()) {
    p.mask = in.mask.const_data_ptr<bool>();
    p.token_mask = out.token_mask.mutable_data_ptr<bool>();
  }
  p.tokens = out.tokens.mutable_data_ptr<float>();
  p.statistics = out.statistics.mutable_data_ptr<float>();
  p.out = out.out.mutable_data_ptr<float>();
  if (in.next.weight.defined()) {
    out.normed = at::empty({3 * steps, width}, in.time.options().dtype(in.next.type));
    out.next_statistics = empty_floats({3 * steps, 2}, in.time);
    p.next = {floats(in.next.weight),
              floats(in.next.bias),
              static_cast<float>(in.next.epsilon),
              storage_of(out.normed),
              out.normed.mutable_data_ptr(),
              out.next_statistics.mutable_data_ptr<float>()};
  }
  call.check(kernels::launch_embedding(p, call.stream()));
  return out;
}

EmbeddingNormGradients embed_norm_backward(const Tensor& dout, const Tensor& dnormed,
                                           const Embedding& embedding, const EmbeddingInputs& in) {
  const Tensor& like = embedding.tokens;
  Call call("embed_backward", like);
  const int64_t steps = in.timesteps.numel(), width = in.time.size(1);
  kernels::EmbeddingNormParams p{};
  kernels::TokenKind kinds[kernels::kTokenKinds];
  for (int k = 0; k < kernels::kTokenKinds; ++k) kinds[k] = kind_of(in, k);
  p.n_tickets = kernels::embedding_tickets(kinds, width);
  EmbeddingNormGradients out{
      empty_floats({3 * steps, width}, like), empty_floats({steps, width}, like),
      empty_floats({kernels::embedding_norm_blocks(steps, width), dnormed.defined() ? 4 : 2, width},
                   like),
      at::empty({p.n_tickets}, like.options().dtype(at::kInt))};
  p.steps = steps;
  p.width = width;
  p.dout = floats(dout);
  p.tokens = floats(embedding.tokens);
  p.statistics = floats(embedding.statistics);
  p.weight = floats(in.norm_weight);
  p.bias = floats(in.norm_bias);
  p.dropout = mask_of(in.dropout);
  if (dnormed.defined()) {
    p.next.weight = floats(in.next.weight);
    p.next.storage = storage_of(dnormed);
    p.next.statistics = embedding.next_statistics.mutable_data_ptr<float>();
    p.dnormed = dnormed.const_data_ptr();
  }
  p.dtokens = out.dtokens.mutable_data_ptr<float>();
  p.dsteps = out.dsteps.mutable_data_ptr<float>();
  p.parts = out.parts.mutable_data_ptr<float>();
  p.tickets = out.tickets.mutable_data_ptr<int>();
  call.check(kernels::launch_embedding_norm_backward(p, call.stream()));
  return out;
}

EmbeddingGradients embed_gradients(const EmbeddingNormGradients& norm, const EmbeddingInputs& in) {
  Call call("embed_backward", norm.dtokens);
  kernels::EmbeddingGradientParams p{};
  p.steps = in.timesteps.numel();
  p.width = in.time.size(1);
  p.max_timestep = in.time.size(0);
  int64_t columns = 0;
  for (int k = 0; k < kernels::kTokenKinds; ++k) {
    p.kinds[k] = kind_of(in, k);
    columns += p.kinds[k].features + 1;
  }
  const EmbeddingGradients out{empty_floats({columns * p.width}, norm.dtokens),
                               empty_floats(in.time.sizes(), norm.dtokens)};
  const Tensor scratch =
      empty_floats({kernels::embedding_scratch(p.kinds, p.steps, p.width)}, norm.dtokens);
  p.timesteps = in.timesteps.const_data_ptr<int64_t>();
  p.dtokens = floats(norm.dtokens);
  p.dsteps = floats(norm.dsteps);
  p.dlinear = out.linear.mutable_data_ptr<float>();
  p.dtime = out.time.mutable_data_ptr<float>();
  p.scratch = scratch.mutable_data_ptr<float>();
  p.tickets = norm.tickets.mutable_data_ptr<int>();
  call.check(kernels::launch_embedding_gradients(p, call.stream()));
  return out;
}

ActionHead action_head(const Tensor& y, const Tensor& weight, const Tensor& bias,
                       const Tensor& targets, const Tensor& mask) {
  Call call("action_head", y);
  const int64_t steps = targets.size(0), act_dim = targets.size(1);
  const ActionHead out{empty_floats({kernels::action_head_blocks(steps)}, y),
                       empty_floats({steps, act_dim}, y)};
  call.check(kernels::launch_action_head(
      {steps, y.size(-1), act_dim, storage_of(y), y.const_data_ptr(), floats(weight), floats(bias),
       floats(targets), mask.const_data_ptr<bool>(), out.slopes.mutable_data_ptr<float>(),
       out.losses.mutable_data_ptr<float>()},
      call.stream()));
  return out;
}

std::array<Tensor, 2> action_head_backward(const Tensor& dloss, const Tensor& y,
                                           const Tensor& weight, const Tensor& slopes) {
  Call call("action_head_backward", y);
  const int64_t steps = slopes.size(0), act_dim = slopes.size(1), width = y.size(-1);
  const Tensor dy = at::empty(y.sizes(), y.options());
  const Tensor parts = empty_floats({kernels::action_head_blocks(steps), act_dim * (width + 1)}, y);
  call.check(kernels::launch_action_head_backward(
      {steps, width, act_dim, storage_of(y), y.const_data_ptr(), floats(weight), floats(slopes),
       floats(dloss), dy.mutable_data_ptr(), parts.mutable_data_ptr<float>()},
      call.stream()));
  return {dy, parts};
}

}  // namespace dmamba::ops::cuda_only
