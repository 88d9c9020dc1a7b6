// The action head and its loss, forward and backward, against double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>

#include "kernels/action_head/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::emulation;
using namespace dmamba::kernels;

constexpr double kExact = 1e-6;
template <class T>
constexpr double kStored = sizeof(T) == 2 ? 4e-3 : kExact;  // half a bfloat16's last bit

struct Sizes {
  int64_t steps, width, act_dim;
};
// Widths of one, two, four and eight turns; steps beside a block's eight, actions beside a round's
// four, and more steps than a block has threads; more slopes of a block than 48 KB.
constexpr Sizes kSizes[] = {{1, 64, 1},  {2, 128, 3},  {7, 192, 8},   {8, 256, 9},  {9, 320, 17},
                            {31, 64, 2}, {129, 64, 6}, {600, 64, 2},  {600, 64, 1}, {17, 512, 1},
                            {3, 64, 4},  {4, 64, 5},   {10, 576, 16}, {5, 1024, 7}, {2, 64, 1600}};

/// Inputs of both ways. Of the tokens only the state's are numbers, of the steps every third is
/// padding.
template <class T>
struct Inputs {
  Sizes n;
  Floats tokens, weight, bias, targets, slopes;
  std::unique_ptr<bool[]> flags;
  bool* mask;  // on 16 bytes, or one behind
  Placed<T> y;

  explicit Inputs(Sizes sizes)
      : n(sizes),
        flags(new bool[sizes.steps + 1]),
        mask(flags.get() + sizes.act_dim % 2),
        y(static_cast<size_t>(n.steps * 3 * n.width)) {
    std::mt19937 random(static_cast<unsigned>(n.steps * 31 + n.width + n.act_dim));
    const float scale = 1 / std::sqrt(static_cast<float>(n.width));
    const auto actions = static_cast<size_t>(n.steps * n.act_dim);
    tokens = random_floats(random, static_cast<size_t>(n.steps * n.width), -2, 2);
    if (sizeof(T) == 2) tokens = to_floats(to_bfloat16(tokens));
    weight = random_floats(random, static_cast<size_t>(n.act_dim * n.width), -scale, scale);
    bias = random_floats(random, static_cast<size_t>(n.act_dim));
    targets = random_floats(random, actions);
    slopes = random_floats(random, actions);
    for (int64_t s = 0; s < n.steps; ++s) {
      mask[s] = s % 3 != 1;
      for (int64_t c = 0; c < n.width; ++c) y.data()[state(s, c)] = tokens[s * n.width + c];
    }
  }
  /// The number of a step's state among those of all tokens.
  int64_t state(int64_t step, int64_t column) const { return (step * 3 + 1) * n.width + column; }
};

double action_of(const Floats& tokens, const Floats& weight, const Floats& bias, int64_t width,
                 int64_t step, int64_t action) {
  double sum = bias[action];
  for (int64_t c = 0; c < width; ++c) {
    sum += double{tokens[step * width + c]} * weight[action * width + c];
  }
  return std::tanh(sum);
}

struct Loss {
  double loss = 0;
  Doubles slopes;
};
template <class T>
Loss reference(const Inputs<T>& in) {
  int64_t real = 0;
  for (int64_t s = 0; s < in.n.steps; ++s) real += in.mask[s] ? 1 : 0;
  const double share = 1.0 / static_cast<double>(in.n.act_dim * real);
  Loss out;
  for (int64_t s = 0; s < in.n.steps; ++s) {
    for (int64_t a = 0; a < in.n.act_dim; ++a) {
      const double action = action_of(in.tokens, in.weight, in.bias, in.n.width, s, a);
      const double error = action - in.targets[s * in.n.act_dim + a];
      if (in.mask[s]) out.loss += share * error * error;
      out.slopes.push_back(in.mask[s] ? 2 * share * error * (1 - action * action) : 0);
    }
  }
  return out;
}

template <class T>
struct Forward {
  Placed<float> slopes, losses;

