// Decision Mamba for games: the whole window at once and one step at a time.
#include "dmamba/model/atari.h"

#include <torch/torch.h>

#include "dmamba/common/error.h"
#include "src/model/layers.h"
#include "src/nn/game_embedding.h"
#include "src/nn/layer_stack.h"
#include "src/nn/plain_dispatch.h"
#include "src/nn/residual_stream.h"
#include "src/nn/step_context.h"

namespace dmamba::model {

using torch::Tensor;

AtariDMambaImpl::AtariDMambaImpl(int64_t num_actions, const config::ModelConfig& config)
    : num_actions_(num_actions), config_(config), kinds_(config) {
  check_positive("AtariDMamba", "num_actions", num_actions);
  if (config.position != "segment" && config.position != "timestep") {
    throw ConfigError("model.position: '" + config.position +
                      "' is unknown; choose one of segment, timestep");
  }
  const int64_t d = config.d_model;
  auto list = torch::nn::ModuleList();
  blocks_ = make_layers("AtariDMamba", config, list);
  const int64_t count = kinds_.count();
  const int64_t places = counts_timesteps() ? count : count * config.context_length + 1;
  pos_emb_ = register_parameter("pos_emb", torch::zeros({1, places, d}));
  global_pos_emb_ = register_parameter("global_pos_emb", torch::zeros({1, config.max_timestep, d}));
  drop_ = register_module("drop", nn::Dropout(config.embedding_dropout));
  register_module("blocks", list);
  ln_f_ = register_module("ln_f", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})));
  head_ = register_module("head",
                          torch::nn::Linear(torch::nn::LinearOptions(d, num_actions).bias(false)));
  torch::NoGradGuard no_grad;
  if (config.initialization == "paper") {
    initialize_as_paper(blocks_);
    head_->weight.normal_(0.0, 0.02);
  }
  state_encoder_ = register_module("state_encoder", nn::make_frame_encoder(config.encoder, d));
  if (kinds_.rtg()) {
    ret_emb_ = register_module("ret_emb",
                               torch::nn::Sequential(torch::nn::Linear(1, d), torch::nn::Tanh()));
  }
  if (!kinds_.actions()) return;
  action_embeddings_ = register_module(
      "action_embeddings",
      torch::nn::Sequential(torch::nn::Embedding(num_actions, d), torch::nn::Tanh()));
  action_embeddings_->at<torch::nn::EmbeddingImpl>(0).weight.normal_(0.0, 0.02);
}

void AtariDMambaImpl::check_inputs(const AtariWindow& window) const {
  const auto dtype = head_->weight.scalar_type();
  TORCH_CHECK(dtype == torch::kFloat || dtype == torch::kDouble,
              "AtariDMamba: the model's parameters must be float32 (or float64), got ", dtype,
              "; call model.float(), and use torch.autocast for arithmetic in bfloat16");
  const int64_t batch = window.states.size(0), K = window.states.size(1);
  const auto check = [&](const char* name, const Tensor& t, at::IntArrayRef sizes,
                         at::ScalarType type) {
    TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == type, "AtariDMamba: ", name, " must be ",
                sizes, " ", type, " to go with ", K, " steps of ", batch, " segments, got ",
                t.sizes(), " ", t.scalar_type());
    TORCH_CHECK(t.device() == device(), "AtariDMamba: ", name, " must be on ", device(),
                ", where the model's parameters are, got a tensor on ", t.device(),
                "; move one of them with .to(...)");
  };
  TORCH_CHECK(K >= 1 && (counts_timesteps() || K <= config_.context_length), "AtariDMamba: ", K,
              " steps, but the model has places for 1 to ", config_.context_length,
              " (model.context_length)");
  check("actions", window.actions, {batch, K}, torch::kLong);
  check("returns_to_go", window.returns_to_go, {batch, K, 1}, dtype);
  check("timesteps", window.timesteps, {batch}, torch::kLong);
  if (window.mask.defined()) check("mask", window.mask, {batch, K}, torch::kBool);
}

/// Tokens (batch, K, kinds, d_model) without their places.
Tensor AtariDMambaImpl::kinds(const Tensor& states, const Tensor& actions,
                              const Tensor& returns_to_go) {
  const auto dtype = head_->weight.scalar_type();
  std::vector<Tensor> tokens;
  if (kinds_.rtg()) tokens.push_back(ret_emb_->forward(returns_to_go).to(dtype));
  tokens.push_back(states.to(dtype));
  if (kinds_.actions()) tokens.push_back(action_embeddings_->forward(actions).to(dtype));
  return torch::stack(tokens, 2);
}

