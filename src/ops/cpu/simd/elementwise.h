// GELU, alone and with its bias, and dropout, over contiguous arrays.
#pragma once

#include "kernels/elementwise/params.h"
#include "src/ops/cpu/simd/access.h"
#include "src/ops/cpu/simd/math.h"

namespace dmamba::ops::cpu {
namespace {

using kernels::BiasGeluParams;
using kernels::DropoutParams;
using kernels::GeluParams;
using kernels::kRowsPerUnit;
using kernels::MultiplySumParams;

/// Phi(x), the normal distribution function, and e^(-x^2 / 2). With t = |x| / sqrt(2) and
/// w = 1 / (1 + 0.35 t), erfc(t) = e^(-t^2) P(w); P is a degree-9 minimax polynomial, so that even
/// the far tail is right to 1e-7 of itself.
template <class V>
struct Normal {
  V phi, bell;
};

template <class V>
Normal<V> normal_distribution(V x) {
  const V magnitude = V::set1(0) - negative_abs(x);
  const V bell = exp2(x * x * V::set1(static_cast<float>(-0.5 * kLog2E)));
  const V w = V::set1(1) / fma(magnitude, V::set1(0.35f * 0.70710678f), V::set1(1));
  V p = V::set1(0.07565434294f);
  p = fma(p, w, V::set1(-0.4493955851f));
  p = fma(p, w, V::set1(0.9544127861f));
  p = fma(p, w, V::set1(-0.8917215879f));
  p = fma(p, w, V::set1(0.7974881049f));
  p = fma(p, w, V::set1(-0.1416871227f));
  p = fma(p, w, V::set1(0.2756069448f));
  p = fma(p, w, V::set1(0.1804133318f));
  p = fma(p, w, V::set1(0.1993163621f));
  p = fma(p, w, V::set1(-8.75777211e-5f));
  const V tail = p * bell * V::set1(0.5f);
  return {select_negative(x, tail, V::set1(1) - tail), bell};
}

template <class R>
Normal<VecScalar<R>> normal_distribution(VecScalar<R> x) {
  const R half = R(0.5), root_half = static_cast<R>(0.7071067811865476);
  return {{half * std::erfc(-x.v * root_half)}, {std::exp(-half * x.v * x.v)}};
}

/// x brought into [-40, 40], NaN kept. Beyond, Phi is 0 or 1 and its derivative 0 in every type: no
/// other result changes, but an infinite x no longer makes NaN of its product with that zero.
template <class V>
V where_phi_changes(V x) {
  return max_keep_nan(V::set1(-40), min_keep_nan(V::set1(40), x));
}

template <class V, class T>
void gelu_forward_typed(const GeluParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += V::kLanes) {
    const int n = static_cast<int>(end - i < V::kLanes ? end - i : V::kLanes);
    const V x = V::load(static_cast<const T*>(p.x) + i, n);
    const V bounded = max_keep_nan(V::set1(-40), x);  // a large x stays itself
    (bounded * normal_distribution(bounded).phi).store(static_cast<T*>(p.out) + i, n);
  }
}

/// GELU'(x) = Phi(x) + x Phi'(x).
template <class V>
V gelu_slope(V x, const Normal<V>& normal) {
  const V inverse_root =
      V::set1(static_cast<typename V::Real>(0.3989422804014327));  // 1/sqrt(2 pi)
  return fma(x * inverse_root, normal.bell, normal.phi);
}

template <class V, class T>
void gelu_backward_typed(const GeluParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += V::kLanes) {
    const int n = static_cast<int>(end - i < V::kLanes ? end - i : V::kLanes);
    const V x = where_phi_changes(V::load(static_cast<const T*>(p.x) + i, n));
    const V dy = V::load(static_cast<const T*>(p.dy) + i, n);
    (dy * gelu_slope(x, normal_distribution(x))).store(static_cast<T*>(p.out) + i, n);
  }
}

