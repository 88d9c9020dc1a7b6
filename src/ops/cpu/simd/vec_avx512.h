// Vec of sixteen floats on AVX-512.
//
// The contract every Vec keeps: Real is the arithmetic type, kLanes the width; load and store take
// the number of lanes in use (kLanes, or fewer at the end of a row: the others read as zero and are
// not written) and convert from and to the storage type; load_pairs takes whole vectors of pairs
// apart; sum_each folds as many vectors as a vector has lanes; exp2 and softplus are accurate to
// about two ulp over the whole range, and NaN goes in as NaN and comes out as NaN.
#pragma once

#include <immintrin.h>

#include "kernels/common/types.h"
#include "src/ops/cpu/simd/math.h"

namespace dmamba::ops::cpu {
namespace {

/// Sixteen 32-bit words, for the random numbers.
struct Words512 {
  __m512i v;

  static Words512 set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static Words512 iota(uint32_t first) {
    return {
        _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
  }
  void store(uint32_t* p) const { _mm512_storeu_si512(p, v); }
};

inline Words512 operator^(Words512 a, Words512 b) { return {_mm512_xor_si512(a.v, b.v)}; }
/// The lower halves of the 64-bit products; the upper ones go to `high`.
inline Words512 multiply(Words512 a, uint32_t factor, Words512& high) {
  const __m512i f = _mm512_set1_epi32(static_cast<int>(factor));
  const __m512i even = _mm512_mul_epu32(a.v, f);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), f);
  high.v = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
  return {_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32))};
}

struct Vec512 {
  using Real = float;
  using Words = Words512;
  static constexpr int kLanes = 16;
  __m512 v;

  static __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec512 set1(float x) { return {_mm512_set1_ps(x)}; }
  static Vec512 load(const float* p, int n) {
    return {n == kLanes ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(lanes(n), p)};
  }
  static Vec512 load(const kernels::BFloat16* p, int n) {
    const __m256i half = n == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                     : _mm256_maskz_loadu_epi16(lanes(n), p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  /// Numbers that lie in pairs: the first of each pair, and the second.
  static void load_pairs(const kernels::BFloat16* p, Vec512& first, Vec512& second) {
    const __m512i both = _mm512_loadu_si512(p);
    first.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    second.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
  }
  void store(float* p, int n) const {
    if (n == kLanes) {
      _mm512_storeu_ps(p, v);
    } else {
      _mm512_mask_storeu_ps(p, lanes(n), v);
    }
  }
  void store(kernels::BFloat16* p, int n) const {
    // Round to nearest, ties to even; NaN keeps a quiet bit so that rounding can't make it
    // infinite.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    if (n == kLanes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, lanes(n), half);
    }
  }
  /// Lane i: the sum over the lanes of term(i), each term asked for once. Halves of sums are joined
  /// in a binary tree as the terms come, so that few of them are alive at a time.
  template <class Term>
  static Vec512 sum_each(const Term& term) {
    // Sums of 2, 4, 8, 16 vectors, with 8, 4, 2, 1 lanes left to each.
    const auto join2 = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    };
    const auto join4 = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    };
    const auto join8 = [](__m512 a, __m512 b) {
      const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
      return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    };
    const auto join16 = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
    };
    const auto four = [&](int64_t i) __attribute__((always_inline)) {
      const __m512 a = term(i).v, b = term(i + 4).v;
      const __m512 ab = join2(a, b);
      const __m512 c = term(i + 8).v, d = term(i + 12).v;
      return join4(ab, join2(c, d));
    };
    const __m512 p = four(0);
    const __m512 pq = join8(p, four(1));
    const __m512 r = four(2);
    return {join16(pq, join8(r, four(3)))};
  }
};

inline Vec512 operator+(Vec512 a, Vec512 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec512 operator-(Vec512 a, Vec512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec512 operator*(Vec512 a, Vec512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec512 operator/(Vec512 a, Vec512 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec512 fma(Vec512 a, Vec512 b, Vec512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// max_ps and min_ps return their second operand where either is NaN.
inline Vec512 max_keep_nan(Vec512 floor, Vec512 x) { return {_mm512_max_ps(floor.v, x.v)}; }
inline Vec512 min_keep_nan(Vec512 ceiling, Vec512 x) { return {_mm512_min_ps(ceiling.v, x.v)}; }
inline Vec512 negative_abs(Vec512 x) { return {_mm512_or_ps(x.v, _mm512_set1_ps(-0.0f))}; }
/// x in the lanes whose word reaches the threshold, zero in the others.
inline Vec512 where_at_least(const uint32_t* words, uint32_t threshold, Vec512 x) {
  const __mmask16 kept = _mm512_cmpge_epu32_mask(_mm512_loadu_si512(words),
                                                 _mm512_set1_epi32(static_cast<int>(threshold)));
  return {_mm512_maskz_mov_ps(kept, x.v)};
}
/// `a` in the lanes where x has a minus sign, `b` in the others.
inline Vec512 select_negative(Vec512 x, Vec512 a, Vec512 b) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), b.v, a.v)};
}

/// 2^x as in math.h; vreduceps takes the fraction, and both it and vscalefps do the right thing
/// with infinities and NaN.
inline Vec512 exp2(Vec512 x) {
  const Vec512 r{_mm512_reduce_ps(x.v, 0x08)};
  return {_mm512_scalef_ps(exp2_fraction(r).v, _mm512_sub_ps(x.v, r.v))};
}

}  // namespace
}  // namespace dmamba::ops::cpu
