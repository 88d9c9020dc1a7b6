// Selective scan, forward: a vector of channels walks along L with its states in registers.
// The equations stand in kernels/selective_scan/params.h. Work: d_state exponentials a channel and
// token; B and C are broadcast, everything else is read and written once.
#pragma once

#include "kernels/selective_scan/params.h"
#include "src/ops/cpu/simd/access.h"
#include "src/ops/cpu/simd/math.h"

namespace dmamba::ops::cpu {
namespace {

using kernels::SelectiveScanForwardParams;

/// What tokens bring along beside B and C, for a few tokens ahead of the recurrence: these chains
/// are long, and apart from it the processor works on several at a time. Measured at
/// 64 x 256 x 60 on one core: 4.9 ms without, 4.0 with it.
template <class V>
struct Ahead {
  static constexpr int64_t kTokens = 8;
  V dt_log2e[kTokens], dtu[kTokens];
  V skip[kTokens];  // D u
  V gate[kTokens];  // SiLU(z), or 1

  template <class T>
  void load(const SelectiveScanForwardParams& p, const Block<V>& k, int64_t t0, int64_t t1) {
    const V D = load_channel<V>(p.D, k.c, k.n), bias = load_channel<V>(p.delta_bias, k.c, k.n);
    const V log2e = V::set1(static_cast<typename V::Real>(kLog2E));
    for (int64_t t = t0; t < t1; ++t) {
      prefetch_row<T>(p.u, k.b, t + kAhead, p.length, k.c);
      prefetch_row<T>(p.delta, k.b, t + kAhead, p.length, k.c);
      prefetch_row<T>(p.z, k.b, t + kAhead, p.length, k.c);
      const int64_t i = t - t0;
      const V u = V::load(row<const T>(p.u, k.b, t) + k.c, k.n);
      const V raw = V::load(row<const T>(p.delta, k.b, t) + k.c, k.n) + bias;
      const V dt = p.delta_softplus ? softplus(raw) : raw;
      dt_log2e[i] = dt * log2e;
      dtu[i] = dt * u;
      skip[i] = D * u;
      gate[i] = p.z.data ? silu(V::load(row<const T>(p.z, k.b, t) + k.c, k.n)) : V::set1(1);
    }
  }
};

/// The scan of one block of channels. kStates > 0: d_state known at compile time, so that the
/// states stay in registers; 0: any d_state, the states in `h_memory`.
template <class V, class T, int kStates>
void scan_forward_block(const SelectiveScanForwardParams& p, const Block<V>& k, V* A, V* h_memory) {
  using R = typename V::Real;
  const int64_t d_state = kStates > 0 ? kStates : p.d_state;
  V h_registers[kStates > 0 ? kStates : 1];
  V* h = kStates > 0 ? h_registers : h_memory;
  const V zero = V::set1(0);
  for (int64_t n = 0; n < d_state; ++n) {
    A[n] = V::load(static_cast<const R*>(p.A) + n * p.d_inner + k.c, k.n);
    h[n] = p.initial_state.data ? load_state<V>(p.initial_state, k.b, k.c, n, k.n) : zero;
  }
  const int64_t n_checkpoints = p.checkpoint_every > 0 ? (p.length - 1) / p.checkpoint_every : 0;
  Ahead<V> ahead;
  for (int64_t t = 0; t < p.length; ++t) {
    const int64_t i = t % Ahead<V>::kTokens, end = t + Ahead<V>::kTokens;
    if (i == 0) ahead.template load<T>(p, k, t, end < p.length ? end : p.length);
    if (flag(p.segment_starts, k.b, p.length, t, false)) {
      for (int64_t n = 0; n < d_state; ++n) h[n] = zero;
    }
    prefetch_row<T>(p.out, k.b, t + kAhead, p.length, k.c);
    const T* B = row<const T>(p.B, k.b, t);
    const T* C = row<const T>(p.C, k.b, t);
    // Two sums, so that one addition does not wait for the other.
    V y0 = ahead.skip[i], y1 = zero;
    if (flag(p.mask, k.b, p.length, t, true)) {
      const V dt_log2e = ahead.dt_log2e[i], dtu = ahead.dtu[i];
#pragma GCC unroll 16
      for (int64_t n = 0; n < d_state; ++n) {
        h[n] = fma(exp2(dt_log2e * A[n]), h[n], dtu * broadcast<V>(B + n));
        V& y = n % 2 == 0 ? y0 : y1;
        y = fma(h[n], broadcast<V>(C + n), y);
      }
    } else {
#pragma GCC unroll 16
      for (int64_t n = 0; n < d_state; ++n) y0 = fma(h[n], broadcast<V>(C + n), y0);
    }
    ((y0 + y1) * ahead.gate[i]).store(row<T>(p.out, k.b, t) + k.c, k.n);
    if (n_checkpoints > 0 && (t + 1) % p.checkpoint_every == 0 && t + 1 < p.length) {
      const int64_t index = k.b * n_checkpoints + (t + 1) / p.checkpoint_every - 1;
      R* kept = static_cast<R*>(p.checkpoints) + index * d_state * p.d_inner + k.c;
      for (int64_t n = 0; n < d_state; ++n) h[n].store(kept + n * p.d_inner, k.n);
    }
  }
  if (p.last_state.data) {
    for (int64_t n = 0; n < d_state; ++n) store_state<V>(p.last_state, k.b, k.c, n, k.n, h[n]);
  }
}

template <class V, class T>
void scan_forward_typed(const SelectiveScanForwardParams& p, int64_t begin, int64_t end, V* work) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block<V> block(unit, p.d_inner);
    if (p.d_state == 16) {
      scan_forward_block<V, T, 16>(p, block, work, work + p.d_state);
    } else {
      scan_forward_block<V, T, 0>(p, block, work, work + p.d_state);
    }
  }
}

template <class V>
size_t scan_forward_scratch(const SelectiveScanForwardParams& p) {
  return 2 * static_cast<size_t>(p.d_state) * sizeof(V);
}

}  // namespace
}  // namespace dmamba::ops::cpu
