// bfloat16 as CUDA names it.
#pragma once

#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {  // NOLINT: as CUDA's
    const auto word = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16;  // to nearest even
    bits = static_cast<uint16_t>(x != x ? 0x7FFF : rounded);
  }
  operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
