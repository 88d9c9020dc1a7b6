// Frames: folded stacks, bias and ReLU between convolutions, the first convolution; both ways,
// against their definitions in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/frames/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::kernels;
using namespace dmamba::emulation;

// Values behind an array, which nobody may write. No slope goes through them.
constexpr size_t kGuard = 64;
constexpr float kGuarded = -77;
constexpr int kSide = kFrameSide / kFrameFold, kOutSide = kSide - 1, kOutChannels = 32;

/// An array in memory as a kernel stores it; NaN at first, with a guard behind it.
class Stored {
 public:
  Stored(Storage storage, size_t count) : Stored(storage, Floats(count, NAN)) {}
  Stored(Storage storage, const Floats& x) : storage_(storage), count_(x.size()), wide_(x) {
    wide_.resize(count_ + kGuard, kGuarded);
    narrow_ = to_bfloat16(wide_);
  }
  void* get() {
    return storage_ == Storage::kFloat32 ? wide_.data() : static_cast<void*>(narrow_.data());
  }
  /// The values as they are stored. The guard must be untouched.
  Floats values() const {
    Floats x = storage_ == Storage::kFloat32 ? wide_ : to_floats(narrow_);
    for (size_t i = count_; i < x.size(); ++i) EXPECT_EQ(x[i], kGuarded) << "behind the array";
    x.resize(count_);
    return x;
  }

 private:
  Storage storage_;
  size_t count_;
  Floats wide_;
  BFloats narrow_;
};

std::vector<uint8_t> random_strips(std::mt19937& random, int64_t batch, int64_t steps) {
  std::vector<uint8_t> strips(batch * (steps + kFrameStack - 1) * kFrameSide * kFrameSide);
  for (uint8_t& pixel : strips) pixel = static_cast<uint8_t>(random() >> 16);
  return strips;
}

/// Pixel (y, x) of frame f of the stack of image b steps + t.
uint8_t pixel_of(const std::vector<uint8_t>& strips, int64_t steps, int64_t image, int64_t f,
                 int64_t y, int64_t x) {
  const int64_t frame = image / steps * (steps + kFrameStack - 1) + image % steps + f;
  return strips[(frame * kFrameSide + y) * kFrameSide + x];
}

/// Where pixel (y, x), channel c of an image lies once folded.
int64_t folded_index(const ReluSizes& s, int64_t image, int64_t y, int64_t x, int64_t c) {
  const int64_t f = s.fold, rows = s.rows / f, columns = s.columns / f;
  const int64_t square = (image * rows + y / f) * columns + x / f;
  return (square * f * f + y % f * f + x % f) * s.channels + c;
}

template <class F>
void each_value(const ReluSizes& s, F&& f) {
  for (int64_t n = 0, i = 0; n < s.images; ++n) {
    for (int64_t y = 0; y < s.rows; ++y) {
      for (int64_t x = 0; x < s.columns; ++x) {
        for (int64_t c = 0; c < s.channels; ++c, ++i) f(i, folded_index(s, n, y, x, c), c);
      }
    }
  }
}

int64_t size_of(const ReluSizes& s) { return s.images * s.rows * s.columns * s.channels; }

/// Sums of parts (blocks, width).
Doubles add_parts(const Floats& parts, size_t width) {
  Doubles sums(width);
  for (size_t i = 0; i < parts.size(); ++i) sums[i % width] += parts[i];
  return sums;
}
Floats floats(const Doubles& x) { return {x.begin(), x.end()}; }

double bound_of(Storage storage) { return storage == Storage::kFloat32 ? 1e-7 : 4e-3; }

// Folding

class FoldFrames : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Frames, FoldFrames,
                         testing::Combine(testing::Values(1, 3), testing::Values(1, 3, 20)));

