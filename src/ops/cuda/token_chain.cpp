// What lies between the scans of two layers on CUDA: tensors to kernels/.
#include <ATen/ATen.h>

#include <atomic>

#include "dmamba/ops/ops.h"
#include "kernels/token_chain/launch.h"
#include "src/ops/cuda/dropout_mask.h"
#include "src/ops/cuda/tensors.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops {
namespace {

std::atomic<bool> chain_is_on = true;

}  // namespace

void set_token_chain(bool on) { chain_is_on = on; }
bool token_chain_enabled() { return chain_is_on.load(std::memory_order_relaxed); }

namespace cuda_only {
namespace {

using cuda::Call;

/// The last axis of t (batch, L, n) made `width` long.
Tensor empty_rows(const Tensor& t, int64_t width, at::ScalarType type) {
  return at::empty({t.size(0), t.size(1), width}, t.options().dtype(type));
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<T>() : nullptr;
}
void* data_or_null(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

kernels::ChainWeights weights_of(const TokenChainInputs& in) {
  return {in.out_proj.const_data_ptr(), in.first.const_data_ptr(), in.second.const_data_ptr(),
          in.in_proj.defined() ? in.in_proj.const_data_ptr() : nullptr};
}

kernels::ChainNorm norm_of(const TokenChainNorm& norm) {
  return {norm.weight.const_data_ptr<float>(), norm.bias.const_data_ptr<float>(),
          static_cast<float>(norm.epsilon)};
}

/// The sizes that both directions have.
template <class Params>
Params sized_params(const TokenChainInputs& in) {
  Params p{};
  p.rows = in.y.size(0) * in.y.size(1);
  p.inner = in.y.size(2);
  p.hidden_width = in.first.size(0);
  p.next_width = in.in_proj.defined() ? in.in_proj.size(0) : 0;
  p.weights = weights_of(in);
  p.dropout = cuda::mask_of(in.dropout);
  return p;
}

}  // namespace

bool token_chain_fits(const Tensor& x, int64_t inner, int64_t hidden, int64_t next) {
  const int64_t width = x.size(-1), rows = x.numel() / width;
  return kernels::token_chain_fits(rows, width, inner, hidden, next) && cuda::is_hopper(x.device());
}

TokenChain token_chain(const TokenChainInputs& in, bool keep) {
  Call call("token_chain", in.y);
  auto p = sized_params<kernels::TokenChainParams>(in);
  constexpr auto kBFloat16 = at::kBFloat16;
  const bool last = !in.in_proj.defined();
  TokenChain out;
  for (size_t i = 0; i < 2; ++i) {
    const bool result = i == 1;
    if (keep || result) out.sums[i] = at::empty(in.residual.sizes(), in.residual.options());
    if (keep) out.statistics[i] = at::empty({p.rows, 2}, in.residual.options());
    if (keep || (result && last)) {
      out.normed[i] = empty_rows(in.y, kernels::kChainWidth, kBFloat16);
    }
    p.norms[i] = norm_of(in.norms[i]);
    p.sums[i] = data_or_null<float>(out.sums[i]);
    p.statistics[i] = data_or_null<float>(out.statistics[i]);
    p.normed[i] = data_or_null(out.normed[i]);
  }
  if (keep) {
    out.hidden = empty_rows(in.y, p.hidden_width, kBFloat16);
    out.slope = empty_rows(in.y, p.hidden_width, kBFloat16);
  }
  if (!last) out.next = empty_rows(in.y, p.next_width, kBFloat16);
  p.first_bias = in.first_bias.const_data_ptr<float>();
  p.second_bias = in.second_bias.const_data_ptr<float>();
  p.y = in.y.const_data_ptr();
  p.residual = in.residual.const_data_ptr<float>();
  p.hidden = data_or_null(out.hidden);
  p.slope = data_or_null(out.slope);
  p.next = data_or_null(out.next);
  call.check(kernels::launch_token_chain(p, call.stream()));
  return out;
}

TokenChainGradients token_chain_backward(const Tensor& dnext, const Tensor& dsum,
                                         const TokenChainInputs& in, const TokenChain& saved) {
  Call call("token_chain_backward", dnext);
  auto p = sized_params<kernels::TokenChainBackwardParams>(in);
  const auto floats = saved.sums[0].options();
  TokenChainGradients out;
  out.dy = at::empty(in.y.sizes(), in.y.options());
  out.dresidual = at::empty(saved.sums[0].sizes(), floats);
  out.dhidden = empty_rows(in.y, p.hidden_width, at::kBFloat16);
  out.parts = at::empty(
      {kernels::token_chain_blocks(p.rows), kernels::token_chain_columns(p.hidden_width)}, floats);
  for (size_t i = 0; i < 2; ++i) {
    out.dbranch[i] = empty_rows(in.y, kernels::kChainWidth, at::kBFloat16);
    p.norm_weights[i] = in.norms[i].weight.const_data_ptr<float>();
    p.sums[i] = saved.sums[i].const_data_ptr<float>();
    p.statistics[i] = saved.statistics[i].const_data_ptr<float>();
    p.dbranch[i] = out.dbranch[i].mutable_data_ptr();
  }
  p.dnext = dnext.const_data_ptr();
  p.dsum = dsum.defined() ? dsum.const_data_ptr<float>() : nullptr;
  p.slope = saved.slope.const_data_ptr();
  p.dy = out.dy.mutable_data_ptr();
  p.dresidual = out.dresidual.mutable_data_ptr<float>();
  p.dhidden = out.dhidden.mutable_data_ptr();
  p.parts = out.parts.mutable_data_ptr<float>();
  call.check(kernels::launch_token_chain_backward(p, call.stream()));
  return out;
}

}  // namespace cuda_only
}  // namespace dmamba::ops
