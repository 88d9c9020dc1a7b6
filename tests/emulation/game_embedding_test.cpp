// The token embedding of games and its gradients, against their definition in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <ostream>
#include <random>
#include <vector>

#include "include/dmamba/common/philox.h"
#include "kernels/game_embedding/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba;
using namespace dmamba::kernels;
using namespace dmamba::emulation;

constexpr int64_t kKinds = 3, kMaxTimestep = 7;
constexpr uint64_t kKey = 0x0123456789ABCDEFULL;
constexpr uint32_t kThreshold = 858993459;  // a dropout of 0.2
constexpr int64_t kFirst = 192;             // element of the mask

enum class Mask { kNone, kAllReal, kPadding };

struct Sizes {
  int64_t batch, steps, width, num_actions;
  Mask mask;
  bool dropout;
  int64_t more_rows = 0;  // of the table of places, beyond 3 K
};

void PrintTo(const Sizes& s, std::ostream* out) {
  *out << s.batch << 'x' << s.steps << 'x' << s.width << ',' << s.num_actions << "actions"
       << (s.mask == Mask::kNone      ? ""
           : s.mask == Mask::kPadding ? ",padding"
                                      : ",mask")
       << (s.dropout ? ",dropout" : "");
}

/// Zero, or 1 / (1 - p): kernels/elementwise/params.h.
double kept(int64_t element) {
  const uint64_t at = kFirst + element, counter = at / 64 * 16 + at % 16;
  const uint32_t counters[4] = {static_cast<uint32_t>(counter),
                                static_cast<uint32_t>(counter >> 32), 0, 0};
  const uint32_t key[2] = {static_cast<uint32_t>(kKey), static_cast<uint32_t>(kKey >> 32)};
  return common::philox4x32(counters, key).word[at % 64 / 16] >= kThreshold ? 1 / 0.8 : 0.0;
}

/// One problem and its answers by definition.
struct Problem {
  Sizes sizes;
  int64_t rows, tokens;
  std::mt19937 random{7};
  Floats returns, states, weight, bias, table, local, global, dout;
  std::vector<int64_t> actions, timesteps;
  std::unique_ptr<bool[]> mask;
  int64_t key = static_cast<int64_t>(kKey);
  Doubles out, dtokens, dstates, dtable, dlocal, dglobal;

  explicit Problem(const Sizes& s)
      : sizes(s), rows(kKinds * s.steps + s.more_rows), tokens(s.batch * s.steps * kKinds) {
    const int64_t steps = s.batch * s.steps, width = s.width;
    returns = random_floats(random, steps);
    states = random_floats(random, steps * width);
    weight = random_floats(random, width);
    bias = random_floats(random, width);
    table = random_floats(random, s.num_actions * width);
    local = random_floats(random, rows * width);
    global = random_floats(random, kMaxTimestep * width);
    dout = random_floats(random, tokens * width);
    for (int64_t i = 0; i < steps; ++i) actions.push_back(any_near(s.num_actions));
    for (int64_t b = 0; b < s.batch; ++b) {  // some shared behind more segments than threads
      timesteps.push_back(s.batch <= 256 ? any_near(kMaxTimestep) : b / 256);
    }
    if (s.mask != Mask::kNone) {
      mask = std::make_unique<bool[]>(steps);
      for (int64_t i = 0; i < steps; ++i) mask[i] = i % s.steps >= padding_of(i / s.steps);
    }
    answer();
  }

  /// From two below zero to two beyond the last.
  int64_t any_near(int64_t count) { return static_cast<int64_t>(random() % (count + 4)) - 2; }
  static int64_t nearest(int64_t i, int64_t count) { return std::clamp(i, int64_t{0}, count - 1); }
  /// Steps of padding in front of a segment: none, some, all.
  int64_t padding_of(int64_t segment) const {
    return sizes.mask == Mask::kPadding ? segment * 37 % (sizes.steps + 1) : 0;
  }