template <class V, class T>
void bias_gelu_typed(const BiasGeluParams& p, int64_t begin, int64_t end) {
  const int64_t last = end * kRowsPerUnit < p.rows ? end * kRowsPerUnit : p.rows;
  for (int64_t r = begin * kRowsPerUnit; r < last; ++r) {
    T* x_row = static_cast<T*>(p.x) + r * p.channels;
    T* y_row = static_cast<T*>(p.out) + r * p.channels;
    for (int64_t c = 0; c < p.channels; c += V::kLanes) {
      const int n = static_cast<int>(p.channels - c < V::kLanes ? p.channels - c : V::kLanes);
      const V x = max_keep_nan(V::set1(-40), V::load(x_row + c, n) + load_channel<V>(p.bias, c, n));
      const V inside = min_keep_nan(V::set1(40), x);
      const Normal<V> normal = normal_distribution(inside);
      (x * normal.phi).store(y_row + c, n);
      gelu_slope(inside, normal).store(x_row + c, n);
    }
  }
}

/// Four columns of vectors at a time: a row's stretch is whole cache lines, the sums stay in
/// registers.
template <class V, class T>
void multiply_sum_typed(const MultiplySumParams& p, int64_t begin, int64_t end) {
  using R = typename V::Real;
  constexpr int64_t kColumns = 4, kStretch = kColumns * V::kLanes;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kRowsPerUnit;
    const int64_t last = first + kRowsPerUnit < p.rows ? first + kRowsPerUnit : p.rows;
    R* sums = static_cast<R*>(p.sum_partial) + unit * p.channels;
    for (int64_t c = 0; c < p.channels; c += kStretch) {
      V sum[kColumns];
      int n[kColumns];
      for (int64_t k = 0; k < kColumns; ++k) {
        const int64_t left = p.channels - c - k * V::kLanes;
        n[k] = static_cast<int>(left < 0 ? 0 : left < V::kLanes ? left : V::kLanes);
        sum[k] = V::set1(0);
      }
      for (int64_t r = first; r < last; ++r) {
        T* dy = static_cast<T*>(p.dy) + r * p.channels + c;
        const T* slope = static_cast<const T*>(p.slope) + r * p.channels + c;
        for (int64_t k = 0; k < kColumns && n[k] > 0; ++k) {
          const V d = V::load(dy + k * V::kLanes, n[k]) * V::load(slope + k * V::kLanes, n[k]);
          d.store(dy + k * V::kLanes, n[k]);
          sum[k] = sum[k] + d;
        }
      }
      for (int64_t k = 0; k < kColumns && n[k] > 0; ++k)
        sum[k].store(sums + c + k * V::kLanes, n[k]);
    }
  }
}

/// Ten rounds of Philox4x32 on sixteen blocks with consecutive counters; word w of block j goes to
/// word[16 w + j]. The same integers as common::philox4x32, sixteen at a time.
template <class V>
void philox_lanes(uint64_t first, uint64_t key, uint32_t (&word)[64]) {
  using Words = typename V::Words;
  Words a = Words::iota(static_cast<uint32_t>(first));  // 16 divides `first`: the sum can't carry
  Words b = Words::set1(static_cast<uint32_t>(first >> 32));
  Words c = Words::set1(0), d = c;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    Words high0, high1;
    const Words low0 = multiply(a, 0xD2511F53u, high0), low1 = multiply(c, 0xCD9E8D57u, high1);
    a = high1 ^ b ^ Words::set1(key0);
    b = low1;
    c = high0 ^ d ^ Words::set1(key1);
    d = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  a.store(word);
  b.store(word + 16);
  c.store(word + 32);
  d.store(word + 48);
}

template <class V, class T>
void dropout_typed(const DropoutParams& p, int64_t begin, int64_t end) {
  using R = typename V::Real;
  constexpr int64_t kStretch = kernels::kDropoutStretch;
  const V scale = V::set1(static_cast<R>(p.scale));
  for (int64_t i = begin; i < end; i += kStretch) {
    uint32_t word[kStretch];
    philox_lanes<V>(static_cast<uint64_t>((p.first + i) / kStretch) * 16, p.key, word);
    const int64_t stop = end - i < kStretch ? end - i : kStretch;
    for (int64_t e = 0; e < stop; e += V::kLanes) {
      const int n = static_cast<int>(stop - e < V::kLanes ? stop - e : V::kLanes);
      const V x = V::load(static_cast<const T*>(p.x) + i + e, n);
      where_at_least(word + e, p.threshold, x * scale).store(static_cast<T*>(p.out) + i + e, n);
    }
  }
}

}  // namespace
}  // namespace dmamba::ops::cpu
