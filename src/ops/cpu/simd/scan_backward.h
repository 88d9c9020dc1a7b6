// Selective scan, backward. With g_t = dL/dh_t (all paths) and a_t = exp(dt_t A):
//
//   g_t = C_t dy_t + a_{t+1} g_{t+1}          dA += g_t a_t h_{t-1} dt_t
//   dB_t = g_t dt_t u_t   dC_t = h_t dy_t      ddt_t = sum_n g_t a_t h_{t-1} A + u_t sum_n g_t B_t
//   du_t = D dy_t + dt_t sum_n g_t B_t         dz_t = dout_t y_t SiLU'(z_t)
//
// where dy_t = dout_t SiLU(z_t). The walk goes backwards over stretches of L between checkpoints:
// each stretch is recomputed from its checkpoint with h and a kept in scratch, then walked back, so
// the exponentials are taken once more and memory does not grow with L. dB and dC are sums over
// channels, that is over lanes: sixteen states' vectors are folded into one of sixteen sums at once
// (Vec::sum_each), because keeping them apart until the end costs more in traffic with the second
// level cache.
#pragma once

#include "src/ops/cpu/simd/scan_forward.h"

namespace dmamba::ops::cpu {
namespace {

using kernels::SelectiveScanBackwardParams;

/// Tokens between checkpoints: what is recomputed at a time.
inline int64_t stretch_length(const SelectiveScanBackwardParams& p) {
  return p.checkpoint_every > 0 && p.checkpoint_every < p.length ? p.checkpoint_every : p.length;
}

/// Vectors that hold one number a state.
template <class V>
int64_t state_vectors(int64_t d_state) {
  return (d_state + V::kLanes - 1) / V::kLanes;
}

/// Scratch of one (sequence, group); pointers into one allocation.
template <class V>
struct BackwardScratch {
  V *A, *none;                     // (n): of the block at work; zeros, the state before a segment
  V *h, *a;                        // of the block at work: (s + 1, n), (s, n)
  V *dt, *u, *dy, *slope, *dgate;  // (s): as in the equations; softplus', dout SiLU'(z)
  V *dB, *dC;                      // (s, n / lanes): a state a lane, summed over the group
  V *g, *dA, *dD, *dbias;          // (blocks, n) twice, (blocks) twice: carried across stretches

  BackwardScratch(const SelectiveScanBackwardParams& p, V* memory) {
    const int64_t s = stretch_length(p), n = p.d_state;
    const int64_t blocks = (p.group_channels + V::kLanes - 1) / V::kLanes;
    auto take = [&memory](int64_t count) {
      V* start = memory;
      memory += count;
      return start;
    };
    A = take(n);
    none = take(n);
    for (int64_t i = 0; i < n; ++i) none[i] = V::set1(0);
    h = take((s + 1) * n);
    a = take(s * n);
    dt = take(s);
    u = take(s);
    dy = take(s);
    slope = take(s);
    dgate = take(s);
    dB = take(s * state_vectors<V>(n));
    dC = take(s * state_vectors<V>(n));
    g = take(blocks * n);
    dA = take(blocks * n);
    dD = take(blocks);
    dbias = take(blocks);
  }

