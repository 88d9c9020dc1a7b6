// In the place of kernels/common/mma.cuh: products of tensor cores, from what the lanes hold.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

/// What a lane gives to a product: its words of a (16 x 2 kPairs) and b (2 kPairs x 8).
struct Factors {
  uint32_t a[4], b[2];
};

/// c (16 x 8) += a b. A word of a lane holds kHalves neighbouring terms, of which `value` takes
/// one.
template <int kHalves, class Value>
void multiply_add_with(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                       const Value& value, EmulationPlace here) {
  const Factors mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto factors = emulation::exchange_values(~0U, mine, here);
  const int lane = emulation::lane_number(), group = lane / 4;
  for (int e = 0; e < 4; ++e) {
    const int column = lane % 4 * 2 + e % 2, lower = e / 2;
    float sum = 0.0F;
    for (int term = 0; term < 8 * kHalves; ++term) {
      const int word = term / (4 * kHalves), holder = term / kHalves % 4, half = term % kHalves;
      const Factors of_a = factors[group * 4 + holder], of_b = factors[column * 4 + holder];
      sum += value(of_a.a[2 * word + lower], half) * value(of_b.b[word], half);
    }
    c[e] += sum;
  }
}

inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         EmulationPlace here = DMAMBA_HERE) {
  const auto value = [](uint32_t word, int half) {
    return __uint_as_float(half == 0 ? word << 16 : word & 0xFFFF0000U);
  };
  multiply_add_with<2>(c, a, b0, b1, value, here);
}

inline uint32_t to_tf32(float x) {  // to nearest, halves away from zero
  return x != x ? 0x7FFFE000U : (__float_as_uint(x) + 0x1000U) & 0xFFFFE000U;
}

inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              EmulationPlace here = DMAMBA_HERE) {
  const auto value = [](uint32_t word, int) { return __uint_as_float(word & 0xFFFFE000U); };
  multiply_add_with<1>(c, a, b0, b1, value, here);
}

/// Four tiles of 8 x 8 numbers of 16 bits; lane i names row i % 8 of tile i / 8.
inline void load_tiles_with(uint32_t (&v)[4], const void* row, bool transposed,
                            EmulationPlace here) {
  const auto rows = emulation::exchange_values(~0U, static_cast<const uint16_t*>(row), here);
  const int lane = emulation::lane_number(), group = lane / 4, pair = lane % 4 * 2;
  for (int tile = 0; tile < 4; ++tile) {
    const auto at = [&](int r, int column) { return uint32_t{rows[tile * 8 + r][column]}; };
    v[tile] = transposed ? at(pair, group) | at(pair + 1, group) << 16
                         : at(group, pair) | at(group, pair + 1) << 16;
  }
  __syncwarp(~0U, here);  // one instruction of the warp: all have read
}

inline void load_tiles(uint32_t (&v)[4], const void* row, EmulationPlace here = DMAMBA_HERE) {
  load_tiles_with(v, row, false, here);
}
inline void load_tiles(uint32_t (&v)[4], uint32_t at, EmulationPlace here = DMAMBA_HERE) {
  load_tiles_with(v, at_shared_address(at), false, here);
}
inline void load_tiles_transposed(uint32_t (&v)[4], const void* row,
                                  EmulationPlace here = DMAMBA_HERE) {
  load_tiles_with(v, row, true, here);
}
inline void load_tiles_transposed(uint32_t (&v)[4], uint32_t at,
                                  EmulationPlace here = DMAMBA_HERE) {
  load_tiles_with(v, at_shared_address(at), true, here);
}

}  // namespace dmamba::kernels
