// Counter-based random numbers: Philox4x32-10.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw is a
// pure function of (counter, key), so threads, ranks, a resumed run and a GPU that agree on the
// counter agree on the draw. Plain 32- and 64-bit integer arithmetic only: the same source compiles
// for the host and for CUDA and gives the same bits on both.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DMAMBA_HOST_DEVICE __host__ __device__
#else
#define DMAMBA_HOST_DEVICE
#endif

namespace dmamba::common {

/// The 128 random bits of one Philox call, as four words.
struct PhiloxBlock {
  std::uint32_t word[4];

  /// Words 2i and 2i + 1 as one 64-bit number, the lower word first; i is 0 or 1.
  DMAMBA_HOST_DEVICE constexpr std::uint64_t bits64(int i) const {
    // NOLINTNEXTLINE(bugprone-implicit-widening-of-multiplication-result): an index below 4
    return (static_cast<std::uint64_t>(word[2 * i + 1]) << 32) | word[2 * i];
  }
};

/// Philox4x32 with ten rounds, as published: 128 bits from a 128-bit counter and a 64-bit key.
DMAMBA_HOST_DEVICE constexpr PhiloxBlock philox4x32(const std::uint32_t (&counter)[4],
                                                    const std::uint32_t (&key)[2]) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;  // golden ratio
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
  constexpr int kRounds = 10;

  PhiloxBlock x{{counter[0], counter[1], counter[2], counter[3]}};
  std::uint32_t key0 = key[0];
  std::uint32_t key1 = key[1];
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * x.word[0];
    const std::uint64_t product1 = kMultiplier1 * x.word[2];
    x = PhiloxBlock{{static_cast<std::uint32_t>(product1 >> 32) ^ x.word[1] ^ key0,
                     static_cast<std::uint32_t>(product1),
                     static_cast<std::uint32_t>(product0 >> 32) ^ x.word[3] ^ key1,
                     static_cast<std::uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return x;
}

/// What a draw is for. It is part of the counter, so draws for different ends never share bits.
enum class PhiloxPurpose : std::uint32_t {
  kSegment = 1,  ///< episode and start of a training segment
  kDropout = 2,  ///< keys of a training step's dropout masks
  kVisit = 3,    ///< shard that a selection from a recording visits
  kAction = 4,   ///< discrete actions of a policy
  kEpisode = 5,  ///< episodes that a run trains on
  kSet = 6,      ///< of several sets, the one that a step trains on
  kContext = 7,  ///< of several lengths of segments, a step's
};

/// A stream of draws under one 64-bit seed, addressed by (step, index, purpose).
struct Philox {
  std::uint64_t seed;

  /// The 128 bits of draw (step, index, purpose): the same whenever and wherever it is asked for.
  DMAMBA_HOST_DEVICE constexpr PhiloxBlock operator()(std::uint64_t step, std::uint32_t index,
                                                      PhiloxPurpose purpose) const {
    const std::uint32_t counter[4] = {static_cast<std::uint32_t>(step),
                                      static_cast<std::uint32_t>(step >> 32), index,
                                      static_cast<std::uint32_t>(purpose)};
    const std::uint32_t key[2] = {static_cast<std::uint32_t>(seed),
                                  static_cast<std::uint32_t>(seed >> 32)};
    return philox4x32(counter, key);
  }
};

/// The key of the `index`-th dropout of a training step.
DMAMBA_HOST_DEVICE constexpr std::uint64_t dropout_key(std::uint64_t seed, std::uint64_t step,
                                                       std::uint32_t index) {
  return Philox{seed}(step, index, PhiloxPurpose::kDropout).bits64(0);
}

/// Maps 64 random bits to [0, n): the high half of the 128-bit product bits * n.
/// n >= 1. Its bias is below n / 2^64; no floating point, so every device rounds alike.
DMAMBA_HOST_DEVICE constexpr std::uint64_t bounded(std::uint64_t bits, std::uint64_t n) {
  // Schoolbook product of 32-bit halves: 128-bit integers are not standard C++.
  const std::uint64_t bits_low = bits & 0xFFFFFFFFu;
  const std::uint64_t bits_high = bits >> 32;
  const std::uint64_t n_low = n & 0xFFFFFFFFu;
  const std::uint64_t n_high = n >> 32;
  const std::uint64_t middle = bits_high * n_low + ((bits_low * n_low) >> 32);
  const std::uint64_t carry = (bits_low * n_high + (middle & 0xFFFFFFFFu)) >> 32;
  return bits_high * n_high + (middle >> 32) + carry;
}

}  // namespace dmamba::common
