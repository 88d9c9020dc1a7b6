// Decision Mamba: embeddings, layers, head; the whole window at once and one step at a time.
#include "dmamba/model/dmamba.h"

#include <ATen/autocast_mode.h>

#include "src/model/layers.h"
#include "src/nn/action_loss.h"
#include "src/nn/layer_stack.h"
#include "src/nn/plain_dispatch.h"
#include "src/nn/residual_stream.h"
#include "src/nn/step_context.h"
#include "src/nn/token_embedding.h"

namespace dmamba::model {

using torch::Tensor;

DMambaImpl::DMambaImpl(int64_t state_dim, int64_t act_dim, const config::ModelConfig& config)
    : state_dim_(state_dim), act_dim_(act_dim), config_(config), kinds_(config) {
  check_positive("DMamba", "state_dim", state_dim);
  check_positive("DMamba", "act_dim", act_dim);
  const int64_t d = config.d_model;
  auto transformer = register_module("transformer", std::make_shared<torch::nn::Module>("Stack"));
  auto layers = transformer->register_module("h", torch::nn::ModuleList());
  blocks_ = make_layers("DMamba", config, torch::nn::ModuleList(layers));
  ln_f_ =
      transformer->register_module("ln_f", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})));
  if (config.initialization == "paper") initialize_as_paper(blocks_);
  embed_timestep_ = register_module("embed_timestep", torch::nn::Embedding(config.max_timestep, d));
  if (kinds_.rtg()) embed_return_ = register_module("embed_return", torch::nn::Linear(1, d));
  embed_state_ = register_module("embed_state", torch::nn::Linear(state_dim, d));
  if (kinds_.actions()) {
    embed_action_ = register_module("embed_action", torch::nn::Linear(act_dim, d));
  }
  embed_ln_ = register_module("embed_ln", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})));
  embedding_dropout_ = register_module("embedding_dropout", nn::Dropout(config.embedding_dropout));
  predict_action_ = register_module(
      "predict_action", torch::nn::Sequential(torch::nn::Linear(d, act_dim), torch::nn::Tanh()));
}

DMambaImpl::DMambaImpl(int64_t state_dim, int64_t act_dim, const DMambaImpl& trunk)
    : state_dim_(state_dim),
      act_dim_(act_dim),
      config_(trunk.config_),
      kinds_(trunk.kinds_),
      blocks_(trunk.blocks_) {
  check_positive("DMamba", "state_dim", state_dim);
  check_positive("DMamba", "act_dim", act_dim);
  const int64_t d = config_.d_model;
  ln_f_ = trunk.ln_f_;
  register_module("transformer", trunk.named_children()["transformer"]);
  embed_timestep_ = register_module("embed_timestep", trunk.embed_timestep_);
  if (kinds_.rtg()) embed_return_ = register_module("embed_return", trunk.embed_return_);
  embed_state_ = register_module("embed_state", torch::nn::Linear(state_dim, d));
  if (kinds_.actions()) {
    embed_action_ = register_module("embed_action", torch::nn::Linear(act_dim, d));
  }
  embed_ln_ = register_module("embed_ln", trunk.embed_ln_);
  embedding_dropout_ = register_module("embedding_dropout", trunk.embedding_dropout_);
  predict_action_ = register_module(
      "predict_action", torch::nn::Sequential(torch::nn::Linear(d, act_dim), torch::nn::Tanh()));
}

bool DMambaImpl::follows_from_data(const std::string& child) {
  return child == "embed_state" || child == "embed_action" || child == "predict_action";
}

/// A model in bfloat16 would round A, D and the biases of the step sizes too, which the scan needs
/// in float32: autocast gives the fast arithmetic and leaves them whole.
void DMambaImpl::check_parameters() const {
  const auto dtype = embed_state_->weight.scalar_type();
  TORCH_CHECK(dtype == torch::kFloat || dtype == torch::kDouble,
              "DMamba: the model's parameters must be float32 (or float64), got ", dtype,
              "; call model.float(), and use torch.autocast for arithmetic in bfloat16");
}

/// Inputs are as the parameters are; autocast casts, so that any floating type goes in.
void DMambaImpl::check_dtypes(const Tensor& states, const Tensor& actions,
                              const Tensor& returns_to_go) const {
  check_parameters();
  const Tensor& weight = embed_state_->weight;
  const auto dtype = weight.scalar_type();
  const auto device = weight.device().type();
  const bool casts =
      at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
  const auto check = [&](const char* name, const Tensor& t) {
    const bool fits = casts ? t.is_floating_point() : t.scalar_type() == dtype;
    TORCH_CHECK(fits, "DMamba: ", name, " must be ", dtype == torch::kFloat ? "float32" : "float64",
                ", as the model's parameters are, got ", t.scalar_type());
  };
  check("states", states);
  check("actions", actions);
  check("returns_to_go", returns_to_go);
}

