// GELU and dropout against double precision and against the mask as it is defined.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "include/dmamba/common/philox.h"
#include "kernels/elementwise/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::emulation;
using namespace dmamba::kernels;

constexpr double kExact = 5e-7;
template <class T>
constexpr double kStored = sizeof(T) == 2 ? 4e-3 : kExact;  // half a bfloat16's last bit

// Beside a lane's four or eight numbers, a stretch's 64, and a block's 1024 or 2048.
constexpr size_t kCounts[] = {1, 2, 7, 8, 31, 63, 64, 65, 129, 1000, 1023, 2049, 5003};

double normal(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu(double x) { return x * normal(x); }
double gelu_slope(double x) {
  return normal(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
}

/// Rounded to what T can store.
template <class T>
Floats stored(const Floats& x) {
  return to_floats(std::vector<T>(x.begin(), x.end()));
}
template <>
Floats stored<float>(const Floats& x) {
  return x;
}

template <class T>
class Elementwise : public testing::Test {};
using Stored = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(Elementwise, Stored);

/// What is not at a multiple of 16 bytes: of x, dy and out.
struct Offsets {
  size_t x, dy, out;
};
constexpr Offsets kOffsets[] = {{0, 0, 0}, {1, 0, 0}, {0, 3, 0}, {0, 0, 1}};

template <class T>
void check_gelu(const Floats& x, const Offsets& at) {
  std::mt19937 random(static_cast<unsigned>(x.size()));
  const Floats dy = stored<T>(random_floats(random, x.size(), -2, 2));
  Placed<T> of_x(x, at.x), of_dy(dy, at.dy), y(x.size(), at.out), dx(x.size(), at.out);
  GeluParams p{static_cast<int64_t>(x.size()), kStorageOf<T>, of_x.data(), nullptr, y.data()};
  ASSERT_EQ(launch_gelu_forward(p, nullptr), cudaSuccess);
  p.dy = of_dy.data();
  p.out = dx.data();
  ASSERT_EQ(launch_gelu_backward(p, nullptr), cudaSuccess);
  Doubles value, gradient;
  for (size_t i = 0; i < x.size(); ++i) {
    value.push_back(gelu(x[i]));
    gradient.push_back(dy[i] * gelu_slope(x[i]));
  }
  EXPECT_LE(relative_error(y.floats(), value), kStored<T>);
  EXPECT_LE(relative_error(dx.floats(), gradient), kStored<T>);
  EXPECT_TRUE(y.alone() && dx.alone());
}

TYPED_TEST(Elementwise, Gelu) {
  for (const size_t count : kCounts) {
    for (const Offsets& at : kOffsets) {
      SCOPED_TRACE(testing::Message() << count << ": " << at.x << at.dy << at.out);
      std::mt19937 random(static_cast<unsigned>(count));
      check_gelu<TypeParam>(stored<TypeParam>(random_floats(random, count, -4, 4)), at);
    }
  }
}

// Where GELU is far smaller than its argument.
TYPED_TEST(Elementwise, GelusLowerTail) {
  for (const float high : {-1.0F, -2.0F, -3.0F}) {
    std::mt19937 random(1);
    const Floats x = stored<TypeParam>(random_floats(random, 129, high - 2, high));
    Placed<TypeParam> of_x(x), y(x.size());
    ASSERT_EQ(
        launch_gelu_forward({129, kStorageOf<TypeParam>, of_x.data(), nullptr, y.data()}, nullptr),
        cudaSuccess);
    Doubles value;
    for (const float v : x) value.push_back(gelu(v));
    EXPECT_LE(relative_error(y.floats(), value), kStored<TypeParam>) << high;
  }
}

TYPED_TEST(Elementwise, GeluOfLargeAndOfNoNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Floats x =
      stored<TypeParam>({kInfinity, 1e30F, 50, 0, -50, -1e30F, -kInfinity, NAN, 20, 1});
  const auto count = static_cast<int64_t>(x.size());
  Placed<TypeParam> of_x(x), dy(Floats(x.size(), 2)), y(x.size()), dx(x.size());
  GeluParams p{count, kStorageOf<TypeParam>, of_x.data(), dy.data(), y.data()};
  ASSERT_EQ(launch_gelu_forward(p, nullptr), cudaSuccess);
  p.out = dx.data();
  ASSERT_EQ(launch_gelu_backward(p, nullptr), cudaSuccess);
  const Floats value = y.floats(), gradient = dx.floats();
  constexpr float kGradients[] = {2, 2, 2, 1, 0, 0, 0};
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(value[i], i < 3 ? x[i] : 0) << i;
    EXPECT_EQ(gradient[i], kGradients[i]) << i;
  }
  EXPECT_TRUE(std::isnan(value[7]) && std::isnan(gradient[7]));
  EXPECT_EQ(value[8], 20);
  EXPECT_FALSE(std::isnan(value[9]) || std::isnan(gradient[9]));
}

struct Dropout {
  uint64_t key;
  double p;
  int64_t first;
};

/// Element by element, from the definition.
template <class T>
Floats dropped(const Floats& x, const Dropout& d) {
  const auto scale = static_cast<float>(1 / (1 - d.p));
  const double limit = std::nearbyint(d.p * 0x1p32);
  Floats out;
  for (size_t i = 0; i < x.size(); ++i) {
    const uint64_t number = static_cast<uint64_t>(d.first) + i, e = number % 64;
    const uint64_t counter = 16 * (number / 64) + e % 16;
    const uint32_t words[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                               0, 0};
    const uint32_t key[2] = {static_cast<uint32_t>(d.key), static_cast<uint32_t>(d.key >> 32)};
    const uint32_t word = dmamba::common::philox4x32(words, key).word[e / 16];
    out.push_back(word >= limit ? x[i] * scale : 0);
  }
  return stored<T>(out);
}

/// The same bits: dropped numbers are +0, and kept NaNs are NaN.
void expect_same(const Floats& got, const Floats& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got[i]), std::isnan(expected[i])) << i;
    if (!std::isnan(got[i])) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i])) << i;
    }
  }
}

