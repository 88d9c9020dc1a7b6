// The channel mixer's passes over its hidden layer, bias and GELU and the sums over rows, against
// double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "kernels/elementwise/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::emulation;
using namespace dmamba::kernels;

constexpr double kExact = 5e-7;
template <class T>
constexpr double kStored = sizeof(T) == 2 ? 4e-3 : kExact;  // half a bfloat16's last bit

struct Shape {
  int64_t rows, channels;
  size_t count() const { return static_cast<size_t>(rows * channels); }
};
// Rows beside those of eight warps and of a block; channels beside a lane's four or eight and a
// block's 128 or 256, not always a multiple.
constexpr Shape kShapes[] = {{1, 1},    {2, 2},   {31, 31},  {129, 36}, {7, 128},
                             {33, 129}, {17, 40}, {65, 256}, {9, 264},  {16, 260}};
// Where two arrays lie, in numbers behind a multiple of 64 bytes; 4 floats: half of a lane's bias.
constexpr size_t kOffsets[][2] = {{0, 0}, {1, 0}, {0, 1}, {0, 4}};

/// Random, rounded to what T can store.
template <class T>
Floats random_stored(std::mt19937& random, size_t count, float bound) {
  const Floats x = random_floats(random, count, -bound, bound);
  return to_floats(std::vector<T>(x.begin(), x.end()));
}
template <>
Floats random_stored<float>(std::mt19937& random, size_t count, float bound) {
  return random_floats(random, count, -bound, bound);
}

template <class T>
class ChannelMixer : public testing::Test {};
using Stored = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(ChannelMixer, Stored);

template <class T>
void check_bias_gelu(const Shape& shape, size_t x_offset, size_t bias_offset, size_t y_offset) {
  SCOPED_TRACE(testing::Message() << shape.rows << ", " << shape.channels << ": " << x_offset
                                  << bias_offset << y_offset);
  std::mt19937 random(static_cast<unsigned>(shape.count()));
  const Floats before = random_stored<T>(random, shape.count(), 3);
  const Floats shift = random_floats(random, static_cast<size_t>(shape.channels));
  Placed<T> x(before, x_offset), y(shape.count(), y_offset);
  Placed<float> bias(shift, bias_offset);
  ASSERT_EQ(
      launch_bias_gelu({shape.rows, shape.channels, kStorageOf<T>, x.data(), bias.data(), y.data()},
                       nullptr),
      cudaSuccess);
  Doubles value, slope;
  for (size_t i = 0; i < shape.count(); ++i) {
    const double v = double{before[i]} + shift[i % static_cast<size_t>(shape.channels)];
    const double phi = 0.5 * std::erfc(-v / std::sqrt(2.0));
    value.push_back(v * phi);
    slope.push_back(phi + v * std::exp(-0.5 * v * v) / std::sqrt(2 * std::acos(-1.0)));
  }
  EXPECT_LE(relative_error(y.floats(), value), kStored<T>);
  EXPECT_LE(relative_error(x.floats(), slope), kStored<T>);
  EXPECT_EQ(bias.floats(), shift);
  EXPECT_TRUE(x.alone() && y.alone() && bias.alone());
}

TYPED_TEST(ChannelMixer, BiasGelu) {
  for (const Shape& shape : kShapes) {
    for (const auto& [x, bias] : kOffsets) check_bias_gelu<TypeParam>(shape, x, bias, 0);
    check_bias_gelu<TypeParam>(shape, 0, 0, 1);
  }
}

TYPED_TEST(ChannelMixer, BiasGeluOfLargeAndOfNoNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Floats column = {kInfinity, 0x1p100F, 50, 0, -50, -0x1p100F, -kInfinity, NAN};
  constexpr float kSlopes[] = {1, 1, 1, 0.5F, 0, 0, 0};
  for (const int64_t channels : {1, 8}) {
    const auto width = static_cast<size_t>(channels);
    Floats values;
    for (const float x : column) values.insert(values.end(), width, x);
    Placed<TypeParam> x(values), y(values.size());
    Placed<float> bias{Floats(width)};
    ASSERT_EQ(launch_bias_gelu(
                  {8, channels, kStorageOf<TypeParam>, x.data(), bias.data(), y.data()}, nullptr),
              cudaSuccess);
    const Floats value = y.floats(), slope = x.floats();
    for (size_t i = 0; i < 7 * width; ++i) {
      EXPECT_EQ(value[i], i < 3 * width ? values[i] : 0) << i;
      EXPECT_EQ(slope[i], kSlopes[i / width]) << i;
    }
    for (size_t i = 7 * width; i < 8 * width; ++i) {
      EXPECT_TRUE(std::isnan(value[i]) && std::isnan(slope[i])) << i;
    }
  }
}

template <class T>
void check_multiply_sum(const Shape& shape, size_t dy_offset, size_t slope_offset) {
  SCOPED_TRACE(testing::Message() << shape.rows << ", " << shape.channels << ": " << dy_offset
                                  << slope_offset);
  const auto channels = static_cast<size_t>(shape.channels);
  std::mt19937 random(static_cast<unsigned>(shape.count()));
  const Floats gradients = random_stored<T>(random, shape.count(), 2);
  const Floats slopes = random_stored<T>(random, shape.count(), 2);
  Placed<T> dy(gradients, dy_offset), slope(slopes, slope_offset);
  const MultiplySumParams p{shape.rows, shape.channels, kStorageOf<T>,
                            dy.data(),  slope.data(),   nullptr};
  const int64_t count = multiply_sum_parts(p);
  Placed<float> parts(static_cast<size_t>(count) * channels), sums(channels);
  ASSERT_EQ(launch_multiply_sum(p, parts.data(), nullptr), cudaSuccess);
  ASSERT_EQ(launch_sum_parts(parts.data(), sums.data(), count, shape.channels, nullptr),
            cudaSuccess);
  Doubles products, totals(channels);
  for (size_t i = 0; i < shape.count(); ++i) {
    products.push_back(double{gradients[i]} * slopes[i]);
    totals[i % channels] += products[i];
  }
  EXPECT_LE(relative_error(dy.floats(), products), kStored<T>);
  // Of products that were not rounded.
  EXPECT_LE(relative_error(sums.floats(), totals), kExact);
  EXPECT_EQ(slope.floats(), slopes);
  EXPECT_TRUE(dy.alone() && slope.alone() && parts.alone() && sums.alone());
}

