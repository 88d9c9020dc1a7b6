// Walks a few tokens of a few environments through the layers, from kernel to kernel.
#include "src/model/recurrent_cpu.h"

#include <algorithm>
#include <cmath>

#include "src/ops/cpu/tensors.h"

namespace dmamba::model {
namespace {

using kernels::Sequence;
using ops::cpu::KernelTable;
using ops::cpu::PackedMatrix;
using torch::Tensor;

/// Environments that walk together: enough tokens to be worth the way of the weights, few enough
/// for their activations to stay in the second cache.
constexpr int64_t kGroup = 8;
constexpr int64_t kRows = 2 * kGroup;  // a multiple of 16: arrays of so many rows stay aligned

/// torch's default, the model's.
constexpr double kEpsilon = 1e-5;

const float* data(const Tensor& t) { return t.const_data_ptr<float>(); }

/// Rows [begin, end) of out [+]= W x + bias, out's rows as wide as W has rows.
void product(const KernelTable& table, const PackedMatrix& m, const float* x, int64_t x_width,
             float* out, int64_t begin, int64_t end, bool add = false) {
  ops::cpu::ProductParams p = m.params();
  p.add = add;
  p.x = x;
  p.x_stride = x_width;
  p.out = out;
  p.out_stride = m.rows();
  table.product(p, begin, end);
}

void layer_norm(const KernelTable& table, const RecurrentWeights::Norm& norm, const float* x,
                float* out, int64_t begin, int64_t end) {
  table.layer_norm({norm.weight.size(0), kEpsilon, data(norm.weight), data(norm.bias), x, out},
                   begin, end);
}

/// The states (num_envs, width, d_inner) from one environment on.
kernels::StateView states_from(const Tensor& states, int64_t env) {
  if (states.numel() == 0) return {};  // a convolution of width 1 has none
  return {states.data_ptr<float>() + env * states.stride(0), states.stride(0), 1, states.stride(1)};
}

}  // namespace

/// What one pass reads of all environments: what was done, or returns-to-go and states.
struct RecurrentCpu::Tokens {
  const int64_t* timesteps;              // (num_envs,)
  const float* actions = nullptr;        // (num_envs, act_dim); else:
  const float* returns_to_go = nullptr;  // (num_envs,)
  const float* states = nullptr;         // (num_envs, state_dim)
  const bool* first = nullptr;           // (num_envs,)
  float* predicted = nullptr;            // (num_envs, act_dim)

  bool predict() const { return actions == nullptr; }
};

/// The environments [begin, begin + envs) on their way. Row t envs + i of an array is token t of
/// environment begin + i: the last tokens, off which actions are read, lie together.
struct RecurrentCpu::Group {
  int64_t begin, envs, tokens;
  bool starts[kRows];                // (envs, tokens)
  float *x, *normed;                 // d_model wide
  float *inner, *z, *u, *delta, *y;  // d_inner wide
  float *projected, *hidden;         // dt_rank + 2 d_state, 4 d_model wide
  void* kernel_scratch;