/// (batch, K, kinds, d_model) for positions (batch, K) and the segments' first timesteps (batch,).
Tensor AtariDMambaImpl::places(const Tensor& positions, const Tensor& timesteps) const {
  const Tensor local = pos_emb_.squeeze(0), global = global_pos_emb_.squeeze(0);
  const int64_t last = config_.max_timestep - 1;
  if (counts_timesteps()) {
    const Tensor times = (timesteps.unsqueeze(1) + positions).clamp(0, last);
    return torch::embedding(global, times).unsqueeze(2) + local.view({1, 1, kinds_.count(), -1});
  }
  const Tensor kind = torch::arange(kinds_.count(), positions.options());
  return torch::embedding(global, timesteps.clamp(0, last)).view({-1, 1, 1, local.size(1)}) +
         torch::embedding(local, kinds_.count() * positions.unsqueeze(2) + kind);
}

bool AtariDMambaImpl::has_fused_embedding(const AtariWindow& window) const {
  return kinds_.all() && device().is_cuda() && ops::built_with_cuda() && !counts_timesteps() &&
         head_->weight.scalar_type() == torch::kFloat &&
         ops::cuda_only::game_sizes_fit(config_.d_model, num_actions_) &&
         !(at::GradMode::is_enabled() && window.returns_to_go.requires_grad());
}

AtariDMambaImpl::Tokens AtariDMambaImpl::embed(const AtariWindow& window) {
  const int64_t batch = window.states.size(0), K = window.states.size(1);
  const bool masked = window.mask.defined() && config_.padding == "masked";
  if (has_fused_embedding(window)) {
    const auto& layer = ret_emb_->at<torch::nn::LinearImpl>(0);
    ops::cuda_only::GameInputs in;
    in.returns_to_go = window.returns_to_go;
    in.states = window.states;
    in.actions = window.actions;
    in.timesteps = window.timesteps;
    in.mask = window.mask;
    in.return_weight = layer.weight;
    in.return_bias = layer.bias;
    in.action_table = action_embeddings_->at<torch::nn::EmbeddingImpl>(0).weight;
    in.local = pos_emb_.squeeze(0);
    in.global = global_pos_emb_.squeeze(0);
    if (drop_->active()) {
      in.dropout = nn::next_dropout(drop_->p(), device(), 3 * K * config_.d_model);
    }
    const auto out = nn::embed_game(in);
    return {out.out, masked ? out.token_mask : Tensor()};
  }
  const Tensor positions =
      window.mask.defined()
          ? (window.mask.cumsum(1) - 1).clamp_min(0)
          : torch::arange(K, window.timesteps.options()).unsqueeze(0).expand({batch, K});
  const Tensor tokens = kinds(window.states, window.actions, window.returns_to_go) +
                        places(positions, window.timesteps);
  const int64_t count = kinds_.count();
  return {drop_(tokens.view({batch, count * K, config_.d_model})),
          masked ? window.mask.unsqueeze(2).expand({batch, K, count}).reshape({batch, count * K})
                 : Tensor()};
}

/// In float32 whatever the layers' arithmetic.
Tensor AtariDMambaImpl::logits(const Tensor& y) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return head_->forward(y.to(head_->weight.scalar_type()));
}

Tensor AtariDMambaImpl::run(const AtariWindow& window) {
  check_inputs(window);
  const int64_t batch = window.states.size(0), K = window.states.size(1);
  const Tokens embedded = embed(window);
  ops::TokenFlags flags;
  if (embedded.mask.defined()) flags.mask = embedded.mask;
  return logits(nn::run_layers(blocks_, *ln_f_, embedded.tokens, flags)
                    .view({batch, K, kinds_.count(), config_.d_model})
                    .select(2, kinds_.state()));
}

Tensor AtariDMambaImpl::encode(const Tensor& stacks) {
  TORCH_CHECK(stacks.dim() == 4 && stacks.size(1) == nn::kFrameStack &&
                  stacks.size(2) == nn::kFrameSide && stacks.size(3) == nn::kFrameSide &&
                  stacks.scalar_type() == torch::kByte,
              "AtariDMamba: frames must be (n, 4, 84, 84) uint8, got ", stacks.sizes(), " ",
              stacks.scalar_type());
  TORCH_CHECK(stacks.device() == device(), "AtariDMamba: frames must be on ", device(),
              ", where the model's parameters are, got a tensor on ", stacks.device());
  return state_encoder_->forward(stacks).to(head_->weight.scalar_type());
}

