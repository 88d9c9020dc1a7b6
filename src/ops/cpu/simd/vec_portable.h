// Vec of one lane: the portable fallback, and the only fp64 path. See vec_avx512.h for the
// contract.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/common/types.h"

namespace dmamba::ops::cpu {
namespace {

/// Sixteen 32-bit words, for the random numbers.
struct WordsPortable {
  uint32_t v[16];

  static WordsPortable set1(uint32_t x) {
    WordsPortable w;
    for (uint32_t& word : w.v) word = x;
    return w;
  }
  /// first, first + 1, ..., first + 15.
  static WordsPortable iota(uint32_t first) {
    WordsPortable w;
    for (uint32_t j = 0; j < 16; ++j) w.v[j] = first + j;
    return w;
  }
  void store(uint32_t* p) const { std::memcpy(p, v, sizeof v); }
};

inline WordsPortable operator^(WordsPortable a, WordsPortable b) {
  for (int j = 0; j < 16; ++j) a.v[j] ^= b.v[j];
  return a;
}
/// The lower halves of the 64-bit products; the upper ones go to `high`.
inline WordsPortable multiply(WordsPortable a, uint32_t factor, WordsPortable& high) {
  for (int j = 0; j < 16; ++j) {
    const uint64_t product = static_cast<uint64_t>(a.v[j]) * factor;
    high.v[j] = static_cast<uint32_t>(product >> 32);
    a.v[j] = static_cast<uint32_t>(product);
  }
  return a;
}

template <class R>
struct VecScalar {
  using Real = R;
  using Words = WordsPortable;
  static constexpr int kLanes = 1;
  R v;

  static VecScalar set1(R x) { return {x}; }
  static VecScalar load(const float* p, int) { return {static_cast<R>(*p)}; }
  static VecScalar load(const double* p, int) { return {static_cast<R>(*p)}; }
  static VecScalar load(const kernels::BFloat16* p, int) {
    uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return {static_cast<R>(x)};
  }
  static void load_pairs(const kernels::BFloat16* p, VecScalar& first, VecScalar& second) {
    first = load(p, kLanes);
    second = load(p + 1, kLanes);
  }
  void store(float* p, int) const { *p = static_cast<float>(v); }
  void store(double* p, int) const { *p = static_cast<double>(v); }
  void store(kernels::BFloat16* p, int) const {
    float x = static_cast<float>(v);
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
      p->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays NaN
      return;
    }
    p->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  template <class Term>
  static VecScalar sum_each(const Term& term) {
    return term(0);
  }
};

template <class R>
VecScalar<R> operator+(VecScalar<R> a, VecScalar<R> b) {
  return {a.v + b.v};
}
template <class R>
VecScalar<R> operator-(VecScalar<R> a, VecScalar<R> b) {
  return {a.v - b.v};
}
template <class R>
VecScalar<R> operator*(VecScalar<R> a, VecScalar<R> b) {
  return {a.v * b.v};
}
template <class R>
VecScalar<R> operator/(VecScalar<R> a, VecScalar<R> b) {
  return {a.v / b.v};
}
template <class R>
VecScalar<R> fma(VecScalar<R> a, VecScalar<R> b, VecScalar<R> c) {
  return {a.v * b.v + c.v};
}
template <class R>
VecScalar<R> max_keep_nan(VecScalar<R> floor, VecScalar<R> x) {
  return x.v < floor.v ? floor : x;
}
template <class R>
VecScalar<R> min_keep_nan(VecScalar<R> ceiling, VecScalar<R> x) {
  return x.v > ceiling.v ? ceiling : x;
}
template <class R>
VecScalar<R> exp2(VecScalar<R> x) {
  return {std::exp2(x.v)};
}
template <class R>
VecScalar<R> where_at_least(const uint32_t* words, uint32_t threshold, VecScalar<R> x) {
  return {*words >= threshold ? x.v : R(0)};
}
template <class R>
VecScalar<R> softplus(VecScalar<R> x) {
  return {(x.v > 0 ? x.v : R(0)) + std::log1p(std::exp(-std::fabs(x.v)))};
}

}  // namespace
}  // namespace dmamba::ops::cpu