  void answer() {
    const int64_t width = sizes.width;
    out.resize(tokens * width);
    dtokens.resize(tokens * width);
    dstates.resize(states.size());
    dtable.resize((sizes.num_actions + 2) * width);
    dlocal.resize(rows * width);
    dglobal.resize(kMaxTimestep * width);
    for (int64_t i = 0; i < tokens * width; ++i) {
      const int64_t column = i % width, token = i / width, kind = token % kKinds;
      const int64_t step = token / kKinds, segment = step / sizes.steps;
      const int64_t position = std::max(step % sizes.steps - padding_of(segment), int64_t{0});
      const int64_t action = nearest(actions[step], sizes.num_actions) * width + column;
      const int64_t place = (kKinds * position + kind) * width + column;
      const int64_t time = nearest(timesteps[segment], kMaxTimestep) * width + column;
      const double drop = sizes.dropout ? kept(i) : 1, slope = dout[i] * drop;
      double value = 0;
      if (kind == 0) {
        value = std::tanh(double{returns[step]} * weight[column] + bias[column]);
        const double inner = slope * (1 - value * value);
        dtable[sizes.num_actions * width + column] += inner * returns[step];
        dtable[(sizes.num_actions + 1) * width + column] += inner;
      } else if (kind == 1) {
        value = states[step * width + column];
        dstates[step * width + column] = slope;
      } else {
        value = std::tanh(double{table[action]});
        dtable[action] += slope * (1 - value * value);
      }
      out[i] = (value + global[time] + local[place]) * drop;
      dtokens[i] = slope;
      dlocal[place] += slope;
      dglobal[time] += slope;
    }
  }

  GameTokens inputs() const {
    return {sizes.batch,      sizes.steps,
            sizes.width,      returns.data(),
            states.data(),    actions.data(),
            timesteps.data(), mask.get(),
            weight.data(),    bias.data(),
            table.data(),     local.data(),
            global.data(),    sizes.num_actions,
            kMaxTimestep,     {sizes.dropout ? &key : nullptr, kThreshold, 1.25F, kFirst}};
  }
};

class GameEmbedding : public testing::TestWithParam<Sizes> {};
INSTANTIATE_TEST_SUITE_P(Games, GameEmbedding,
                         testing::Values(Sizes{1, 1, 64, 1, Mask::kNone, false},
                                         Sizes{1, 1, 64, 4, Mask::kPadding, true},
                                         Sizes{2, 3, 64, 4, Mask::kPadding, true},
                                         Sizes{2, 3, 128, 18, Mask::kNone, true, 1},
                                         Sizes{31, 3, 192, 5, Mask::kPadding, false, 4},
                                         Sizes{129, 1, 64, 2, Mask::kPadding, false},
                                         Sizes{300, 1, 64, 2, Mask::kNone, false},
                                         Sizes{9, 20, 320, 18, Mask::kPadding, true},
                                         Sizes{2, 20, 512, 22, Mask::kAllReal, true, 2},
                                         Sizes{3, 129, 128, 6, Mask::kPadding, false},
                                         Sizes{3, 40, 384, 30, Mask::kPadding, true}));

TEST_P(GameEmbedding, IsItsDefinition) {
  const Problem p(GetParam());
  const int64_t count = p.tokens * p.sizes.width;
  constexpr int64_t kGuard = 512;
  Floats out(count + kGuard, NAN);
  std::vector<uint8_t> mask(p.tokens + kGuard, 7);
  ASSERT_EQ(launch_game_embedding({p.inputs(), out.data(), reinterpret_cast<bool*>(mask.data())},
                                  nullptr),
            cudaSuccess);
  for (int64_t i = 0; i < p.tokens + kGuard; ++i) {
    const bool written = p.mask && i < p.tokens;
    ASSERT_EQ(mask[i], !written ? 7 : p.mask[i / kKinds] ? 1 : 0) << i;
  }
  for (int64_t i = count; i < count + kGuard; ++i) ASSERT_TRUE(std::isnan(out[i])) << i;
  out.resize(count);
  EXPECT_LE(relative_error(out, p.out), 3e-7);
}