TEST_P(FoldFrames, GivesTheStacks) {
  const auto [batch, steps] = GetParam();
  std::mt19937 random(1);
  const std::vector<uint8_t> strips = random_strips(random, batch, steps);
  for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    Stored out(storage, batch * steps * kSide * kSide * 64);
    ASSERT_EQ(launch_fold_frames({batch, steps, storage, strips.data(), out.get()}, nullptr),
              cudaSuccess);
    const Floats values = out.values();
    int64_t wrong = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
      const int64_t dx = i % 4, dy = i / 4 % 4, f = i / 16 % 4, x = i / 64 % kSide;
      const int64_t y = i / 64 / kSide % kSide, image = i / 64 / kSide / kSide;
      wrong += values[i] == pixel_of(strips, steps, image, f, 4 * y + dy, 4 * x + dx) ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(FoldFramesLimits, WritesNothingOfNothingAndRefusesTooMuch) {
  EXPECT_EQ(launch_fold_frames({0, 3, Storage::kFloat32, nullptr, nullptr}, nullptr), cudaSuccess);
  const int64_t most = INT32_MAX / (kSide * kSide * kFrameStack);
  EXPECT_EQ(launch_fold_frames({most + 1, 1, Storage::kBFloat16, nullptr, nullptr}, nullptr),
            cudaErrorInvalidValue);
}

// Bias and ReLU

struct Image : ReluSizes {};
void PrintTo(const Image& s, std::ostream* out) {
  *out << s.images << 'x' << s.rows << 'x' << s.columns << 'x' << s.channels << '/' << s.fold
       << (s.storage == Storage::kFloat32 ? "" : "bf16");
}

class BiasRelu : public testing::TestWithParam<Image> {};
INSTANTIATE_TEST_SUITE_P(Frames, BiasRelu,
                         testing::Values(Image{1, 1, 1, 8, 1, Storage::kFloat32},
                                         Image{1, 1, 1, 8, 1, Storage::kBFloat16},
                                         Image{2, 31, 3, 24, 1, Storage::kFloat32},
                                         Image{2, 31, 3, 24, 1, Storage::kBFloat16},
                                         Image{3, 2, 2, 32, 2, Storage::kFloat32},
                                         Image{3, 10, 6, 40, 2, Storage::kFloat32},
                                         Image{3, 10, 6, 40, 2, Storage::kBFloat16},
                                         Image{1, 129, 5, 64, 1, Storage::kFloat32},
                                         Image{1, 2, 258, 64, 2, Storage::kBFloat16},
                                         Image{2, 7, 9, 256, 1, Storage::kFloat32},
                                         Image{2, 6, 4, 256, 2, Storage::kBFloat16},
                                         // more than the blocks take at once
                                         Image{37, 90, 90, 8, 2, Storage::kBFloat16}));

TEST_P(BiasRelu, IsItsDefinition) {
  const ReluSizes& sizes = GetParam();
  std::mt19937 random(2);
  Stored raw(sizes.storage, random_floats(random, size_of(sizes)));
  const Floats x = raw.values(), bias = random_floats(random, sizes.channels);
  Stored out(sizes.storage, size_of(sizes));
  ASSERT_EQ(launch_bias_relu({sizes, raw.get(), bias.data(), out.get()}, nullptr), cudaSuccess);
  Doubles expected(x.size());
  each_value(sizes, [&](int64_t i, int64_t folded, int64_t c) {
    expected[folded] = std::max(0.0, double{x[i]} + bias[c]);
  });
  EXPECT_LE(relative_error(out.values(), expected), bound_of(sizes.storage));
}

TEST_P(BiasRelu, BackwardIsItsDefinition) {
  const ReluSizes& sizes = GetParam();
  std::mt19937 random(3);
  Stored dout(sizes.storage, random_floats(random, size_of(sizes)));
  Floats activations = random_floats(random, size_of(sizes));
  for (float& a : activations) a = std::max(a, 0.0F);
  Stored out(sizes.storage, activations), draw(sizes.storage, size_of(sizes));
  Stored parts(Storage::kFloat32, relu_blocks(sizes) * sizes.channels);
  ASSERT_EQ(
      launch_bias_relu_backward(
          {sizes, dout.get(), out.get(), draw.get(), static_cast<float*>(parts.get())}, nullptr),
      cudaSuccess);
  const Floats slopes = dout.values(), values = out.values();
  Doubles expected(slopes.size()), sums(sizes.channels);
  each_value(sizes, [&](int64_t i, int64_t folded, int64_t c) {
    expected[i] = values[folded] > 0 ? slopes[folded] : 0;
    sums[c] += expected[i];
  });
  EXPECT_EQ(relative_error(draw.values(), expected), 0);
  EXPECT_LE(relative_error(floats(add_parts(parts.values(), sizes.channels)), sums), 1e-6);
}

TEST(BiasReluLimits, NotANumberGoesThroughBothWays) {
  for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    const ReluSizes sizes{1, 1, 2, 8, 1, storage};
    Floats x(16, -1.0F), slopes(16, 2.0F);
    x[3] = slopes[12] = NAN;
    Floats bias(8);
    bias[5] = NAN;
    Stored raw(storage, x), out(storage, 16), dout(storage, slopes), draw(storage, 16);
    Stored parts(Storage::kFloat32, 8);
    ASSERT_EQ(launch_bias_relu({sizes, raw.get(), bias.data(), out.get()}, nullptr), cudaSuccess);
    ASSERT_EQ(
        launch_bias_relu_backward(
            {sizes, dout.get(), out.get(), draw.get(), static_cast<float*>(parts.get())}, nullptr),
        cudaSuccess);
    const Floats got = out.values(), back = draw.values(), sums = parts.values();
    for (int i = 0; i < 16; ++i) {  // a ReLU of NaN is open; that of 12, whose slope is NaN, closed
      const bool open = i == 3 || i % 8 == 5;
      EXPECT_EQ(std::isnan(got[i]), open) << i;
      EXPECT_EQ(back[i], open ? 2 : 0) << i;
    }
    for (int c = 0; c < 8; ++c) EXPECT_EQ(sums[c], c == 3 ? 2 : c == 5 ? 4 : 0);
  }
}