/// The fused launches read memory as it is: a tensor on another device must not reach them.
void DMambaImpl::check_devices(
    std::initializer_list<std::pair<const char*, const Tensor*>> tensors) const {
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(tensor->device() == device(), "DMamba: ", name, " must be on ", device(),
                ", where the model's parameters are, got a tensor on ", tensor->device(),
                "; move one of them with .to(...)");
  }
}

void DMambaImpl::check_inputs(const Tensor& states, const Tensor& actions,
                              const Tensor& returns_to_go, const Tensor& timesteps,
                              const ops::OptionalTensor& mask) const {
  TORCH_CHECK(states.dim() == 3 && states.size(2) == state_dim_,
              "DMamba: states must be (batch, K, state_dim = ", state_dim_, "), got ",
              states.sizes());
  const int64_t batch = states.size(0), K = states.size(1);
  TORCH_CHECK(K >= 1, "DMamba: K must be at least 1, got states of ", states.sizes());
  check_dtypes(states, actions, returns_to_go);
  const auto check = [&](const char* name, const Tensor& t, at::IntArrayRef sizes) {
    TORCH_CHECK(t.sizes() == sizes, "DMamba: ", name, " must be ", sizes, " to go with states of ",
                states.sizes(), ", got ", t.sizes());
  };
  check("actions", actions, {batch, K, act_dim_});
  check("returns_to_go", returns_to_go, {batch, K, 1});
  check("timesteps", timesteps, {batch, K});
  TORCH_CHECK(timesteps.scalar_type() == torch::kLong, "DMamba: timesteps must be int64, got ",
              timesteps.scalar_type());
  check_devices({{"states", &states},
                 {"actions", &actions},
                 {"returns_to_go", &returns_to_go},
                 {"timesteps", &timesteps}});
  if (mask.has_value() && mask->defined()) {
    check("mask", *mask, {batch, K});
    TORCH_CHECK(mask->scalar_type() == torch::kBool, "DMamba: mask must be bool, got ",
                mask->scalar_type());
    check_devices({{"mask", &*mask}});
  }
}

Tensor DMambaImpl::embed_tokens(const Tensor& tokens) {
  return embedding_dropout_(embed_ln_(tokens));
}

DMambaImpl::Window DMambaImpl::embed_window(const Tensor& states, const Tensor& actions,
                                            const Tensor& returns_to_go, const Tensor& timesteps,
                                            const Tensor& mask) {
  const int64_t batch = states.size(0), K = states.size(1);
  // The fused function has gradients of parameters alone.
  const bool of_inputs =
      at::GradMode::is_enabled() &&
      (states.requires_grad() || actions.requires_grad() || returns_to_go.requires_grad());
  if (has_fused_steps() && !of_inputs) {
    ops::cuda_only::EmbeddingInputs in =
        fused_embedding({embed_return_, embed_state_, embed_action_});
    in.values = {returns_to_go, states, actions};
    in.timesteps = timesteps;
    in.mask = mask;
    if (embedding_dropout_->active()) {
      in.dropout = nn::next_dropout(embedding_dropout_->p(), device(), 3 * K * config_.d_model);
    }
    const auto type = nn::product_type(in.time);
    if (type == torch::kFloat || type == torch::kBFloat16) {
      const auto& norm = *blocks_.front()->norm();
      in.next = {norm.weight, norm.bias, norm.options.eps(), type};
    }
    const nn::EmbeddedTokens embedded = nn::embed_tokens(in);
    return {embedded.tokens, embedded.mask, embedded.normed};
  }
  const Tensor time = embed_timestep_(timesteps);
  const auto inputs = kinds_.choose(returns_to_go, states, actions);
  const auto layers = kinds_.choose(embed_return_, embed_state_, embed_action_);
  std::vector<Tensor> tokens;
  for (size_t k = 0; k < inputs.size(); ++k) {
    auto layer = layers[k];
    tokens.push_back(layer(inputs[k]) + time);
  }
  const int64_t count = kinds_.count();
  return {embed_tokens(torch::stack(tokens, 2).view({batch, count * K, config_.d_model})),
          mask.defined() ? mask.unsqueeze(2).expand({batch, K, count}).reshape({batch, count * K})
                         : mask,
          {}};
}

