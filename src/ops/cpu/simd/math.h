// Elementary functions on the vector types; the portable type brings its own from <cmath>.
#pragma once

#include "src/ops/cpu/simd/vec_portable.h"

namespace dmamba::ops::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;

/// 2^r for |r| <= 1/2, exactly 1 at 0: a degree-5 minimax polynomial, relative error 1e-7 at the
/// ends and less than x 2e-7 near 0, so that slow decays stay right over many tokens.
template <class V>
V exp2_fraction(V r) {
  V p = V::set1(1.3264704e-3f);
  p = fma(p, r, V::set1(9.67150368e-3f));
  p = fma(p, r, V::set1(5.55072613e-2f));
  p = fma(p, r, V::set1(2.40222424e-1f));
  p = fma(p, r, V::set1(6.93147004e-1f));
  return fma(p, r, V::set1(1.0f));
}

/// 2^x = 2^n 2^r: x = n + r with n whole.
template <class V>
V exp2(V x) {
  x = max_keep_nan(V::set1(-150.0f), min_keep_nan(V::set1(128.0f), x));
  const V n = round_nearest(x);
  return times_exp2(exp2_fraction(x - n), n);
}

/// Of one number: e^-|x|, which softplus and sigmoid both begin with.
template <class V>
V exp_negative_abs(V x) {
  return exp2(negative_abs(x) * V::set1(static_cast<float>(kLog2E)));
}

/// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with log1p(w) = 2 atanh(w / (2 + w)) as a power
/// series: the argument is at most 1/3, so eight terms are exact to 1e-9 and small results keep all
/// digits.
/// `w` is exp_negative_abs(x).
template <class V>
V softplus(V x, V w) {
  const V s = w / (w + V::set1(2.0f));
  const V q = s * s;
  V p = V::set1(2.0f / 15);
  p = fma(p, q, V::set1(2.0f / 13));
  p = fma(p, q, V::set1(2.0f / 11));
  p = fma(p, q, V::set1(2.0f / 9));
  p = fma(p, q, V::set1(2.0f / 7));
  p = fma(p, q, V::set1(2.0f / 5));
  p = fma(p, q, V::set1(2.0f / 3));
  p = fma(p, q, V::set1(2.0f));
  return fma(p, s, max_keep_nan(V::set1(0.0f), x));
}

template <class V>
V softplus(V x) {
  return softplus(x, exp_negative_abs(x));
}

template <class V>
V sigmoid(V x) {
  const V one = V::set1(1);
  return one / (one + exp2(x * V::set1(static_cast<typename V::Real>(-kLog2E))));
}

/// softplus(x) and its derivative sigmoid(x), with one exponential.
template <class V>
struct SoftplusPair {
  V value, slope;
};

template <class V>
SoftplusPair<V> softplus_pair(V x) {
  const V w = exp_negative_abs(x), one = V::set1(1);
  const V inverse = one / (one + w);
  return {softplus(x, w), select_negative(x, w * inverse, inverse)};
}

template <class R>
SoftplusPair<VecScalar<R>> softplus_pair(VecScalar<R> x) {
  return {softplus(x), sigmoid(x)};
}

/// SiLU(x) = x sigmoid(x).
template <class V>
V silu(V x) {
  return x * sigmoid(x);
}

/// dSiLU(x)/dx, given sigmoid(x).
template <class V>
V silu_derivative(V x, V sigma) {
  return sigma * fma(x, V::set1(1) - sigma, V::set1(1));
}

}  // namespace
}  // namespace dmamba::ops::cpu
