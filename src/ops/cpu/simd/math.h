// Elementary functions on the vector types; the portable type brings its own from <cmath>.
#pragma once

#include "src/ops/cpu/simd/vec_portable.h"

namespace dmamba::ops::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;

/// 2^x: x = n + r with n whole and |r| <= 1/2; 2^r by a degree-6 minimax polynomial (error 2e-9).
template <class V>
V exp2(V x) {
  x = max_keep_nan(V::set1(-150.0f), min_keep_nan(V::set1(128.0f), x));
  const V n = round_nearest(x);
  const V r = x - n;
  V p = V::set1(1.54614447e-4f);
  p = fma(p, r, V::set1(1.34004282e-3f));
  p = fma(p, r, V::set1(9.61805668e-3f));
  p = fma(p, r, V::set1(5.55032723e-2f));
  p = fma(p, r, V::set1(2.40226509e-1f));
  p = fma(p, r, V::set1(6.93147207e-1f));
  p = fma(p, r, V::set1(1.0f));
  return times_exp2(p, n);
}

/// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with log1p(w) = 2 atanh(w / (2 + w)) as a power
/// series: the argument is at most 1/3, so eight terms are exact to 1e-9 and small results keep all
/// digits.
template <class V>
V softplus(V x) {
  const V w = exp2(negative_abs(x) * V::set1(static_cast<float>(kLog2E)));
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
V sigmoid(V x) {
  const V one = V::set1(1);
  return one / (one + exp2(x * V::set1(static_cast<typename V::Real>(-kLog2E))));
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