TEST(BiasReluLimits, SizesThatItDoesNotTake) {
  const auto error = [](const ReluSizes& sizes) {
    const cudaError_t forward = launch_bias_relu({sizes, nullptr, nullptr, nullptr}, nullptr);
    EXPECT_EQ(launch_bias_relu_backward({sizes, nullptr, nullptr, nullptr, nullptr}, nullptr),
              forward);
    return forward;
  };
  for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
    EXPECT_EQ(error({1, 2, 2, 0, 1, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({1, 2, 2, 12, 1, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({1, 2, 2, 264, 1, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({1, 6, 6, 8, 3, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({1, 3, 2, 8, 2, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({1, 2, 3, 8, 2, storage}), cudaErrorInvalidValue);
    EXPECT_EQ(error({int64_t{1} << 28, 2, 2, 8, 2, storage}), cudaErrorInvalidValue);
  }
}

TEST(BiasReluLimits, Blocks) {
  EXPECT_EQ(relu_blocks({1, 1, 256, 8, 1, Storage::kFloat32}), 1);
  EXPECT_EQ(relu_blocks({1, 1, 257, 8, 1, Storage::kFloat32}), 2);
  EXPECT_EQ(relu_blocks({37, 90, 90, 8, 2, Storage::kFloat32}), 1056);
}

TEST(BiasReluLimits, NoImagesLeaveSumsOfZero) {
  const ReluSizes sizes{0, 4, 4, 16, 2, Storage::kFloat32};
  EXPECT_EQ(launch_bias_relu({sizes, nullptr, nullptr, nullptr}, nullptr), cudaSuccess);
  ASSERT_EQ(relu_blocks(sizes), 1);
  Stored parts(Storage::kFloat32, 16);
  ASSERT_EQ(launch_bias_relu_backward(
                {sizes, nullptr, nullptr, nullptr, static_cast<float*>(parts.get())}, nullptr),
            cudaSuccess);
  EXPECT_EQ(parts.values(), Floats(16));
}

// The first convolution

constexpr ReluSizes image_of(int64_t images) {
  return {images, kOutSide, kOutSide, kOutChannels, 2, Storage::kBFloat16};
}

/// Calls f(k, pixel) for the 256 pixels of the window of output (y, x), k as in the weight.
template <class F>
void each_of_window(const std::vector<uint8_t>& strips, int64_t steps, int64_t image, int64_t y,
                    int64_t x, F&& f) {
  for (int64_t frame = 0; frame < kFrameStack; ++frame) {
    for (int64_t row = 0; row < 8; ++row) {
      for (int64_t column = 0; column < 8; ++column) {
        const int64_t square = row / 4 * 2 + column / 4, within = row % 4 * 4 + column % 4;
        f((frame * 4 + square) * 16 + within,
          pixel_of(strips, steps, image, frame, 4 * y + row, 4 * x + column));
      }
    }
  }
}

class FirstConvolution : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};
INSTANTIATE_TEST_SUITE_P(Frames, FirstConvolution,
                         testing::Values(std::tuple{1, 1}, std::tuple{2, 3}, std::tuple{1, 9},
                                         std::tuple{1, 20}));

TEST_P(FirstConvolution, IsItsDefinition) {
  const auto [batch, steps] = GetParam();
  std::mt19937 random(5);
  const std::vector<uint8_t> strips = random_strips(random, batch, steps);
  Stored weight(Storage::kBFloat16, random_floats(random, kOutChannels * 256, -0.01F, 0.01F));
  const Floats bias = random_floats(random, kOutChannels), w = weight.values();
  const ReluSizes sizes = image_of(batch * steps);
  Stored out(sizes.storage, size_of(sizes));
  ASSERT_EQ(launch_first_convolution(
                {batch, steps, strips.data(), weight.get(), bias.data(), out.get()}, nullptr),
            cudaSuccess);
  Doubles expected(size_of(sizes));
  for (int64_t pixel = 0; pixel < sizes.images * kOutSide * kOutSide; ++pixel) {
    const int64_t x = pixel % kOutSide, y = pixel / kOutSide % kOutSide;
    const int64_t image = pixel / kOutSide / kOutSide;
    double window[256];
    each_of_window(strips, steps, image, y, x, [&](int64_t k, double p) { window[k] = p; });
    for (int64_t c = 0; c < kOutChannels; ++c) {
      double sum = bias[c];
      for (int64_t k = 0; k < 256; ++k) sum += w[c * 256 + k] * window[k];
      expected[folded_index(sizes, image, y, x, c)] = std::max(sum, 0.0);
    }
  }
  EXPECT_LE(relative_error(out.values(), expected), 4e-3);
}

TEST_P(FirstConvolution, BackwardIsItsDefinition) {
  const auto [batch, steps] = GetParam();
  std::mt19937 random(6);
  const std::vector<uint8_t> strips = random_strips(random, batch, steps);
  const ReluSizes sizes = image_of(batch * steps);
  Stored dout(sizes.storage, random_floats(random, size_of(sizes)));
  Floats activations = random_floats(random, size_of(sizes));
  for (float& a : activations) a = std::max(a, 0.0F);
  Stored out(sizes.storage, activations);
  Stored parts(Storage::kFloat32, first_convolution_blocks(batch, steps) * kFirstConvolutionSums);
  ASSERT_EQ(launch_first_convolution_backward({batch, steps, strips.data(), dout.get(), out.get(),
                                               static_cast<float*>(parts.get())},
                                              nullptr),
            cudaSuccess);
  const Floats slopes = dout.values(), values = out.values();
  Doubles dweight(kOutChannels * 256), dbias(kOutChannels);
  for (int64_t pixel = 0; pixel < sizes.images * kOutSide * kOutSide; ++pixel) {
    const int64_t x = pixel % kOutSide, y = pixel / kOutSide % kOutSide;
    const int64_t image = pixel / kOutSide / kOutSide;
    double window[256];
    each_of_window(strips, steps, image, y, x, [&](int64_t k, double p) { window[k] = p; });
    for (int64_t c = 0; c < kOutChannels; ++c) {
      const int64_t at = folded_index(sizes, image, y, x, c);
      if (values[at] <= 0) continue;
      dbias[c] += slopes[at];
      for (int64_t k = 0; k < 256; ++k) dweight[c * 256 + k] += slopes[at] * window[k];
    }
  }
  const Floats sums = floats(add_parts(parts.values(), kFirstConvolutionSums));
  const auto weights_end = sums.begin() + kOutChannels * 256;
  EXPECT_LE(relative_error({sums.begin(), weights_end}, dweight), 1e-6);
  EXPECT_LE(relative_error({weights_end, sums.end()}, dbias), 1e-6);
}

TEST(FirstConvolutionLimits, NotANumberGoesThroughBothWays) {
  const std::vector<uint8_t> strips(kFrameStack * kFrameSide * kFrameSide);
  const ReluSizes sizes = image_of(1);
  Stored weight(sizes.storage, Floats(kOutChannels * 256));
  Floats bias(kOutChannels, 0.5F);
  bias[3] = NAN;
  bias[4] = -1;
  Stored out(sizes.storage, size_of(sizes)), dout(sizes.storage, Floats(size_of(sizes), 0.25F));
  Stored parts(Storage::kFloat32, kFirstConvolutionSums);
  ASSERT_EQ(launch_first_convolution({1, 1, strips.data(), weight.get(), bias.data(), out.get()},
                                     nullptr),
            cudaSuccess);
  ASSERT_EQ(
      launch_first_convolution_backward(
          {1, 1, strips.data(), dout.get(), out.get(), static_cast<float*>(parts.get())}, nullptr),
      cudaSuccess);
  const Floats values = out.values(), sums = parts.values();
  each_value(sizes, [&](int64_t, int64_t folded, int64_t c) {
    ASSERT_EQ(std::isnan(values[folded]), c == 3);
    ASSERT_TRUE(c == 3 || values[folded] == (c == 4 ? 0 : 0.5F));
  });
  for (int64_t i = 0; i < kFirstConvolutionSums; ++i) {
    const int64_t channel = i - kOutChannels * 256;
    ASSERT_EQ(sums[i], channel < 0 || channel == 4 ? 0 : 100) << i;
  }
}

TEST(FirstConvolutionLimits, NoStripsAndBlocks) {
  EXPECT_EQ(launch_first_convolution({0, 3, nullptr, nullptr, nullptr, nullptr}, nullptr),
            cudaSuccess);
  EXPECT_EQ(launch_first_convolution_backward({0, 3, nullptr, nullptr, nullptr, nullptr}, nullptr),
            cudaSuccess);
  EXPECT_EQ(first_convolution_blocks(0, 3), 0);
  EXPECT_EQ(first_convolution_blocks(3, 8), 3);
  EXPECT_EQ(first_convolution_blocks(3, 9), 6);
  EXPECT_EQ(first_convolution_blocks(300, 1), 264);
}

}  // namespace
