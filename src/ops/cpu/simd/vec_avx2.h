// Vec of eight floats on AVX2 with FMA. See vec_avx512.h for the contract.
#pragma once

#include <immintrin.h>

#include "kernels/common/types.h"

namespace dmamba::ops::cpu {
namespace {

/// Sixteen 32-bit words, for the random numbers.
struct Words256 {
  __m256i low, high;

  static Words256 set1(uint32_t x) {
    const __m256i v = _mm256_set1_epi32(static_cast<int>(x));
    return {v, v};
  }
  static Words256 iota(uint32_t first) {
    const __m256i v = _mm256_set1_epi32(static_cast<int>(first));
    return {_mm256_add_epi32(v, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_add_epi32(v, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
  }
  void store(uint32_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), high);
  }
};

inline Words256 operator^(Words256 a, Words256 b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
inline __m256i multiply(__m256i a, __m256i factor, __m256i& high) {
  const __m256i even = _mm256_mul_epu32(a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}
/// The lower halves of the 64-bit products; the upper ones go to `high`.
inline Words256 multiply(Words256 a, uint32_t factor, Words256& high) {
  const __m256i f = _mm256_set1_epi32(static_cast<int>(factor));
  return {multiply(a.low, f, high.low), multiply(a.high, f, high.high)};
}

struct Vec256 {
  using Real = float;
  using Words = Words256;
  static constexpr int kLanes = 8;
  __m256 v;

  static __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec256 set1(float x) { return {_mm256_set1_ps(x)}; }
  static Vec256 load(const float* p, int n) {
    return {n == kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n))};
  }
  static Vec256 load(const kernels::BFloat16* p, int n) {
    __m128i half;
    if (n == kLanes) {
      half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    } else {
      alignas(16) uint16_t part[8] = {};
      for (int i = 0; i < n; ++i) part[i] = p[i].bits;
      half = _mm_load_si128(reinterpret_cast<const __m128i*>(part));
    }
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static void load_pairs(const kernels::BFloat16* p, Vec256& first, Vec256& second) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    first.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    second.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)));
  }
  void store(float* p, int n) const {
    if (n == kLanes) {
      _mm256_storeu_ps(p, v);
    } else {
      _mm256_maskstore_ps(p, lanes(n), v);
    }
  }
  void store(kernels::BFloat16* p, int n) const {
    // Round to nearest, ties to even; NaN keeps a quiet bit so that rounding can't make it
    // infinite.
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i chosen = _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
    const __m256i high = _mm256_srli_epi32(chosen, 16);
    alignas(16) uint16_t part[8];
    _mm_store_si128(
        reinterpret_cast<__m128i*>(part),
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    for (int i = 0; i < n; ++i) p[i].bits = part[i];
  }
  /// Lane i: the sum over the lanes of term(i), each term asked for once; see vec_avx512.h.
  template <class Term>
  static Vec256 sum_each(const Term& term) {
    const auto join2 = [](__m256 a, __m256 b) {
      return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    const auto join4 = [](__m256 a, __m256 b) {
      const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
      return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    };
    const auto join8 = [](__m256 a, __m256 b) {
      return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
    };
    const auto two = [&](int64_t i) __attribute__((always_inline)) {
      const __m256 a = term(i).v;
      return join2(a, term(i + 4).v);
    };
    const __m256 p = two(0);
    const __m256 pq = join4(p, two(1));
    const __m256 r = two(2);
    return {join8(pq, join4(r, two(3)))};
  }
};

inline Vec256 operator+(Vec256 a, Vec256 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec256 operator-(Vec256 a, Vec256 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec256 operator*(Vec256 a, Vec256 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec256 operator/(Vec256 a, Vec256 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec256 fma(Vec256 a, Vec256 b, Vec256 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// max_ps returns its second operand where either is NaN.
inline Vec256 max_keep_nan(Vec256 floor, Vec256 x) { return {_mm256_max_ps(floor.v, x.v)}; }
inline Vec256 min_keep_nan(Vec256 ceiling, Vec256 x) { return {_mm256_min_ps(ceiling.v, x.v)}; }
inline Vec256 round_nearest(Vec256 x) { return {_mm256_round_ps(x.v, 0x08)}; }
/// x 2^n for integral n in [-150, 128], in two factors so that denormal results come out right.
inline Vec256 times_exp2(Vec256 x, Vec256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i k) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
  };
  return {_mm256_mul_ps(_mm256_mul_ps(x.v, power(half)), power(_mm256_sub_epi32(whole, half)))};
}
/// x in the lanes whose word reaches the threshold, zero in the others.
inline Vec256 where_at_least(const uint32_t* words, uint32_t threshold, Vec256 x) {
  const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i larger = _mm256_max_epu32(word, _mm256_set1_epi32(static_cast<int>(threshold)));
  return {_mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(word, larger)), x.v)};
}
/// `a` in the lanes where x has a minus sign, `b` in the others.
inline Vec256 select_negative(Vec256 x, Vec256 a, Vec256 b) {
  return {_mm256_blendv_ps(b.v, a.v, x.v)};
}
inline Vec256 negative_abs(Vec256 x) { return {_mm256_or_ps(x.v, _mm256_set1_ps(-0.0f))}; }

}  // namespace
}  // namespace dmamba::ops::cpu
