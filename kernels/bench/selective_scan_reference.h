// The selective scan and its gradients in double precision on the host, as the equations stand in
// kernels/selective_scan/params.h. Contiguous arrays; written to be read, not to be fast.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace dmamba::bench {

using Doubles = std::vector<double>;

/// Sizes, inputs, and where given the gradients that flow in; everything row-major.
struct ScanProblem {
  int64_t batch, length, d_inner, d_state;
  Doubles u, delta, z, B, C, A, D, delta_bias, initial;
  std::vector<bool> mask, starts;
  Doubles dout, dlast;
};

struct ScanAnswer {
  Doubles out, last, du, ddelta, dz, dB, dC, dA, dD, ddelta_bias, dinitial;
};

inline ScanAnswer selective_scan_reference(const ScanProblem& q) {
  const int64_t L = q.length, N = q.d_state, E = q.d_inner;
  ScanAnswer r;
  for (Doubles* v : {&r.out, &r.du, &r.ddelta, &r.dz}) v->assign(q.u.size(), 0.0);
  r.dB.assign(q.B.size(), 0.0);
  r.dC = r.dB;
  r.dA.assign(q.A.size(), 0.0);
  r.dD.assign(E, 0.0);
  r.ddelta_bias = r.dD;
  r.last.assign(q.initial.size(), 0.0);
  r.dinitial = r.last;
  Doubles h((L + 1) * N), dt(L), dsoftplus(L);
  for (int64_t b = 0; b < q.batch; ++b) {
    for (int64_t e = 0; e < E; ++e) {
      const int64_t state = (b * E + e) * N;
      for (int64_t n = 0; n < N; ++n) h[n] = q.initial[state + n];
      const auto token = [&](int64_t t) { return (b * L + t) * E + e; };
      const auto row = [&](int64_t t) { return (b * L + t) * N; };
      const auto decay = [&](int64_t t, int64_t n) {
        return q.starts[b * L + t] ? 0.0 : std::exp(dt[t] * q.A[e * N + n]);
      };
      for (int64_t t = 0; t < L; ++t) {
        const double x = q.delta[token(t)] + q.delta_bias[e];
        const bool counts = q.mask[b * L + t];
        dt[t] = counts ? std::log1p(std::exp(-std::fabs(x))) + std::fmax(x, 0.0) : 0.0;
        dsoftplus[t] = counts ? 1.0 / (1.0 + std::exp(-x)) : 0.0;
        double y = q.D[e] * q.u[token(t)];
        for (int64_t n = 0; n < N; ++n) {
          h[(t + 1) * N + n] = decay(t, n) * h[t * N + n] + dt[t] * q.u[token(t)] * q.B[row(t) + n];
          y += q.C[row(t) + n] * h[(t + 1) * N + n];
        }
        const double z = q.z[token(t)], s = 1.0 / (1.0 + std::exp(-z));
        r.out[token(t)] = y * z * s;
        r.dz[token(t)] = q.dout[token(t)] * y * s * (1.0 + z * (1.0 - s));
      }
      Doubles ag(N);
      for (int64_t n = 0; n < N; ++n) {
        r.last[state + n] = h[L * N + n];
        ag[n] = q.dlast[state + n];
      }
      for (int64_t t = L - 1; t >= 0; --t) {
        const double z = q.z[token(t)], dy = q.dout[token(t)] * z / (1.0 + std::exp(-z));
        double Bg = 0.0, ddt = 0.0;
        for (int64_t n = 0; n < N; ++n) {
          const double g = q.C[row(t) + n] * dy + ag[n];
          r.dC[row(t) + n] += dy * h[(t + 1) * N + n];
          r.dB[row(t) + n] += dt[t] * q.u[token(t)] * g;
          ag[n] = decay(t, n) * g;
          Bg += q.B[row(t) + n] * g;
          ddt += q.A[e * N + n] * ag[n] * h[t * N + n];
          r.dA[e * N + n] += dt[t] * ag[n] * h[t * N + n];
        }
        r.du[token(t)] = q.D[e] * dy + dt[t] * Bg;
        r.ddelta[token(t)] = (ddt + q.u[token(t)] * Bg) * dsoftplus[t];
        r.dD[e] += dy * q.u[token(t)];
        r.ddelta_bias[e] += r.ddelta[token(t)];
      }
      for (int64_t n = 0; n < N; ++n) r.dinitial[state + n] = ag[n];
    }
  }
  return r;
}

}  // namespace dmamba::bench