TYPED_TEST(ChannelMixer, MultiplySum) {
  for (const Shape& shape : kShapes) {
    for (const auto& [dy, slope] : kOffsets) check_multiply_sum<TypeParam>(shape, dy, slope);
  }
}

// 512 blocks of 32 rows are the most; one row more doubles the blocks' rows.
TYPED_TEST(ChannelMixer, MultiplySumOfLongColumns) {
  for (const int64_t rows : {512 * 32, 512 * 32 + 1, 40'001}) {
    check_multiply_sum<TypeParam>({rows, 8}, 0, 0);
    check_multiply_sum<TypeParam>({rows, 3}, 0, 1);
  }
}

TEST(ChannelMixer, PartsOfMultiplySum) {
  const auto parts = [](int64_t rows) {
    return multiply_sum_parts({rows, 5, Storage::kFloat32, nullptr, nullptr, nullptr});
  };
  EXPECT_EQ(parts(0), 0);
  EXPECT_EQ(parts(1), 1);
  EXPECT_EQ(parts(32), 1);
  EXPECT_EQ(parts(33), 2);
  EXPECT_EQ(parts(512 * 32), 512);
  EXPECT_EQ(parts(512 * 32 + 1), 257);
}

/// In the order that launch.h promises.
float sum_in_order(const Floats& parts, size_t count, size_t columns, size_t column) {
  float threads[16] = {};
  for (size_t part = 0; part < count; ++part) threads[part % 16] += parts[part * columns + column];
  float sum = threads[0];
  for (size_t i = 1; i < 16; ++i) sum += threads[i];
  return sum;
}

TEST(ChannelMixer, SumsPartsInOneOrder) {
  for (const size_t count : {0, 1, 2, 15, 16, 17, 127, 128, 129, 300}) {
    for (const size_t columns : {1, 31, 32, 33, 100}) {
      SCOPED_TRACE(testing::Message() << count << ", " << columns);
      std::mt19937 random(static_cast<unsigned>(count + columns));
      const Floats values = random_floats(random, count * columns);
      Placed<float> parts(values, 1), sums(columns, 1);
      ASSERT_EQ(launch_sum_parts(parts.data(), sums.data(), static_cast<int64_t>(count),
                                 static_cast<int64_t>(columns), nullptr),
                cudaSuccess);
      const Floats got = sums.floats();
      for (size_t c = 0; c < columns; ++c) {
        EXPECT_EQ(got[c], sum_in_order(values, count, columns, c)) << c;
      }
      EXPECT_TRUE(sums.alone());
    }
  }
}

TYPED_TEST(ChannelMixer, BitsDoNotDependOnTheOrderOfThreads) {
  std::vector<Floats> results;
  for (const char* order : {"forward", "backward", "5"}) {
    const Setting setting("DMAMBA_EMULATION_ORDER", order);
    std::mt19937 random(4);
    const auto place = [&] { return Placed<TypeParam>(random_stored<TypeParam>(random, 6000, 2)); };
    Placed<TypeParam> dy = place(), slope = place();
    Placed<float> parts(4 * 60), sums(60);
    const MultiplySumParams p{100, 60, kStorageOf<TypeParam>, dy.data(), slope.data(), nullptr};
    ASSERT_EQ(launch_multiply_sum(p, parts.data(), nullptr), cudaSuccess);
    ASSERT_EQ(launch_sum_parts(parts.data(), sums.data(), 4, 60, nullptr), cudaSuccess);
    results.push_back(sums.floats());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(ChannelMixer, WhatIsRefusedOrEmptyWritesNothing) {
  Placed<float> x(8), y(8), slope(Floats(8, 1)), bias(Floats(4, 1)), parts(8), sums(4);
  const auto bias_gelu = [&](int64_t rows, int64_t channels, Storage storage) {
    return launch_bias_gelu({rows, channels, storage, x.data(), bias.data(), y.data()}, nullptr);
  };
  const auto multiply_sum = [&](int64_t rows, int64_t channels, Storage storage) {
    return launch_multiply_sum({rows, channels, storage, x.data(), slope.data(), nullptr},
                               parts.data(), nullptr);
  };
  EXPECT_EQ(bias_gelu(1, 4, Storage::kFloat64), cudaErrorInvalidValue);
  EXPECT_EQ(multiply_sum(1, 4, Storage::kFloat64), cudaErrorInvalidValue);
  for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    EXPECT_EQ(bias_gelu(0, 4, storage), cudaSuccess);
    EXPECT_EQ(bias_gelu(2, 0, storage), cudaSuccess);
    EXPECT_EQ(multiply_sum(0, 4, storage), cudaSuccess);
    EXPECT_EQ(multiply_sum(2, 0, storage), cudaSuccess);
  }
  EXPECT_EQ(launch_sum_parts(parts.data(), sums.data(), 2, 0, nullptr), cudaSuccess);
  EXPECT_TRUE(x.untouched() && y.untouched() && parts.untouched() && sums.untouched());
}

}  // namespace
