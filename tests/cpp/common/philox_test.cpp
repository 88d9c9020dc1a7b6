// Philox against Random123's published vectors, and the mapping of bits to a range.
#include "dmamba/common/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace dmamba::common {
namespace {

struct KnownAnswer {
  std::uint32_t counter[4];
  std::uint32_t key[2];
  std::uint32_t expected[4];
};

// Random123, tests/kat_vectors, "philox4x32 10".
constexpr KnownAnswer kKnownAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

TEST(Philox, MatchesThePublishedVectors) {
  for (const KnownAnswer& answer : kKnownAnswers) {
    const PhiloxBlock block = philox4x32(answer.counter, answer.key);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(block.word[i], answer.expected[i]) << "word " << i;
    }
  }
}

TEST(Philox, IsUsableAtCompileTime) {
  constexpr PhiloxBlock block = philox4x32(kKnownAnswers[0].counter, kKnownAnswers[0].key);
  static_assert(block.word[0] == 0x6627e8d5);
  static_assert(block.bits64(0) == 0xe169c58d6627e8d5);
  static_assert(block.bits64(1) == 0x9b00dbd8bc57ac4c);
}

TEST(Philox, StreamLaysOutCounterAndKey) {
  const Philox random{0x299f31d0a4093822};
  const std::uint32_t counter[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 1};
  const std::uint32_t key[2] = {0xa4093822, 0x299f31d0};
  const PhiloxBlock expected = philox4x32(counter, key);
  const PhiloxBlock block = random(0x85a308d3243f6a88, 0x13198a2e, PhiloxPurpose::kSegment);
  EXPECT_EQ(block.bits64(0), expected.bits64(0));
  EXPECT_EQ(block.bits64(1), expected.bits64(1));
}

TEST(Philox, EveryPartOfTheAddressMatters) {
  std::set<std::uint64_t> seen;
  int draws = 0;
  for (const std::uint64_t seed : {0ull, 1ull, 1ull << 32}) {
    for (const std::uint64_t step : {0ull, 1ull, 1ull << 32}) {
      for (const std::uint32_t index : {0u, 1u, 1u << 31}) {
        seen.insert(Philox{seed}(step, index, PhiloxPurpose::kSegment).bits64(0));
        ++draws;
      }
    }
  }
  EXPECT_EQ(seen.size(), draws);
}

TEST(Bounded, IsTheHighHalfOfTheProduct) {
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  const std::uint64_t values[] = {0, 1, 2, 0xffffffff, 0x100000000, 0x123456789abcdef0, kAll};
  for (const std::uint64_t bits : values) {
    for (const std::uint64_t n : values) {
      const auto expected =
          static_cast<std::uint64_t>((static_cast<unsigned __int128>(bits) * n) >> 64);
      EXPECT_EQ(bounded(bits, n), expected) << bits << " * " << n;
    }
  }
}

TEST(Bounded, CoversTheRangeAndStaysInIt) {
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  static_assert(bounded(0, 10) == 0);
  static_assert(bounded(kAll, 10) == 9);
  static_assert(bounded(kAll, 1) == 0);
  static_assert(bounded(kAll / 2, 10) == 4);
  static_assert(bounded(kAll / 2 + 1, 10) == 5);
}

}  // namespace
}  // namespace dmamba::common