  int64_t rows() const { return envs * tokens; }
  Sequence sequence(float* rows, int64_t width) const { return {rows, width, envs * width}; }
};

bool RecurrentCpu::supports(const DMambaImpl& model) {
  const auto& mixers = model.config().token_mixer;
  return nn::TokenKinds(model.config()).all() && model.config().channel_mixing != "ssm" &&
         std::ranges::all_of(mixers, [](const std::string& name) { return name == "mamba"; }) &&
         std::ranges::all_of(model.parameters(), [](const Tensor& t) {
           return t.is_cpu() && t.scalar_type() == torch::kFloat;
         });
}

RecurrentCpu::RecurrentCpu(DMamba model, int64_t num_envs, kernels::Storage storage)
    : model_(std::move(model)), num_envs_(num_envs), storage_(storage), watch_(*model_) {
  repack_if_changed();
  for (const auto& layer : weights_->layers) {
    const int64_t d_inner = layer.D.size(0);
    conv_states_.push_back(torch::zeros({num_envs, layer.conv_weight.size(0) - 1, d_inner}));
    ssm_states_.push_back(torch::zeros({num_envs, layer.A.size(0), d_inner}));
  }
}

void RecurrentCpu::repack_if_changed() {
  if (!watch_.changed()) return;
  TORCH_CHECK(supports(*model_),
              "Policy: the model's parameters are no longer float32 on the CPU; make a new policy");
  weights_ = std::make_unique<const RecurrentWeights>(*model_, storage_);
  watch_.copied();
}

Tensor RecurrentCpu::act(const Tensor& returns_to_go, const Tensor& states, const Tensor& timesteps,
                         const Tensor& first) {
  repack_if_changed();
  const Tensor rtg = returns_to_go.contiguous(), seen = states.contiguous();
  Tensor predicted = torch::empty({num_envs_, model_->act_dim()});
  Tokens tokens{timesteps.const_data_ptr<int64_t>()};
  tokens.returns_to_go = data(rtg);
  tokens.states = data(seen);
  tokens.first = first.const_data_ptr<bool>();
  tokens.predicted = predicted.mutable_data_ptr<float>();
  advance(tokens);
  return predicted;
}

void RecurrentCpu::follow(const Tensor& actions, const Tensor& timesteps) {
  repack_if_changed();
  const Tensor done = actions.contiguous();
  advance({timesteps.const_data_ptr<int64_t>(), data(done)});
}

size_t RecurrentCpu::scratch_bytes() const {
  const RecurrentWeights& w = *weights_;
  const auto& layer = w.layers.front();
  const int64_t width = 2 * w.embed_timestep.size(1) + 5 * layer.D.size(0) + layer.x_proj.rows() +
                        layer.hidden.rows();
  kernels::CausalConv1dParams conv{};
  conv.width = layer.conv_weight.size(0);
  kernels::SelectiveScanForwardParams scan{};
  scan.d_state = layer.A.size(0);
  return static_cast<size_t>(kRows * width) * sizeof(float) +
         std::max(w.table.conv_scratch(conv), w.table.scan_forward_scratch(scan));
}

void RecurrentCpu::advance(const Tokens& tokens) {
  const RecurrentWeights& w = *weights_;
  const auto& some = w.layers.front();
  const int64_t d_model = w.embed_timestep.size(1), d_inner = some.D.size(0);
  at::parallel_for(0, (num_envs_ + kGroup - 1) / kGroup, 1, [&](int64_t begin, int64_t end) {
    float* memory = static_cast<float*>(ops::cpu::thread_scratch(scratch_bytes()));
    const auto take = [&](float*& array, int64_t width) {
      array = memory;
      memory += kRows * width;
    };
    Group g{};
    for (float** array : {&g.x, &g.normed}) take(*array, d_model);
    for (float** array : {&g.inner, &g.z, &g.u, &g.delta, &g.y}) take(*array, d_inner);
    take(g.projected, some.x_proj.rows());
    take(g.hidden, some.hidden.rows());
    g.kernel_scratch = memory;
    g.tokens = tokens.predict() ? 2 : 1;
    for (int64_t i = begin; i < end; ++i) {
      g.begin = i * kGroup;
      g.envs = std::min(kGroup, num_envs_ - g.begin);
      embed(tokens, g);
      for (size_t l = 0; l < w.layers.size(); ++l) {
        // Nothing but the prediction reads what the last layer says of a token.
        const int64_t unread = g.rows() - (tokens.predict() ? g.envs : 0);
        run_layer(l, g, l + 1 < w.layers.size() ? 0 : unread);
      }
      if (tokens.predict()) predict(g, tokens.predicted + g.begin * w.head.rows());
    }
  });
}

/// The tokens' embeddings, into x, and where sequences begin.
void RecurrentCpu::embed(const Tokens& tokens, Group& g) const {
  const RecurrentWeights& w = *weights_;
  const int64_t d = w.embed_timestep.size(1), last = w.embed_timestep.size(0) - 1;
  for (int64_t i = 0; i < g.envs; ++i) {
    // DMambaImpl::step takes the action's time as the one before the next step's.
    const int64_t t = tokens.timesteps[g.begin + i];
    const int64_t row =
        tokens.predict() ? std::min(t, last) : std::max<int64_t>(std::min(t + 1, last) - 1, 0);
    for (int64_t k = 0; k < g.tokens; ++k) {
      std::copy_n(data(w.embed_timestep) + row * d, d, g.x + (k * g.envs + i) * d);
      g.starts[i * g.tokens + k] = tokens.predict() && k == 0 && tokens.first[g.begin + i];
    }
  }
  const auto add = [&](const PackedMatrix& m, const float* values, float* x) {
    product(w.table, m, values + g.begin * m.columns(), m.columns(), x, 0, g.envs, /*add=*/true);
  };
  if (tokens.predict()) {
    add(w.embed_return, tokens.returns_to_go, g.x);
    add(w.embed_state, tokens.states, g.x + g.envs * d);
  } else {
    add(w.embed_action, tokens.actions, g.x);
  }
  layer_norm(w.table, w.embed_ln, g.x, g.x, 0, g.rows());
}

/// One layer, x to x. What it says of rows before `from` is not wanted: they only move the states.
void RecurrentCpu::run_layer(size_t index, const Group& g, int64_t from) {
  const KernelTable& table = weights_->table;
  const auto& l = weights_->layers[index];
  const int64_t d_model = l.out_proj.rows(), d_inner = l.D.size(0), rows = g.rows();
  layer_norm(table, l.norm, g.x, g.normed, 0, rows);
  product(table, l.in_x, g.normed, d_model, g.inner, 0, rows);
  product(table, l.in_z, g.normed, d_model, g.z, from, rows);  // before: whatever lies there
  run_convolution(index, g);
  product(table, l.x_proj, g.u, d_inner, g.projected, 0, rows);
  product(table, l.dt_proj, g.projected, l.x_proj.rows(), g.delta, 0, rows);
  run_scan(index, g);
  product(table, l.out_proj, g.y, d_inner, g.x, from, rows, /*add=*/true);
  if (!l.ln_2.weight.defined()) return;
  const int64_t width = l.hidden.rows();
  layer_norm(table, l.ln_2, g.x, g.normed, from, rows);
  product(table, l.hidden, g.normed, d_model, g.hidden, from, rows);
  float* hidden = g.hidden + from * width;
  const kernels::GeluParams gelu{(rows - from) * width, kernels::Storage::kFloat32, hidden, nullptr,
                                 hidden};
  table.gelu_forward(gelu, 0, gelu.count);
  product(table, l.mix, g.hidden, width, g.x, from, rows, /*add=*/true);
}

/// inner -> u.
void RecurrentCpu::run_convolution(size_t index, const Group& g) {
  const auto& l = weights_->layers[index];
  const int64_t d_inner = l.D.size(0);
  kernels::CausalConv1dForwardParams p{};
  p.batch = g.envs;
  p.length = g.tokens;
  p.d_inner = d_inner;
  p.width = l.conv_weight.size(0);
  p.silu = true;
  p.x = g.sequence(g.inner, d_inner);
  p.weight = data(l.conv_weight);
  p.weight_channel_stride = 1;
  p.weight_tap_stride = d_inner;
  p.bias = data(l.conv_bias);
  p.segment_starts = {g.starts};
  p.initial_state = p.last_state = states_from(conv_states_[index], g.begin);
  p.out = g.sequence(g.u, d_inner);
  const KernelTable& table = weights_->table;
  table.conv_forward(p, 0, ops::cpu::block_units(p.batch, d_inner, table.lanes), g.kernel_scratch);
}

/// u, delta, B, C, z -> y.
void RecurrentCpu::run_scan(size_t index, const Group& g) {
  const auto& l = weights_->layers[index];
  const int64_t d_inner = l.D.size(0), dt_rank = l.dt_proj.columns();
  kernels::SelectiveScanForwardParams p{};
  p.batch = g.envs;
  p.length = g.tokens;
  p.d_inner = d_inner;
  p.d_state = l.A.size(0);
  p.delta_softplus = true;
  p.u = g.sequence(g.u, d_inner);
  p.delta = g.sequence(g.delta, d_inner);
  p.z = g.sequence(g.z, d_inner);
  p.B = g.sequence(g.projected + dt_rank, l.x_proj.rows());
  p.C = g.sequence(g.projected + dt_rank + p.d_state, l.x_proj.rows());
  p.A = data(l.A);
  p.A_channel_stride = 1;
  p.A_state_stride = d_inner;
  p.D = data(l.D);
  p.delta_bias = data(l.delta_bias);
  p.segment_starts = {g.starts};
  p.initial_state = p.last_state = states_from(ssm_states_[index], g.begin);
  p.out = g.sequence(g.y, d_inner);
  const KernelTable& table = weights_->table;
  table.scan_forward(p, 0, ops::cpu::block_units(p.batch, d_inner, table.lanes), g.kernel_scratch);
}

/// Actions (envs, act_dim) off the last tokens.
void RecurrentCpu::predict(const Group& g, float* actions) const {
  const RecurrentWeights& w = *weights_;
  const int64_t d_model = w.head.columns();
  layer_norm(w.table, w.ln_f, g.x, g.normed, g.rows() - g.envs, g.rows());
  product(w.table, w.head, g.normed + (g.rows() - g.envs) * d_model, d_model, actions, 0, g.envs);
  for (int64_t i = 0; i < g.envs * w.head.rows(); ++i) actions[i] = std::tanh(actions[i]);
}

}  // namespace dmamba::model