  explicit Forward(Inputs<T>& in)
      : slopes(in.targets.size()), losses(static_cast<size_t>(action_head_blocks(in.n.steps))) {
    EXPECT_EQ(launch_action_head(params(in), nullptr), cudaSuccess);
  }
  ActionHeadParams params(Inputs<T>& in) {
    return {in.n.steps,  in.n.width,       in.n.act_dim,   kStorageOf<T>,
            in.y.data(), in.weight.data(), in.bias.data(), in.targets.data(),
            in.mask,     slopes.data(),    losses.data()};
  }
  double loss() const {
    double sum = 0;
    for (const float part : losses.floats()) sum += part;
    return sum;
  }
};

template <class T>
struct Backward {
  Placed<T> dy;
  Placed<float> parts;

  Backward(Inputs<T>& in, const Floats& slopes, float dloss)
      : dy(static_cast<size_t>(in.n.steps * 3 * in.n.width)),
        parts(
            static_cast<size_t>(action_head_blocks(in.n.steps) * in.n.act_dim * (in.n.width + 1))) {
    EXPECT_EQ(launch_action_head_backward(params(in, slopes, &dloss), nullptr), cudaSuccess);
  }
  ActionHeadBackwardParams params(Inputs<T>& in, const Floats& slopes, const float* dloss) {
    return {in.n.steps,       in.n.width,    in.n.act_dim, kStorageOf<T>, in.y.data(),
            in.weight.data(), slopes.data(), dloss,        dy.data(),     parts.data()};
  }
  /// The gradients of the weight and then of the bias.
  Floats sums(const Sizes& n) const {
    const Floats all = parts.floats();
    const auto columns = static_cast<size_t>(n.act_dim * (n.width + 1));
    Doubles sums(columns);
    for (size_t i = 0; i < all.size(); ++i) sums[i % columns] += all[i];
    return {sums.begin(), sums.end()};
  }
};

template <class T>
class ActionHead : public testing::Test {};
using Stored = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(ActionHead, Stored);

TYPED_TEST(ActionHead, LossAndSlopes) {
  for (const Sizes& n : kSizes) {
    SCOPED_TRACE(testing::Message() << n.steps << ", " << n.width << ", " << n.act_dim);
    Inputs<TypeParam> in(n);
    const Forward<TypeParam> got(in);
    const Loss expected = reference(in);
    EXPECT_NEAR(got.loss(), expected.loss, kExact * expected.loss);
    const Floats slopes = got.slopes.floats();
    EXPECT_LE(relative_error(slopes, expected.slopes), kExact);
    EXPECT_TRUE(got.slopes.alone() && got.losses.alone());
    for (int64_t i = 0; i < n.steps * n.act_dim; ++i) {
      if (!in.mask[i / n.act_dim]) {
        EXPECT_EQ(slopes[i], 0) << i;
      }
    }
  }
}

TYPED_TEST(ActionHead, Gradients) {
  constexpr float kDloss = -1.75F;
  for (const Sizes& n : kSizes) {
    SCOPED_TRACE(testing::Message() << n.steps << ", " << n.width << ", " << n.act_dim);
    Inputs<TypeParam> in(n);
    const Backward<TypeParam> got(in, in.slopes, kDloss);
    Doubles dy(static_cast<size_t>(n.steps * 3 * n.width));
    Doubles weight(static_cast<size_t>(n.act_dim * n.width)), bias(static_cast<size_t>(n.act_dim));
    for (int64_t s = 0; s < n.steps; ++s) {
      for (int64_t a = 0; a < n.act_dim; ++a) {
        const double slope = double{kDloss} * in.slopes[s * n.act_dim + a];
        bias[a] += slope;
        for (int64_t c = 0; c < n.width; ++c) {
          dy[in.state(s, c)] += slope * in.weight[a * n.width + c];
          weight[a * n.width + c] += slope * in.tokens[s * n.width + c];
        }
      }
    }
    const Floats got_dy = got.dy.floats();
    EXPECT_LE(relative_error(got_dy, dy), kStored<TypeParam>);
    for (int64_t i = 0; i < n.steps * 3 * n.width; ++i) {
      if (i / n.width % 3 != 1) {
        ASSERT_EQ(got_dy[i], 0) << i;
      }
    }
    const Floats sums = got.sums(n);
    const auto middle = sums.begin() + n.act_dim * n.width;
    EXPECT_LE(relative_error({sums.begin(), middle}, weight), kExact);
    EXPECT_LE(relative_error({middle, sums.end()}, bias), kExact);
    EXPECT_TRUE(got.dy.alone() && got.parts.alone());
  }
}

