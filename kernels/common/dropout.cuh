// Which elements a dropout keeps: the mask that params.h of kernels/elementwise defines.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "include/dmamba/common/philox.h"

namespace dmamba::kernels {

/// The keep bits of this lane's elements, lowest first, of the warp's tile of 32 lanes that opens
/// with stretch `first_stretch`. Every lane draws blocks of its own, so that no two lanes draw the
/// same; four ballots a block hand the bits to the lanes whose elements they are.
template <int kElements>
__device__ __forceinline__ uint32_t keep_bits(uint64_t first_stretch, uint64_t key,
                                              uint32_t threshold, int lane) {
  constexpr int kWarp = 32, kStretch = 64,
                kBlocks = 16;  // a stretch has 16 Philox blocks of 4 words
  constexpr int kRounds = kElements * kWarp / kStretch / 2;  // two stretches a round
  const uint32_t key_words[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  const int position = lane * kElements;  // of this lane's first element in the tile
  const int stretch = position / kStretch, word = position % kStretch / kBlocks;
  uint32_t bits = 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t counter =
        (first_stretch + 2 * round + lane / kBlocks) * kBlocks + lane % kBlocks;
    const uint32_t counter_words[4] = {static_cast<uint32_t>(counter),
                                       static_cast<uint32_t>(counter >> 32), 0, 0};
    const common::PhiloxBlock block = common::philox4x32(counter_words, key_words);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t kept = __ballot_sync(0xFFFFFFFFu, block.word[w] >= threshold);
      if (w == word && round == stretch / 2) bits = kept;
    }
  }
  return bits >> (stretch % 2 * kBlocks + position % kBlocks);
}

}  // namespace dmamba::kernels