Tensor AtariDMambaImpl::encode_strips(const Tensor& strips) {
  const int64_t before = nn::kFrameStack - 1;
  TORCH_CHECK(strips.dim() == 4 && strips.size(1) > before && strips.size(2) == nn::kFrameSide &&
                  strips.size(3) == nn::kFrameSide && strips.scalar_type() == torch::kByte,
              "AtariDMamba: strips must be (batch, 3 + K, 84, 84) uint8, got ", strips.sizes(), " ",
              strips.scalar_type());
  TORCH_CHECK(strips.device() == device(), "AtariDMamba: strips must be on ", device(),
              ", where the model's parameters are, got a tensor on ", strips.device());
  return state_encoder_->forward_strips(strips).view(
      {strips.size(0), strips.size(1) - before, config_.d_model});
}

Tensor AtariDMambaImpl::forward_encoded(const AtariWindow& window) { return run(window); }

Tensor AtariDMambaImpl::forward(const Tensor& frames, const Tensor& actions,
                                const Tensor& returns_to_go, const Tensor& timesteps,
                                const ops::OptionalTensor& mask) {
  TORCH_CHECK(frames.dim() == 5, "AtariDMamba: frames must be (batch, K, 4, 84, 84) uint8, got ",
              frames.sizes());
  const Tensor states =
      encode(frames.flatten(0, 1)).view({frames.size(0), frames.size(1), config_.d_model});
  return run({states, actions, returns_to_go, timesteps, mask.value_or(Tensor())});
}

Tensor AtariDMambaImpl::loss(const Tensor& strips, const Tensor& actions,
                             const Tensor& returns_to_go, const Tensor& timesteps,
                             const Tensor& mask) {
  const Tensor logits = run({encode_strips(strips), actions, returns_to_go, timesteps, mask});
  // By comparison, not by index: the gradient of an index adds with atomics.
  const Tensor chosen =
      actions.unsqueeze(2) == torch::arange(num_actions_, actions.options()).view({1, 1, -1});
  const Tensor likelihood = (torch::log_softmax(logits, 2) * chosen).sum(2);
  if (!mask.defined()) return -likelihood.mean().to(torch::kFloat);
  const Tensor weight = mask.to(logits.scalar_type());
  return (-(likelihood * weight).sum() / weight.sum()).to(torch::kFloat);
}

RecurrentState AtariDMambaImpl::initial_state(int64_t batch) const {
  RecurrentState state;
  for (const auto& block : blocks_) state.push_back(block->initial_state(batch));
  return state;
}

Tensor AtariDMambaImpl::step(const AtariInput& input, RecurrentState& state) {
  torch::NoGradGuard no_grad;
  const auto as_window = [](const Tensor& t) { return t.unsqueeze(1); };
  const Tensor before = (input.positions - 1).clamp_min(0);
  // One step's tokens, and the place of the action before them.
  const Tensor now = kinds(as_window(input.states), as_window(input.previous_actions),
                           as_window(input.returns_to_go));
  const Tensor here = places(as_window(input.positions), input.timesteps);
  const Tensor there = places(as_window(before), input.timesteps);
  const int64_t count = kinds_.count();
  std::vector<Tensor> tokens;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = (kinds_.first_of_step() + i) % count;
    const Tensor& place = kinds_.actions() && i == 0 ? there : here;
    tokens.push_back((now.select(2, kind) + place.select(2, kind)).squeeze(1));
  }
  nn::ResidualStream x(torch::stack(tokens, 1));
  const ops::TokenFlags flags = step_flags(input.starts, kinds_);
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i]->step(x, flags, *state[i]);
  return logits(x.norm(*ln_f_).select(1, count - 1));
}

void AtariDMambaImpl::begin_with(const AtariWindow& window, const Tensor& which,
                                 RecurrentState& state) {
  torch::NoGradGuard no_grad;
  check_inputs(window);
  // The last action is the next step's to take in.
  const int64_t taken = kinds_.count() * window.states.size(1) - (kinds_.actions() ? 1 : 0);
  nn::ResidualStream x(embed(window).tokens.slice(1, 0, taken));
  RecurrentState fresh = initial_state(window.states.size(0));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i]->step(x, {}, *fresh[i]);
    state[i]->take(which, *fresh[i]);
  }
}

}  // namespace dmamba::model