// Both ways together give the slopes of the loss itself.
TEST(ActionHead, GradientsAreTheLossesDifferences) {
  Inputs<float> in({11, 64, 3});
  const Forward<float> forward(in);
  const Backward<float> got(in, forward.slopes.floats(), 1);
  const auto difference = [&](float& x) {
    const float before = x;
    x = before + 0x1p-10F;
    const double above = reference(in).loss, high = x;
    x = before - 0x1p-10F;
    const double below = reference(in).loss, low = x;
    x = before;
    return (above - below) / (high - low);
  };
  const Floats dy = got.dy.floats(), sums = got.sums(in.n);
  Floats dtokens;
  Doubles by_token, by_parameter;
  for (int64_t s = 0; s < in.n.steps; ++s) {
    for (int64_t c = 0; c < in.n.width; ++c) {
      by_token.push_back(difference(in.tokens[s * in.n.width + c]));
      dtokens.push_back(dy[in.state(s, c)]);
    }
  }
  for (float& x : in.weight) by_parameter.push_back(difference(x));
  for (float& x : in.bias) by_parameter.push_back(difference(x));
  EXPECT_LE(relative_error(dtokens, by_token), 5e-6);
  EXPECT_LE(relative_error(sums, by_parameter), 5e-6);
}

TEST(ActionHead, BitsDoNotDependOnTheOrderOfThreads) {
  Inputs<float> in({19, 192, 9});
  std::vector<Floats> results;
  for (const char* order : {"forward", "backward", "3"}) {
    const Setting setting("DMAMBA_EMULATION_ORDER", order);
    const Forward<float> forward(in);
    const Backward<float> backward(in, in.slopes, 0.3F);
    Floats all = forward.losses.floats();
    for (const Floats& more :
         {forward.slopes.floats(), backward.dy.floats(), backward.parts.floats()}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    results.push_back(all);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(ActionHead, WhatIsRefusedOrEmptyWritesNothing) {
  Inputs<float> in({8, 64, 2});
  const float dloss = 1;
  Placed<float> slopes(16), losses(1), dy(8 * 3 * 64), parts(2 * 65);
  const auto forward = [&](int64_t steps, int64_t width, Storage storage) {
    return launch_action_head(
        {steps, width, 2, storage, in.y.data(), in.weight.data(), in.bias.data(), in.targets.data(),
         in.mask, slopes.data(), losses.data()},
        nullptr);
  };
  const auto backward = [&](int64_t steps, int64_t width, Storage storage) {
    return launch_action_head_backward({steps, width, 2, storage, in.y.data(), in.weight.data(),
                                        in.slopes.data(), &dloss, dy.data(), parts.data()},
                                       nullptr);
  };
  for (const int64_t width : {0, 1, 63, 100, 1088}) {
    EXPECT_EQ(forward(1, width, Storage::kFloat32), cudaErrorInvalidValue) << width;
    EXPECT_EQ(backward(1, width, Storage::kFloat32), cudaErrorInvalidValue) << width;
  }
  EXPECT_EQ(forward(1, 64, Storage::kFloat64), cudaErrorInvalidValue);
  EXPECT_EQ(backward(1, 64, Storage::kFloat64), cudaErrorInvalidValue);
  EXPECT_EQ(forward(0, 64, Storage::kBFloat16), cudaSuccess);
  EXPECT_EQ(backward(0, 64, Storage::kBFloat16), cudaSuccess);
  EXPECT_TRUE(slopes.untouched() && losses.untouched() && dy.untouched() && parts.untouched());
}

}  // namespace
