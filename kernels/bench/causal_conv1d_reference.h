// The causal convolution and its gradients in double precision on the host, as the equations stand
// in kernels/causal_conv1d/params.h. Contiguous arrays; written to be read, not to be fast.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace dmamba::bench {

using Doubles = std::vector<double>;

/// Sizes and inputs, row-major; bias, initial and dlast may be empty.
struct ConvProblem {
  int64_t batch, length, d_inner, width;
  bool silu;
  Doubles x, weight, bias, initial;
  std::vector<bool> mask, starts;
  Doubles dout, dlast;
};

struct ConvAnswer {
  Doubles out, last, dx, dweight, dbias, dinitial;
};

inline ConvAnswer causal_conv1d_reference(const ConvProblem& q) {
  const int64_t L = q.length, E = q.d_inner, W = q.width, H = W - 1;
  ConvAnswer r;
  r.out.assign(q.x.size(), 0.0);
  r.dx = r.out;
  r.dweight.assign(E * W, 0.0);
  r.dbias.assign(E, 0.0);
  r.last.assign(q.batch * E * H, 0.0);
  r.dinitial = r.last;
  Doubles v(H + L), dv(H + L);  // input i of the sequence at H + i
  for (int64_t b = 0; b < q.batch; ++b) {
    // start[t]: the first input of token t's segment.
    std::vector<int64_t> start(L);
    for (int64_t t = 0; t < L; ++t) {
      start[t] = q.starts[b * L + t] ? t : t > 0 ? start[t - 1] : -H;
    }
    for (int64_t e = 0; e < E; ++e) {
      const auto token = [&](int64_t t) { return (b * L + t) * E + e; };
      const auto state = [&](int64_t j) { return (b * E + e) * H + j; };
      for (int64_t j = 0; j < H; ++j) v[j] = q.initial.empty() ? 0.0 : q.initial[state(j)];
      for (int64_t t = 0; t < L; ++t) v[H + t] = q.mask[b * L + t] ? q.x[token(t)] : 0.0;
      dv.assign(H + L, 0.0);
      for (int64_t t = 0; t < L; ++t) {
        double a = q.bias.empty() ? 0.0 : q.bias[e];
        for (int64_t k = 0; k < W; ++k) {
          if (t - H + k >= start[t]) a += q.weight[e * W + k] * v[t + k];
        }
        const double s = 1.0 / (1.0 + std::exp(-a));
        r.out[token(t)] = q.silu ? a * s : a;
        const double d = q.dout[token(t)] * (q.silu ? s * (1.0 + a * (1.0 - s)) : 1.0);
        for (int64_t k = 0; k < W; ++k) {
          if (t - H + k < start[t]) continue;
          dv[t + k] += q.weight[e * W + k] * d;
          r.dweight[e * W + k] += d * v[t + k];
        }
        r.dbias[e] += d;
      }
      for (int64_t j = 0; j < H; ++j) {
        if (L - H + j < start[L - 1]) continue;
        r.last[state(j)] = v[L + j];
        if (!q.dlast.empty()) dv[L + j] += q.dlast[state(j)];
      }
      for (int64_t j = 0; j < H; ++j) r.dinitial[state(j)] = dv[j];
      for (int64_t t = 0; t < L; ++t) r.dx[token(t)] = q.mask[b * L + t] ? dv[H + t] : 0.0;
    }
  }
  return r;
}

}  // namespace dmamba::bench