  static size_t bytes(const SelectiveScanBackwardParams& p) {
    const int64_t s = stretch_length(p), n = p.d_state;
    const int64_t blocks = (p.group_channels + V::kLanes - 1) / V::kLanes;
    return static_cast<size_t>(n * (3 + 2 * s) + s * (5 + 2 * state_vectors<V>(n)) +
                               blocks * (2 * n + 2)) *
           sizeof(V);
  }
};

/// Calls term(n) for each state and adds its sum over the lanes to lane n of `sums`.
template <class V, int kStates, class Term>
void add_sums(int64_t d_state, V* sums, const Term& term) {
  const auto or_zero = [&](int64_t n) __attribute__((always_inline)) {
    return (kStates > 0 && kStates % V::kLanes == 0) || n < d_state ? term(n) : V::set1(0);
  };
#pragma GCC unroll 16
  for (int64_t n = 0; n < (kStates > 0 ? kStates : d_state); n += V::kLanes) {
    V& sum = sums[n / V::kLanes];
    sum =
        sum + V::sum_each([&](int64_t i) __attribute__((always_inline)) { return or_zero(n + i); });
  }
}

/// What does not depend on the state, for tokens [t0, t1): dt, u, dy, slope and dgate. Apart from
/// the recurrence, so that the processor works on several tokens at a time.
template <class V, class T>
void prepare_stretch(const SelectiveScanBackwardParams& p, const Block<V>& k, int64_t t0,
                     int64_t t1, const BackwardScratch<V>& w) {
  const V bias = load_channel<V>(p.delta_bias, k.c, k.n), zero = V::set1(0), one = V::set1(1);
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t i = t - t0;
    prefetch_row<T>(p.u, k.b, t + kAhead, p.length, k.c);
    prefetch_row<T>(p.delta, k.b, t + kAhead, p.length, k.c);
    prefetch_row<T>(p.z, k.b, t + kAhead, p.length, k.c);
    prefetch_row<T>(p.dout, k.b, t + kAhead, p.length, k.c);
    w.u[i] = V::load(row<const T>(p.u, k.b, t) + k.c, k.n);
    SoftplusPair<V> dt{zero, zero};
    if (flag(p.mask, k.b, p.length, t, true)) {
      const V raw = V::load(row<const T>(p.delta, k.b, t) + k.c, k.n) + bias;
      dt = p.delta_softplus ? softplus_pair(raw) : SoftplusPair<V>{raw, one};
    }
    w.dt[i] = dt.value;
    w.slope[i] = dt.slope;
    const V dout = V::load(row<const T>(p.dout, k.b, t) + k.c, k.n);
    w.dy[i] = dout;
    if (p.z.data) {
      const V z = V::load(row<const T>(p.z, k.b, t) + k.c, k.n);
      const V sigma = sigmoid(z);
      w.dy[i] = dout * z * sigma;
      w.dgate[i] = dout * silu_derivative(z, sigma);
    }
  }
}

/// Recomputes h and a of tokens [t0, t1) into scratch; adds to dC; writes dz.
template <class V, class T, int kStates>
void recompute_stretch(const SelectiveScanBackwardParams& p, const Block<V>& k, int64_t t0,
                       int64_t t1, const BackwardScratch<V>& w) {
  using R = typename V::Real;
  const int64_t d_state = kStates > 0 ? kStates : p.d_state;
  const V D = load_channel<V>(p.D, k.c, k.n);
  const V zero = V::set1(0), one = V::set1(1), log2e = V::set1(static_cast<R>(kLog2E));
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t i = t - t0;
    prefetch_row<T>(p.dz, k.b, t + kAhead, p.length, k.c);
    const bool live = flag(p.mask, k.b, p.length, t, true);
    const bool restart = flag(p.segment_starts, k.b, p.length, t, false);
    const V* before = restart ? w.none : w.h + i * d_state;
    V* after = w.h + (i + 1) * d_state;
    V* a = w.a + i * d_state;
    const T* B = row<const T>(p.B, k.b, t);
    const T* C = row<const T>(p.C, k.b, t);
    const V u = w.u[i], dt = w.dt[i], dy = w.dy[i], dt_log2e = dt * log2e, dtu = dt * u;
    V y[2] = {D * u, zero};  // two sums, so that one addition does not wait for the other
    add_sums<V, kStates>(d_state, w.dC + i * state_vectors<V>(d_state),
                         [&](int64_t n) __attribute__((always_inline)) {
                           a[n] = live ? exp2(dt_log2e * w.A[n]) : one;
                           const V h =
                               live ? fma(a[n], before[n], dtu * broadcast<V>(B + n)) : before[n];
                           after[n] = h;
                           V& sum = y[n / 4 % 2];
                           sum = fma(h, broadcast<V>(C + n), sum);
                           return dy * h;
                         });
    if (p.z.data) (w.dgate[i] * (y[0] + y[1])).store(row<T>(p.dz, k.b, t) + k.c, k.n);
  }
}