ops::cuda_only::EmbeddingInputs DMambaImpl::fused_embedding(
    const std::array<torch::nn::Linear, 3>& kinds) const {
  ops::cuda_only::EmbeddingInputs in;
  for (size_t k = 0; k < kinds.size(); ++k) {
    in.weights[k] = kinds[k]->weight;
    in.biases[k] = kinds[k]->bias;
  }
  in.time = embed_timestep_->weight;
  in.norm_weight = embed_ln_->weight;
  in.norm_bias = embed_ln_->bias;
  in.epsilon = embed_ln_->options.eps();
  return in;
}

bool DMambaImpl::has_fused_steps() const {
  return kinds_.all() && device().is_cuda() && ops::built_with_cuda() &&
         embed_state_->weight.scalar_type() == torch::kFloat &&
         ops::cuda_only::norm_width_fits(config_.d_model);
}

Tensor DMambaImpl::run_window(const Tensor& states, const Tensor& actions,
                              const Tensor& returns_to_go, const Tensor& timesteps,
                              const ops::OptionalTensor& mask) {
  check_inputs(states, actions, returns_to_go, timesteps, mask);
  const bool masked = config_.padding == "masked" && mask.has_value();
  const Window window =
      embed_window(states, actions, returns_to_go, timesteps, masked ? *mask : Tensor());
  ops::TokenFlags flags;
  if (window.mask.defined()) flags.mask = window.mask;
  return nn::run_layers(blocks_, *ln_f_, window.tokens, flags, window.normed);
}

Tensor DMambaImpl::forward(const Tensor& states, const Tensor& actions, const Tensor& returns_to_go,
                           const Tensor& timesteps, const ops::OptionalTensor& mask) {
  const Tensor y = run_window(states, actions, returns_to_go, timesteps, mask);
  const Tensor state_tokens =
      y.view({states.size(0), states.size(1), kinds_.count(), config_.d_model})
          .select(2, kinds_.state());
  return predict_action_->forward(state_tokens);
}

Tensor DMambaImpl::loss(const Tensor& states, const Tensor& actions, const Tensor& returns_to_go,
                        const Tensor& timesteps, const Tensor& mask) {
  if (has_fused_steps()) {
    const Tensor y = run_window(states, actions, returns_to_go, timesteps, mask);
    const auto& head = predict_action_->at<torch::nn::LinearImpl>(0);
    return nn::action_loss(y, head.weight, head.bias, actions, mask);
  }
  return nn::action_error(forward(states, actions, returns_to_go, timesteps, mask), actions, mask);
}

RecurrentState DMambaImpl::initial_state(int64_t batch) const {
  check_parameters();
  RecurrentState state;
  for (const auto& block : blocks_) state.push_back(block->initial_state(batch));
  return state;
}

/// Tokens (batch, 3 at most, d_model): the previous action, return-to-go, state.
Tensor DMambaImpl::embed_step(const RecurrentInput& input) {
  // The previous action belongs to the timestep before; at an episode's start there is none, and
  // its token only opens the new segment.
  const Tensor before = (input.timesteps - 1).clamp_min(0);
  if (has_fused_steps()) {
    ops::cuda_only::EmbeddingInputs in =
        fused_embedding({embed_action_, embed_return_, embed_state_});
    const auto as_window = [](const Tensor& t) { return t.unsqueeze(1); };  // of one step
    in.values = {as_window(input.previous_actions), as_window(input.returns_to_go),
                 as_window(input.states)};
    in.timesteps = as_window(input.timesteps);
    in.first_timesteps = as_window(before);
    return nn::embed_tokens(in).tokens;
  }
  const Tensor time = embed_timestep_(input.timesteps);
  std::vector<Tensor> tokens;
  if (kinds_.actions()) {
    tokens.push_back(embed_action_(input.previous_actions) + embed_timestep_(before));
  }
  if (kinds_.rtg()) tokens.push_back(embed_return_(input.returns_to_go) + time);
  tokens.push_back(embed_state_(input.states) + time);
  return embed_tokens(torch::stack(tokens, 1));
}

Tensor DMambaImpl::step(const RecurrentInput& input, RecurrentState& state) {
  torch::NoGradGuard no_grad;
  check_devices({{"previous_actions", &input.previous_actions},
                 {"returns_to_go", &input.returns_to_go},
                 {"states", &input.states},
                 {"timesteps", &input.timesteps},
                 {"first", &input.first}});
  const Tensor x = embed_step(input);
  const ops::TokenFlags flags = step_flags(input.first, kinds_);
  nn::ResidualStream stream(x);
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i]->step(stream, flags, *state[i]);
  return predict_action_->forward(stream.norm(*ln_f_).select(1, kinds_.count() - 1));
}

}  // namespace dmamba::model
