// A model with random weights, and its step in double precision, for policy_step_bench.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <random>
#include <vector>

#include "kernels/policy_step/pack.h"

namespace dmamba::bench {

using kernels::kPolicyStateRows;
using kernels::kPolicyStates;
using kernels::kPolicyTaps;
using kernels::kPolicyTokens;
using kernels::PolicyStepModel;
using kernels::PolicyStepSizes;

/// d_inner 2 d_model, dt_rank d_model / 16 rounded up, a mixer of 4 d_model.
inline PolicyStepSizes sizes_of(int d_model, int n_layer, bool mixes, int state_dim, int act_dim) {
  return {d_model, 2 * d_model, (d_model + 15) / 16, n_layer, mixes ? 4 * d_model : 0, state_dim,
          act_dim, 100};
}

class RandomModel {
 public:
  explicit RandomModel(const PolicyStepSizes& s) : sizes(s) {
    const int d = s.d_model, inner = s.d_inner;
    view.embed_action = linear(d, s.act_dim);
    view.embed_return = linear(d, 1);
    view.embed_state = linear(d, s.state_dim);
    view.embed_ln = norm();
    for (int i = 0; i < s.n_layer; ++i) {
      PolicyStepModel::Layer l{};
      l.norm = norm();
      l.in_proj = linear(2 * inner, d);
      l.conv = linear(inner, kPolicyTaps);
      l.x_proj = linear(s.dt_rank + 2 * kPolicyStates, inner);
      l.dt_proj = {numbers(inner * s.dt_rank, -0.5F, 0.5F), numbers(inner, -5, -1)};
      l.A_log = numbers(inner * kPolicyStates, 0, 2.8F);
      l.D = numbers(inner, 0.5F, 1.5F);
      l.out_proj = linear(d, inner);
      if (s.hidden > 0) {
        l.mixer_norm = norm();
        l.wide = linear(s.hidden, d);
        l.back = linear(d, s.hidden);
      }
      view.layers.push_back(l);
    }
    view.ln_f = norm();
    view.head = linear(s.act_dim, d);
    time = numbers(s.max_timestep * d, -0.5F, 0.5F);
  }

  PolicyStepSizes sizes;
  PolicyStepModel view;
  const float* time;  // (max_timestep, d_model)

 private:
  const float* numbers(int count, float low, float high) {
    std::uniform_real_distribution<float> values(low, high);
    auto& memory = memory_.emplace_back(static_cast<size_t>(count));
    for (float& x : memory) x = values(random_);
    return memory.data();
  }
  PolicyStepModel::Linear linear(int outputs, int inputs) {
    const float bound = std::sqrt(3.0F / static_cast<float>(inputs));
    return {numbers(outputs * inputs, -bound, bound), numbers(outputs, -0.3F, 0.3F)};
  }
  PolicyStepModel::Linear norm() {
    return {numbers(sizes.d_model, 0.5F, 1.5F), numbers(sizes.d_model, -0.3F, 0.3F)};
  }

  std::mt19937 random_{11};
  std::deque<std::vector<float>> memory_;
};

/// The step of one environment after the other, with its states.
class PolicyStepReference {
 public:
  using Row = std::vector<double>;

  PolicyStepReference(const RandomModel& model, int num_envs)
      : m_(model.view),
        s_(model.sizes),
        time_(model.time),
        actions(static_cast<size_t>(num_envs) * model.sizes.act_dim),
        states(static_cast<size_t>(model.sizes.n_layer) * num_envs * state_size()),
        num_envs_(num_envs) {}

  /// `seen` as in PolicyStepParams; actions in and out.
  void step(const std::vector<float>& seen) {
    for (int env = 0; env < num_envs_; ++env) step(env, seen.data() + env * (s_.state_dim + 3));
  }

 private:
  const PolicyStepModel& m_;
  const PolicyStepSizes s_;
  const float* time_;

 public:
  Row actions;  // (num_envs, act_dim)
  Row states;   // as in PolicyStepParams

 private:
  size_t state_size() const { return static_cast<size_t>(kPolicyStateRows) * s_.d_inner; }
  double* states_of(int layer, int env) {
    return states.data() + (static_cast<size_t>(layer) * num_envs_ + env) * state_size();
  }