/// Walks the recomputed stretch backwards, adding to dB and to the sums of block `j` of the group.
template <class V, class T, int kStates>
void walk_back(const SelectiveScanBackwardParams& p, const Block<V>& k, int64_t j, int64_t t0,
               int64_t t1, const BackwardScratch<V>& w) {
  const int64_t d_state = kStates > 0 ? kStates : p.d_state;
  const V D = load_channel<V>(p.D, k.c, k.n), zero = V::set1(0);
  V* kept_g = w.g + j * d_state;
  V* dA = w.dA + j * d_state;
  V g_registers[kStates > 0 ? kStates : 1];
  V* g = kStates > 0 ? g_registers : kept_g;
  for (int64_t n = 0; n < d_state; ++n) g[n] = kept_g[n];
  for (int64_t t = t1 - 1; t >= t0; --t) {
    const int64_t i = t - t0;
    prefetch_row<T>(p.du, k.b, t - kAhead, p.length, k.c);
    prefetch_row<T>(p.ddelta, k.b, t - kAhead, p.length, k.c);
    const bool restart = flag(p.segment_starts, k.b, p.length, t, false);
    const V* before = restart ? w.none : w.h + i * d_state;
    const V* a = w.a + i * d_state;
    const T* B = row<const T>(p.B, k.b, t);
    const T* C = row<const T>(p.C, k.b, t);
    // What a token that does not count holds, NaN perhaps, must not reach the sums over the tokens.
    const bool live = flag(p.mask, k.b, p.length, t, true);
    const V dt = w.dt[i], u = w.u[i], dy = w.dy[i], dtu = live ? dt * u : zero;
    V sum_B = zero, sum_A = zero;
    add_sums<V, kStates>(d_state, w.dB + i * state_vectors<V>(d_state),
                         [&](int64_t n) __attribute__((always_inline)) {
                           const V g_n = fma(dy, broadcast<V>(C + n), g[n]);
                           sum_B = fma(g_n, broadcast<V>(B + n), sum_B);
                           const V carried = g_n * a[n];
                           const V through_a = carried * before[n];
                           sum_A = fma(through_a, w.A[n], sum_A);
                           dA[n] = fma(through_a, dt, dA[n]);
                           g[n] = carried;
                           return g_n * dtu;
                         });
    if (restart) {
      for (int64_t n = 0; n < d_state; ++n) g[n] = zero;
    }
    fma(D, dy, dt * sum_B).store(row<T>(p.du, k.b, t) + k.c, k.n);
    const V ddelta = live ? fma(u, sum_B, sum_A) * w.slope[i] : zero;
    ddelta.store(row<T>(p.ddelta, k.b, t) + k.c, k.n);
    w.dbias[j] = w.dbias[j] + ddelta;
    w.dD[j] = fma(dy, u, w.dD[j]);
  }
  for (int64_t n = 0; n < d_state; ++n) kept_g[n] = g[n];
}

/// Loads A and the state before token t0 of a block.
template <class V>
void enter_stretch(const SelectiveScanBackwardParams& p, const Block<V>& k, int64_t t0,
                   const BackwardScratch<V>& w) {
  using R = typename V::Real;
  const int64_t n_checkpoints = p.checkpoint_every > 0 ? (p.length - 1) / p.checkpoint_every : 0;
  for (int64_t n = 0; n < p.d_state; ++n) {
    w.A[n] = V::load(static_cast<const R*>(p.A) + n * p.d_inner + k.c, k.n);
    if (t0 > 0) {
      const int64_t index = k.b * n_checkpoints + t0 / p.checkpoint_every - 1;
      const R* kept = static_cast<const R*>(p.checkpoints) + (index * p.d_state + n) * p.d_inner;
      w.h[n] = V::load(kept + k.c, k.n);
    } else {
      w.h[n] = p.initial_state.data ? load_state<V>(p.initial_state, k.b, k.c, n, k.n) : V::set1(0);
    }
  }
}

