// The layers one by one, or chained where they fit.
#include "src/nn/layer_stack.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "dmamba/nn/mamba.h"
#include "src/nn/linear.h"
#include "src/nn/plain_dispatch.h"
#include "src/nn/residual_stream.h"
#include "src/nn/step_context.h"
#include "src/nn/token_chain.h"

namespace dmamba::nn {
namespace {

using ops::cuda_only::TokenChainInputs;
using torch::Tensor;

/// What a chain is made of.
struct Layer {
  MambaImpl* mixer;
  torch::nn::LayerNormImpl *norm, *channel_norm;
  const torch::nn::LinearImpl *first, *second;
  const DropoutImpl* dropout;
};

/// The layers, if all are of mamba and an MLP; else none.
std::vector<Layer> mamba_layers(const std::vector<Block>& blocks) {
  std::vector<Layer> layers;
  for (const Block& block : blocks) {
    auto* mixer = dynamic_cast<MambaImpl*>(block->mixer().get());
    const torch::nn::Sequential channels = block->mlp();
    if (mixer == nullptr || channels.is_empty()) return {};
    layers.push_back({mixer, block->norm().get(), block->channel_norm().get(),
                      &channels->at<torch::nn::LinearImpl>(0),
                      &channels->at<torch::nn::LinearImpl>(2), &channels->at<DropoutImpl>(3)});
  }
  return layers;
}

/// The part of the chain after layer i that parameters decide; in_proj is that of the layer after.
TokenChainInputs parameters_of(const std::vector<Layer>& layers, size_t i,
                               const torch::nn::LayerNormImpl& last) {
  const Layer& layer = layers[i];
  const bool ends = i + 1 == layers.size();
  const torch::nn::LayerNormImpl &norm = *layer.channel_norm,
                                 &next = ends ? last : *layers[i + 1].norm;
  TokenChainInputs in;
  in.out_proj = layer.mixer->out_proj->weight;
  in.first = layer.first->weight;
  in.first_bias = layer.first->bias;
  in.second = layer.second->weight;
  in.second_bias = layer.second->bias;
  if (!ends) in.in_proj = layers[i + 1].mixer->in_proj->weight;
  in.norms = {
      {{norm.weight, norm.bias, norm.options.eps()}, {next.weight, next.bias, next.options.eps()}}};
  return in;
}

bool chain_takes(const TokenChainInputs& in, const Tensor& x) {
  const auto as_usual = [&](const Tensor& t) {
    constexpr uintptr_t kBytes = 16;  // that the kernels read at a time
    return !t.defined() ||
           (t.scalar_type() == at::kFloat && t.device() == x.device() && t.is_contiguous() &&
            reinterpret_cast<uintptr_t>(t.const_data_ptr()) % kBytes == 0);
  };
  return as_usual(in.out_proj) && as_usual(in.first) && as_usual(in.first_bias) &&
         as_usual(in.second) && as_usual(in.second_bias) && as_usual(in.in_proj) &&
         std::ranges::all_of(
             in.norms, [&](const auto& n) { return as_usual(n.weight) && as_usual(n.bias); }) &&
         ops::cuda_only::token_chain_fits(x, in.out_proj.size(1), in.first.size(0),
                                          in.in_proj.defined() ? in.in_proj.size(0) : 0);
}

/// The layers as chains, or none where one of them doesn't fit.
std::vector<TokenChainInputs> chains_of(const std::vector<Layer>& layers,
                                        const torch::nn::LayerNormImpl& last, const Tensor& x) {
  if (!ops::token_chain_enabled() || !x.is_cuda() || x.scalar_type() != at::kFloat ||
      product_type(x) != at::kBFloat16) {
    return {};
  }
  std::vector<TokenChainInputs> chains;
  for (size_t i = 0; i < layers.size(); ++i) {
    const MambaImpl& mixer = *layers[i].mixer;
    if (mixer.in_proj->bias.defined() || mixer.out_proj->bias.defined()) return {};
    chains.push_back(parameters_of(layers, i, last));
    if (!chain_takes(chains.back(), x)) return {};
  }
  return chains;
}

Tensor run_chained(const std::vector<Layer>& layers, std::vector<TokenChainInputs> chains,
                   ResidualStream& stream, const ops::TokenFlags& flags) {
  Tensor next = linear(*layers[0].mixer->in_proj, stream.norm(*layers[0].norm));
  Tensor x = stream.value();
  for (size_t i = 0; i < layers.size(); ++i) {
    TokenChainInputs& in = chains[i];
    in.y = layers[i].mixer->inner(next, flags);
    in.residual = x;
    const DropoutImpl& dropout = *layers[i].dropout;
    if (dropout.active()) {
      in.dropout = next_dropout(dropout.p(), x.device(), x.size(1) * x.size(2));
    }
    const ChainedTokens out = token_chain(in);
    x = out.x;
    next = out.next;
    in = {};  // or without gradients all layers' tensors would stay
  }
  return next;
}

/// The mirrors of the layers' parameters where this forward pass makes them itself.
std::optional<MirrorScope> mirrors_of(const std::vector<Block>& layers, const Tensor& x) {
  if (!x.is_cuda() || StepScope::current() != nullptr) return std::nullopt;
  const bool bf16 = product_type(x) == at::kBFloat16;
  std::vector<Tensor> matrices, A_logs;
  for (const Block& layer : layers) {
    for (const auto& item : layer->named_parameters()) {
      const Tensor& parameter = item.value();
      if (parameter.dim() != 2 || parameter.scalar_type() != at::kFloat ||
          parameter.device() != x.device() || !parameter.is_contiguous()) {
        continue;
      }
      if (item.key().ends_with("A_log")) A_logs.push_back(parameter);
      if (bf16 && item.key().ends_with("weight")) matrices.push_back(parameter);
    }
  }
  return std::optional<MirrorScope>(std::in_place, matrices, A_logs);
}

}  // namespace

Tensor run_layers(std::vector<Block>& layers, torch::nn::LayerNormImpl& norm, const Tensor& x,
                  const ops::TokenFlags& flags, const Tensor& normed) {
  const std::optional<MirrorScope> mirrors = mirrors_of(layers, x);
  ResidualStream stream(x, normed);
  const std::vector<Layer> parts = mamba_layers(layers);
  std::vector<TokenChainInputs> chains = chains_of(parts, norm, x);
  if (!chains.empty()) return run_chained(parts, std::move(chains), stream, flags);
  for (Block& layer : layers) layer->forward(stream, flags);
  return stream.norm(norm);
}

}  // namespace dmamba::nn
