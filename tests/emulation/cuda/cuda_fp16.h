// Half precision as CUDA names it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "tests/emulation/cuda/vectors.h"

struct alignas(4) __half2 {
  uint16_t x, y;
};

/// To nearest even, by a float whose last bit is the half's.
inline uint16_t half_bits(float value) {
  constexpr int kLargest = 15, kSmallest = -14, kMantissa = 10;
  const auto sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16 & 0x8000U);
  const float size = std::fabs(value);
  if (value != value) return 0x7FFF;
  if (size >= 65520.0F) return sign | 0x7C00;
  int exponent = size == 0.0F ? kSmallest : std::ilogb(size);
  exponent = exponent < kSmallest ? kSmallest : exponent;
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, kMantissa - exponent)));
  // Beyond 2^10 steps the leading one counts as one of the exponent, and so does a carry.
  const uint32_t bits = steps + (static_cast<uint32_t>(exponent + kLargest - 1) << kMantissa);
  return static_cast<uint16_t>(sign | bits);
}
inline float half_value(uint16_t bits) {
  constexpr int kSmallest = -24, kMantissa = 10, kInfinite = 31;
  const int exponent = bits >> kMantissa & kInfinite, mantissa = bits & 0x3FF;
  const float size =
      exponent == kInfinite ? (mantissa == 0 ? INFINITY : NAN)
      : exponent == 0       ? std::ldexp(static_cast<float>(mantissa), kSmallest)
                      : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 1 + kSmallest);
  return (bits & 0x8000) != 0 ? -size : size;
}

inline __half2 __floats2half2_rn(float x, float y) { return {half_bits(x), half_bits(y)}; }
inline float2 __half22float2(__half2 v) { return {half_value(v.x), half_value(v.y)}; }