/// `device`: the key lies on the device.
template <class T>
void check_dropout(const Floats& x, const Dropout& d, const Offsets& at, bool device) {
  SCOPED_TRACE(testing::Message() << x.size() << ", key " << d.key << ", " << d.p << ", from "
                                  << d.first << ", " << at.x << at.out << device);
  Placed<T> of_x(x, at.x), out(x.size(), at.out);
  const DropoutParams p{static_cast<int64_t>(x.size()),
                        kStorageOf<T>,
                        device ? ~d.key : d.key,
                        dropout_threshold(d.p),
                        1 / (1 - d.p),
                        of_x.data(),
                        out.data(),
                        d.first};
  ASSERT_EQ(launch_dropout(p, device ? &d.key : nullptr, nullptr), cudaSuccess);
  expect_same(out.floats(), dropped<T>(x, d));
  EXPECT_TRUE(out.alone());
}

TYPED_TEST(Elementwise, DropoutHasTheMaskAsDefined) {
  constexpr Dropout kDropouts[] = {{0, 0.1, 0},
                                   {3, 0.5, 64},
                                   {~uint64_t{0}, 0.999, 4096},
                                   {(uint64_t{1} << 40) + 5, 0.3, (int64_t{1} << 40) + 192},
                                   {7, 0, 128}};
  for (const size_t count : kCounts) {
    std::mt19937 random(static_cast<unsigned>(count));
    const Floats x = stored<TypeParam>(random_floats(random, count));
    for (size_t i = 0; i < std::size(kDropouts); ++i) {
      const size_t offset = (count + i) % 4;
      check_dropout<TypeParam>(x, kDropouts[i], kOffsets[offset], i % 2 == 0);
    }
  }
}

TYPED_TEST(Elementwise, DropoutDropsNaN) {
  Floats x(300, NAN);
  for (size_t i = 0; i < x.size(); i += 3) x[i] = -2;
  check_dropout<TypeParam>(x, {11, 0.5, 0}, {}, false);
}

// More than one turn of the largest grid: 4096 blocks.
TEST(Elementwise, LongArraysTakeSeveralTurns) {
  constexpr size_t kTurn = size_t{4096} * 1024, kCount = kTurn + 1301;
  Placed<float> x(Floats(kCount, 1)), y(kCount), out(kCount);
  ASSERT_EQ(launch_gelu_forward({kCount, kStorageOf<float>, x.data(), nullptr, y.data()}, nullptr),
            cudaSuccess);
  const double expected = gelu(1);
  size_t right = 0;
  for (const float value : y.floats()) right += std::abs(value - expected) < 1e-6 ? 1 : 0;
  EXPECT_EQ(right, kCount);
  const Dropout d{5, 0.25, 0};
  ASSERT_EQ(launch_dropout({kCount, kStorageOf<float>, d.key, dropout_threshold(d.p), 1 / (1 - d.p),
                            x.data(), out.data(), 0},
                           nullptr, nullptr),
            cudaSuccess);
  const Floats got = out.floats();
  const auto last = static_cast<std::ptrdiff_t>(kTurn - 640);
  const Dropout of_last{d.key, d.p, last};
  expect_same({got.begin() + last, got.end()},
              dropped<float>(Floats(kCount - kTurn + 640, 1), of_last));
  expect_same({got.begin(), got.begin() + 640}, dropped<float>(Floats(640, 1), d));
}

TEST(Elementwise, DropoutThresholds) {
  EXPECT_EQ(dropout_threshold(0), 0U);
  EXPECT_EQ(dropout_threshold(0.5), 1U << 31);
  EXPECT_EQ(dropout_threshold(0.1), 429496730U);
  EXPECT_EQ(dropout_threshold(1), ~0U);
}

TEST(Elementwise, WhatIsRefusedOrEmptyWritesNothing) {
  Placed<float> x(Floats(8, 1)), out(8);
  const auto gelu_params = [&](int64_t count, Storage storage) {
    return GeluParams{count, storage, x.data(), x.data(), out.data()};
  };
  const auto dropout = [&](int64_t count, Storage storage) {
    return launch_dropout({count, storage, 1, 0, 1, x.data(), out.data(), 0}, nullptr, nullptr);
  };
  EXPECT_EQ(launch_gelu_forward(gelu_params(4, Storage::kFloat64), nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(launch_gelu_backward(gelu_params(4, Storage::kFloat64), nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(dropout(4, Storage::kFloat64), cudaErrorInvalidValue);
  EXPECT_EQ(launch_gelu_forward(gelu_params(0, Storage::kFloat32), nullptr), cudaSuccess);
  EXPECT_EQ(launch_gelu_backward(gelu_params(0, Storage::kFloat32), nullptr), cudaSuccess);
  EXPECT_EQ(dropout(0, Storage::kBFloat16), cudaSuccess);
  EXPECT_TRUE(out.untouched());
}

}  // namespace