TEST_P(GameEmbedding, BackwardIsItsDefinition) {
  const Problem p(GetParam());
  const auto [batch, steps, width, num_actions, mask, dropout, more_rows] = p.sizes;
  const int64_t blocks = game_blocks(batch, steps), columns = (num_actions + 2) * width;
  const auto missing = [](int64_t size) { return Floats(size, NAN); };
  Floats dtokens = missing(p.tokens * width), dstates = missing(batch * steps * width);
  Floats parts = missing((blocks + 1) * columns), dlocal = missing((p.rows + 1) * width);
  Floats dglobal(kMaxTimestep * width);
  // Without a dropout it reads `dout` in the place of `dtokens`.
  Floats dout = p.dout;
  ASSERT_EQ(launch_game_embedding_backward(
                {p.inputs(), dout.data(), dropout ? dtokens.data() : dout.data(), dstates.data(),
                 parts.data(), dlocal.data(), dglobal.data(), p.rows},
                nullptr),
            cudaSuccess);
  EXPECT_EQ(dout, p.dout);
  if (dropout) {
    EXPECT_LE(relative_error(dtokens, p.dtokens), 1e-7);
  }
  EXPECT_LE(relative_error(dstates, p.dstates), 1e-7);
  EXPECT_LE(relative_error(dglobal, p.dglobal), 1e-6);
  const auto untouched = [](const Floats& x, int64_t from) {
    return std::all_of(x.begin() + from, x.end(), [](float v) { return std::isnan(v); });
  };
  EXPECT_TRUE(untouched(dlocal, p.rows * width) && untouched(parts, blocks * columns));
  dlocal.resize(p.rows * width);
  EXPECT_LE(relative_error(dlocal, p.dlocal), 1e-6);
  Doubles sums(columns);
  for (int64_t i = 0; i < blocks * columns; ++i) sums[i % columns] += parts[i];
  EXPECT_LE(relative_error({sums.begin(), sums.end()}, p.dtable), 1e-6);
}

TEST(GameEmbeddingLimits, SizesThatItDoesNotTake) {
  const auto error = [](int64_t width, int64_t num_actions) {
    GameTokens tokens{};
    tokens.steps = 3;  // of no segments
    tokens.width = width;
    tokens.num_actions = num_actions;
    const cudaError_t forward = launch_game_embedding({tokens, nullptr, nullptr}, nullptr);
    GameEmbeddingGradients gradients{};
    gradients.tokens = tokens;
    EXPECT_EQ(launch_game_embedding_backward(gradients, nullptr), forward);
    return forward;
  };
  EXPECT_EQ(error(64, 190), cudaSuccess);
  EXPECT_EQ(error(64, 191), cudaErrorInvalidValue);
  EXPECT_EQ(error(512, 22), cudaSuccess);
  EXPECT_EQ(error(512, 23), cudaErrorInvalidValue);
  EXPECT_EQ(error(576, 4), cudaErrorInvalidValue);
  EXPECT_EQ(error(96, 4), cudaErrorInvalidValue);
  EXPECT_EQ(error(0, 4), cudaErrorInvalidValue);
}

TEST(GameEmbeddingLimits, NoSegmentsLeaveGradientsOfZero) {
  GameEmbeddingGradients p{};
  p.tokens.steps = 2;
  p.tokens.width = 64;
  p.tokens.num_actions = 4;
  p.local_rows = 7;
  Floats dlocal(7 * 64 + 1, NAN);
  p.dlocal = dlocal.data();
  ASSERT_EQ(launch_game_embedding_backward(p, nullptr), cudaSuccess);
  EXPECT_TRUE(std::isnan(dlocal.back()));
  dlocal.pop_back();
  EXPECT_EQ(dlocal, Floats(7 * 64));
}

}  // namespace