  static Row apply(const PolicyStepModel::Linear& linear, const Row& x, int outputs,
                   bool biased = true) {
    Row y(static_cast<size_t>(outputs));
    for (size_t o = 0; o < y.size(); ++o) {
      y[o] = biased ? linear.bias[o] : 0.0;
      for (size_t i = 0; i < x.size(); ++i) y[o] += linear.weight[o * x.size() + i] * x[i];
    }
    return y;
  }

  static Row normed(const PolicyStepModel::Linear& norm, const Row& x) {
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * norm.weight[i] + norm.bias[i];
    }
    return y;
  }

  static double silu(double x) { return x / (1 + std::exp(-x)); }
  static void add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  void step(int env, const float* seen) {
    const int state_dim = s_.state_dim, act_dim = s_.act_dim, d = s_.d_model;
    const bool first = seen[state_dim + 2] != 0;
    const int now = static_cast<int>(seen[state_dim + 1]);
    double* action = actions.data() + env * act_dim;
    Row tokens[] = {apply(m_.embed_action, Row(action, action + act_dim), d),
                    apply(m_.embed_return, Row{seen[state_dim]}, d),
                    apply(m_.embed_state, Row(seen, seen + state_dim), d)};
    if (first) forget(env);
    for (int k = 0; k < kPolicyTokens; ++k) {
      const int row = k == 0 ? std::max(now - 1, 0) : now;
      Row& x = tokens[k];
      for (int i = 0; i < d; ++i) x[i] += time_[row * d + i];
      x = normed(m_.embed_ln, x);
      for (int layer = 0; layer < s_.n_layer; ++layer) mix(layer, env, x, first && k == 0);
    }
    const Row predicted = apply(m_.head, normed(m_.ln_f, tokens[kPolicyTokens - 1]), act_dim);
    for (int a = 0; a < act_dim; ++a) action[a] = std::tanh(predicted[a]);
  }

  void forget(int env) {
    for (int layer = 0; layer < s_.n_layer; ++layer) {
      std::fill_n(states_of(layer, env), state_size(), 0.0);
    }
  }

  void mix(int layer, int env, Row& x, bool masked) {
    const auto& l = m_.layers[static_cast<size_t>(layer)];
    const int inner = s_.d_inner, rank = s_.dt_rank;
    double* before = states_of(layer, env);
    double* h = before + (kPolicyTaps - 1) * inner;
    const Row xz = apply(l.in_proj, normed(l.norm, x), 2 * inner, false);
    Row u(static_cast<size_t>(inner));
    for (int c = 0; c < inner; ++c) {
      const double window[] = {before[c], before[inner + c], before[2 * inner + c],
                               masked ? 0.0 : xz[c]};
      double sum = l.conv.bias[c];
      for (int t = 0; t < kPolicyTaps; ++t) sum += l.conv.weight[c * kPolicyTaps + t] * window[t];
      for (int t = 0; t + 1 < kPolicyTaps; ++t) before[t * inner + c] = window[t + 1];
      u[c] = silu(sum);
    }
    const Row projected = apply(l.x_proj, u, rank + 2 * kPolicyStates, false);
    const Row delta = apply(l.dt_proj, Row(projected.begin(), projected.begin() + rank), inner);
    Row y(static_cast<size_t>(inner));
    for (int c = 0; c < inner; ++c) {
      const double dt = masked ? 0.0 : std::log1p(std::exp(delta[c]));
      double sum = l.D[c] * u[c];
      for (int n = 0; n < kPolicyStates; ++n) {
        double& state = h[n * inner + c];
        const double A = -std::exp(static_cast<double>(l.A_log[c * kPolicyStates + n]));
        state = std::exp(dt * A) * state + dt * u[c] * projected[rank + n];
        sum += projected[rank + kPolicyStates + n] * state;
      }
      y[c] = sum * silu(xz[inner + c]);
    }
    add(x, apply(l.out_proj, y, s_.d_model, false));
    if (s_.hidden == 0) return;
    Row wide = apply(l.wide, normed(l.mixer_norm, x), s_.hidden);
    for (double& v : wide) v *= 0.5 * (1 + std::erf(v / std::sqrt(2.0)));
    add(x, apply(l.back, wide, s_.d_model));
  }

  int num_envs_;
};

}  // namespace dmamba::bench
