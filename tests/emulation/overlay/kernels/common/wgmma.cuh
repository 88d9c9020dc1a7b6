// In the place of kernels/common/wgmma.cuh: products of panels in shared memory, computed when they
// are waited for.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <iterator>

#include "kernels/common/copy.cuh"

namespace dmamba::kernels {

/// The address, and above it the distance of panels; both in units of 16 bytes.
inline uint64_t panel_descriptor(uint32_t address, uint32_t panel_bytes = 16) {
  if (address % 16 != 0) emulation::fail("a panel that is not aligned");
  return uint64_t{panel_bytes / 16} << 32 | address / 16;
}

inline void begin_products() {}
inline void commit_products() { emulation::queues().products.commit(); }
/// The warp's: none of its lanes goes on before all have theirs.
template <int kLeft>
void wait_for_products(EmulationPlace here = DMAMBA_HERE) {
  emulation::queues().products.wait(kLeft);
  __syncwarp(~0U, here);
}
template <int kLeft, int kTiles>
void wait_for_products(float (&)[kTiles][4], EmulationPlace here = DMAMBA_HERE) {
  wait_for_products<kLeft>(here);
}
inline void publish_to_products() {}
template <int kTiles>
void clear_sums(float (&sums)[kTiles][4]) {
  for (auto& tile : sums) std::fill(std::begin(tile), std::end(tile), 0.0F);
}

/// A number of a matrix in panels of 64 columns from an address on: packs lie at theirs ^ row % 8,
/// by the address's own bits, so that a matrix may begin within a panel.
inline float panel_number(uint64_t descriptor, int row, int column) {
  const uint32_t from = static_cast<uint32_t>(descriptor) * 16;
  const uint32_t panel = static_cast<uint32_t>(descriptor >> 32) * 16;
  uint32_t at = from + column / 64 * panel + row * 128 + column % 64 * 2;
  at ^= at >> 3 & 0x70;
  uint16_t bits;
  std::memcpy(&bits, at_shared_address(at), sizeof bits);
  return __uint_as_float(uint32_t{bits} << 16);
}

/// sums (64 x 8 kTiles) += or = a (64 x 16) b: each lane computes its own.
template <int kTiles, bool kRowsByTerm, bool kColumnsByTerm>
void multiply_panels_with(float (&sums)[kTiles][4], uint64_t a, uint64_t b, bool add) {
  const int lane = emulation::lane_number(), warp = emulation::thread_number() / 32 % 4;
  auto* s = &sums;
  emulation::queues().products.add([=] {
    for (int half = 0; half < 2; ++half) {
      const int row = warp * 16 + lane / 4 + 8 * half;
      float of_a[16];
      for (int k = 0; k < 16; ++k) {
        of_a[k] = kRowsByTerm ? panel_number(a, k, row) : panel_number(a, row, k);
      }
      for (int c = 0; c < 2 * kTiles; ++c) {
        const int column = c / 2 * 8 + lane % 4 * 2 + c % 2;
        float sum = 0.0F;
        for (int k = 0; k < 16; ++k) {
          sum +=
              of_a[k] * (kColumnsByTerm ? panel_number(b, k, column) : panel_number(b, column, k));
        }
        float& to = (*s)[c / 2][2 * half + c % 2];
        to = add ? to + sum : sum;
      }
    }
  });
}

template <bool kByTerm>
void multiply_panels(float (&s)[4][4], uint64_t a, uint64_t b, bool add) {
  multiply_panels_with<4, kByTerm, false>(s, a, b, add);
}
template <bool kRowsByTerm, bool kColumnsByTerm, int kTiles>
void multiply_panels(float (&s)[kTiles][4], uint64_t a, uint64_t b) {
  multiply_panels_with<kTiles, kRowsByTerm, kColumnsByTerm>(s, a, b, true);
}

/// sums (64 x 8 kTiles) += a (64 x 8) b: of a the four lanes of a row have its terms.
template <int kTiles>
void multiply_tf32(float (&s)[kTiles][4], const uint32_t (&a)[4], uint64_t b,
                   EmulationPlace here = DMAMBA_HERE) {
  struct Words {
    uint32_t of[4];
  };
  const auto words = emulation::exchange_values(~0U, Words{{a[0], a[1], a[2], a[3]}}, here);
  const int lane = emulation::lane_number();
  float rows[2][8];
  for (int k = 0; k < 8; ++k) {
    for (int half = 0; half < 2; ++half) {
      const Words holder = words[lane / 4 * 4 + k % 4];
      rows[half][k] = __uint_as_float(holder.of[k / 4 * 2 + half] & 0xFFFFE000U);
    }
  }
  auto* sums = &s;
  emulation::queues().products.add([=] {
    for (int c = 0; c < 2 * kTiles; ++c) {
      const int column = c / 2 * 8 + lane % 4 * 2 + c % 2;
      float of_b[8];
      for (int k = 0; k < 8; ++k) {
        uint32_t at = static_cast<uint32_t>(b) * 16 + column * 128 + k * 4, word;
        at ^= at >> 3 & 0x70;
        std::memcpy(&word, at_shared_address(at), sizeof word);
        of_b[k] = __uint_as_float(word & 0xFFFFE000U);
      }
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0F;
        for (int k = 0; k < 8; ++k) sum += rows[half][k] * of_b[k];
        (*sums)[c / 2][2 * half + c % 2] += sum;
      }
    }
  });
}

inline void store_tiles_transposed(uint32_t at, uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3,
                                   EmulationPlace here = DMAMBA_HERE) {
  struct Tiles {
    uint32_t words[4];
  };
  const auto tiles = emulation::exchange_values(~0U, Tiles{{v0, v1, v2, v3}}, here);
  const int lane = emulation::lane_number(), tile = lane / 8, row = lane % 8;
  for (int column = 0; column < 8; ++column) {
    const uint32_t word = tiles[column * 4 + row / 2].words[tile];
    const auto number = static_cast<uint16_t>(word >> row % 2 * 16);
    std::memcpy(at_shared_address(at + column * 2), &number, sizeof number);
  }
}

}  // namespace dmamba::kernels