/// Writes what a block has summed over the whole sequence.
template <class V>
void leave_block(const SelectiveScanBackwardParams& p, const Block<V>& k, int64_t j,
                 const BackwardScratch<V>& w) {
  using R = typename V::Real;
  for (int64_t n = 0; n < p.d_state; ++n) {
    R* dA = static_cast<R*>(p.dA_partial) + (k.b * p.d_state + n) * p.d_inner + k.c;
    w.dA[j * p.d_state + n].store(dA, k.n);
    if (p.dinitial_state.data) {
      store_state<V>(p.dinitial_state, k.b, k.c, n, k.n, w.g[j * p.d_state + n]);
    }
  }
  const int64_t at = k.b * p.d_inner + k.c;
  if (p.dD_partial) w.dD[j].store(static_cast<R*>(p.dD_partial) + at, k.n);
  if (p.ddelta_bias_partial) w.dbias[j].store(static_cast<R*>(p.ddelta_bias_partial) + at, k.n);
}

/// One sequence, one group of channels.
template <class V, class T, int kStates>
void scan_backward_unit(const SelectiveScanBackwardParams& p, int64_t b, int64_t group,
                        const BackwardScratch<V>& w) {
  using R = typename V::Real;
  const int64_t first = group * p.group_channels;
  const int64_t last = first + p.group_channels < p.d_inner ? first + p.group_channels : p.d_inner;
  const int64_t lanes = V::kLanes, stretch = stretch_length(p), d_state = p.d_state;
  const auto block = [&](int64_t c) {
    Block<V> k(0, p.d_inner);
    k.b = b;
    k.c = c;
    k.n = static_cast<int>(last - c < lanes ? last - c : lanes);
    return k;
  };
  for (int64_t c = first, j = 0; c < last; c += lanes, ++j) {
    const Block<V> k = block(c);
    for (int64_t n = 0; n < d_state; ++n) {
      w.g[j * d_state + n] =
          p.dlast_state.data ? load_state<V>(p.dlast_state, b, c, n, k.n) : V::set1(0);
      w.dA[j * d_state + n] = V::set1(0);
    }
    w.dD[j] = w.dbias[j] = V::set1(0);
  }
  for (int64_t t0 = (p.length - 1) / stretch * stretch; t0 >= 0; t0 -= stretch) {
    const int64_t t1 = t0 + stretch < p.length ? t0 + stretch : p.length;
    const int64_t vectors = state_vectors<V>(d_state);
    for (int64_t i = 0; i < (t1 - t0) * vectors; ++i) w.dB[i] = w.dC[i] = V::set1(0);
    for (int64_t c = first, j = 0; c < last; c += lanes, ++j) {
      const Block<V> k = block(c);
      enter_stretch(p, k, t0, w);
      prepare_stretch<V, T>(p, k, t0, t1, w);
      recompute_stretch<V, T, kStates>(p, k, t0, t1, w);
      walk_back<V, T, kStates>(p, k, j, t0, t1, w);
      if (t0 == 0) leave_block(p, k, j, w);
    }
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t at = ((group * p.batch + b) * p.length + t) * d_state;
      for (int64_t i = 0; i < vectors; ++i) {
        const int64_t n = i * lanes, left = d_state - n;
        const int used = static_cast<int>(left < lanes ? left : lanes);
        w.dB[(t - t0) * vectors + i].store(static_cast<R*>(p.dB_partial) + at + n, used);
        w.dC[(t - t0) * vectors + i].store(static_cast<R*>(p.dC_partial) + at + n, used);
      }
    }
  }
}

template <class V, class T>
void scan_backward_typed(const SelectiveScanBackwardParams& p, int64_t begin, int64_t end,
                         V* work) {
  const BackwardScratch<V> scratch(p, work);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.n_groups, group = unit % p.n_groups;
    if (p.d_state == 16) {
      scan_backward_unit<V, T, 16>(p, b, group, scratch);
    } else {
      scan_backward_unit<V, T, 0>(p, b, group, scratch);
    }
  }
}

}  // namespace
}  // namespace dmamba::ops::cpu
