// AdamW over many tensors, with clip, mirrors and steps that are skipped, against double precision.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "kernels/optimizer/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::emulation;
using namespace dmamba::kernels;

constexpr double kExact = 5e-7;
constexpr int64_t kInARow = 4, kTotal = 9, kMost = 6, kStep = 40, kSetStep = 11, kSetSkipped = 2;
constexpr double kNormSum = 3.5, kLossSum = -2.25;

bool same_bits(const Floats& a, const Floats& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

struct Offsets {
  size_t parameter, gradient, first, second, mirror;
};

/// A tensor, and what it was before the step.
struct Tensor {
  Floats before, gradients, first_before, second_before;
  Placed<float> parameter, gradient, first, second;
  Placed<float> rates;
  Placed<__nv_bfloat16> rounded;
  Mirror kind;
  bool of_set;
  float weight_decay, rate;

  Tensor(std::mt19937& random, size_t count, const Offsets& at, Mirror mirror, bool own)
      : before(random_floats(random, count, -2, 2)),
        gradients(random_floats(random, count)),
        first_before(random_floats(random, count)),
        second_before(random_floats(random, count, 0.1F, 1)),
        parameter(before, at.parameter),
        gradient(gradients, at.gradient),
        first(first_before, at.first),
        second(second_before, at.second),
        rates(count, at.mirror),
        rounded(count, at.mirror),
        kind(mirror),
        of_set(own),
        weight_decay(random_floats(random, 1, 0, 0.5F)[0]),
        rate(random_floats(random, 1, 0.5F, 2)[0]) {}

  void set_gradients(const Floats& values) {
    ASSERT_EQ(values.size(), gradients.size());
    gradients = values;
    std::copy(values.begin(), values.end(), gradient.data());
  }
  AdamWTensor view() {
    void* const mirror = kind == Mirror::kNone       ? nullptr
                         : kind == Mirror::kBFloat16 ? static_cast<void*>(rounded.data())
                                                     : rates.data();
    return {parameter.data(), gradient.data(),
            first.data(),     second.data(),
            mirror,           kind,
            of_set,           static_cast<int64_t>(before.size()),
            weight_decay,     rate};
  }
  bool alone() const {
    return parameter.alone() && gradient.alone() && first.alone() && second.alone() &&
           (kind == Mirror::kDecayRates ? rates.alone() : rates.untouched()) &&
           (kind == Mirror::kBFloat16 ? rounded.alone() : rounded.untouched());
  }
  bool has_not_moved() const {
    return same_bits(parameter.floats(), before) && same_bits(first.floats(), first_before) &&
           same_bits(second.floats(), second_before) && rates.untouched() && rounded.untouched();
  }
};

/// A step: its tensors, scalars and traces.
struct Step {
  std::vector<Tensor> tensors;
  AdamWOptions options{0.9F, 0.95F, 1e-3F, 0, kMost};
  StepScalars scalars[2] = {{0.1F, 0.25F, 0.5F, 0}, {0.05F, 0.0625F, 0.75F, 0}};
  float loss = 0.625F;
  Placed<float> norm{1};
  double norm_sum = kNormSum, loss_sum = kLossSum;
  int64_t step = kStep, set_step = kSetStep, set_skipped = kSetSkipped;
  SkippedSteps skipped{kTotal, kInARow, 0};
  bool one_set = false;

  void run() {
    std::vector<AdamWTensor> list;
    int64_t stretches = 0;
    for (Tensor& t : tensors) {
      list.push_back(t.view());
      stretches += (list.back().count + 2047) / 2048;
    }
    const auto count = static_cast<int>(list.size());
    const size_t bytes = adamw_workspace(list.data(), count);
    EXPECT_GE(bytes, stretches * sizeof(float));
    Placed<float> workspace(bytes / sizeof(float));
    const AdamWTraces traces{norm.data(),
                             &norm_sum,
                             &loss_sum,
                             &step,
                             one_set ? nullptr : &set_step,
                             &skipped,
                             one_set ? nullptr : &set_skipped};
    EXPECT_EQ(launch_adamw(list.data(), count, options, scalars, &loss, traces, workspace.data(),
                           nullptr),
              cudaSuccess);
    EXPECT_TRUE(workspace.alone() && norm.alone());
    for (const Tensor& t : tensors) {
      EXPECT_TRUE(t.alone());
      EXPECT_TRUE(same_bits(t.gradient.floats(), t.gradients));
    }
  }
  double exact_norm() const {
    double sum = 0;
    for (const Tensor& t : tensors) {
      for (const float g : t.gradients) sum += double{g} * g;
    }
    return std::sqrt(sum);
  }
};

void append(Floats& to, const Floats& more) { to.insert(to.end(), more.begin(), more.end()); }

void expect_moved(const Step& s) {
  const double norm = s.exact_norm(), limit = s.options.gradient_clip;
  const double clip = limit > 0 ? std::min(limit / (norm + 1e-6), 1.0) : 1;
  const double b1 = s.options.beta1, b2 = s.options.beta2;
  Doubles parameters, firsts, seconds, rates;
  Floats got_parameters, got_firsts, got_seconds, got_rates;
  for (const Tensor& t : s.tensors) {
    const StepScalars& scalars = s.scalars[t.of_set ? 1 : 0];
    const Floats got = t.parameter.floats();
    for (size_t i = 0; i < t.before.size(); ++i) {
      const double g = clip * t.gradients[i];
      const double m = b1 * t.first_before[i] + (1 - b1) * g;
      const double v = b2 * t.second_before[i] + (1 - b2) * g * g;
      const double p = t.before[i] * (1 - double{scalars.learning_rate} * t.rate * t.weight_decay);
      const double size = std::sqrt(v) / scalars.second_correction + s.options.epsilon;
      parameters.push_back(p - double{scalars.step_size} * t.rate * m / size);
      firsts.push_back(m);
      seconds.push_back(v);
      if (t.kind == Mirror::kDecayRates) rates.push_back(-std::exp(double{got[i]}));
    }
    append(got_parameters, got);
    append(got_firsts, t.first.floats());
    append(got_seconds, t.second.floats());
    if (t.kind == Mirror::kDecayRates) append(got_rates, t.rates.floats());
    if (t.kind == Mirror::kBFloat16) {
      EXPECT_EQ(t.rounded.floats(), to_floats(to_bfloat16(got)));
    }
  }
  EXPECT_LE(relative_error(got_parameters, parameters), kExact);
  EXPECT_LE(relative_error(got_firsts, firsts), kExact);
  EXPECT_LE(relative_error(got_seconds, seconds), kExact);
  EXPECT_LE(relative_error(got_rates, rates), kExact);
}

void expect_counted_as_moved(const Step& s) {
  const float norm = s.norm.floats()[0];
  EXPECT_NEAR(norm, s.exact_norm(), kExact * s.exact_norm());
  EXPECT_EQ(s.norm_sum, kNormSum + double{norm});
  EXPECT_EQ(s.loss_sum, kLossSum + double{s.loss});
  EXPECT_EQ(s.step, kStep + 1);
  EXPECT_EQ(s.set_step, kSetStep + (s.one_set ? 0 : 1));
  EXPECT_EQ(s.set_skipped, kSetSkipped);
  EXPECT_EQ(s.skipped.total, kTotal);
  EXPECT_EQ(s.skipped.in_a_row, 0);
  EXPECT_EQ(s.skipped.stopped_at, 0);
}

constexpr Mirror kMirrors[] = {Mirror::kNone, Mirror::kBFloat16, Mirror::kDecayRates};

/// Of three launches' worth, of all mirrors, some not aligned, with sizes beside a vector's four
/// numbers and a block's 2048.
Step many_tensors() {
  Step s;
  std::mt19937 random(3);
  constexpr size_t kSizes[] = {1, 2, 31, 129, 4, 8, 0, 3};
  constexpr Offsets kOffsets[] = {{0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {1, 0, 0, 0, 0},
                                  {0, 1, 0, 0, 0}, {0, 0, 3, 0, 0}, {0, 0, 0, 1, 0},
                                  {0, 0, 0, 0, 1}, {0, 0, 0, 0, 4}};  // 4: half of bfloat16's 16
  for (size_t i = 0; i < 203; ++i) {
    const size_t large = i % 50 == 7 ? 1948 + i : 0;
    s.tensors.emplace_back(random, large > 0 ? large : kSizes[i % 8], kOffsets[i / 8 % 8],
                           kMirrors[i % 3], i % 5 == 1);
  }
  return s;
}

TEST(AdamW, MovesManyTensorsAtOnce) {
  for (const float clip : {0.0F, 1.5F, 1e4F}) {
    SCOPED_TRACE(clip);
    Step s = many_tensors();
    s.options.gradient_clip = clip;
    s.run();
    expect_counted_as_moved(s);
    expect_moved(s);
  }
}

// A number of tensors that is a launch's, and beside it.
TEST(AdamW, LeavesItsTracesOnce) {
  for (const size_t count : {1, 2, 95, 96, 97, 192, 193}) {
    SCOPED_TRACE(count);
    Step s;
    std::mt19937 random(static_cast<unsigned>(count));
    for (size_t i = 0; i < count; ++i) {
      s.tensors.emplace_back(random, 1 + i % 3, Offsets{}, kMirrors[i % 3], false);
    }
    s.one_set = true;
    s.run();
    expect_counted_as_moved(s);
    expect_moved(s);
  }
}

TEST(AdamW, TakesALaunchOfEmptyTensors) {
  Step s;
  std::mt19937 random(9);
  for (size_t i = 0; i < 98; ++i) {
    s.tensors.emplace_back(random, i < 96 ? 2 : 0, Offsets{}, Mirror::kNone, false);
  }
  s.run();
  expect_counted_as_moved(s);
  expect_moved(s);
}

// Gradients of more blocks than a block has threads, which add up the blocks' sums.
TEST(AdamW, MovesALargeTensor) {
  Step s;
  std::mt19937 random(5);
  s.options.gradient_clip = 2;
  s.tensors.emplace_back(random, 300 * 2048 + 5, Offsets{}, Mirror::kBFloat16, true);
  s.run();
  expect_counted_as_moved(s);
  expect_moved(s);
}

// So small that what is added to the norm counts.
TEST(AdamW, ClipsSmallGradients) {
  Step s;
  std::mt19937 random(6);
  s.options.gradient_clip = 5e-7F;
  s.tensors.emplace_back(random, 7, Offsets{}, Mirror::kNone, false);
  Tensor& t = s.tensors[0];
  t.set_gradients(random_floats(random, 7, -1e-6F, 1e-6F));
  t.first_before = t.second_before = Floats(7);
  std::fill_n(t.first.data(), 7, 0.0F);
  std::fill_n(t.second.data(), 7, 0.0F);
  s.run();
  expect_counted_as_moved(s);
  expect_moved(s);
}

/// What it takes for a step to be skipped.
struct Fault {
  const char* name;
  void (*make)(Step&);
};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Fault kFaults[] = {
    {"a gradient is NaN", [](Step& s) { s.tensors[0].set_gradients({NAN}); }},
    {"one of the last tensor's is infinite",
     [](Step& s) { s.tensors.back().set_gradients({1, 2, -kInfinity}); }},
    {"squares are too large", [](Step& s) { s.tensors[100].set_gradients({1e20F}); }},
    {"the loss is NaN", [](Step& s) { s.loss = NAN; }},
    {"the loss is infinite", [](Step& s) { s.loss = -kInfinity; }},
};

Step few_tensors() {
  Step s;
  std::mt19937 random(7);
  for (size_t i = 0; i < 103; ++i) {
    s.tensors.emplace_back(random, 1 + i % 4, Offsets{}, kMirrors[i % 3], i % 2 == 1);
  }
  return s;
}

void expect_nothing_moved(const Step& s) {
  for (const Tensor& t : s.tensors) EXPECT_TRUE(t.has_not_moved());
  EXPECT_EQ(s.norm_sum, kNormSum);
  EXPECT_EQ(s.loss_sum, kLossSum);
  EXPECT_EQ(s.step, kStep + 1);
}

TEST(AdamW, SkipsAStepThatIsNotFinite) {
  bool one_set = false;
  for (const Fault& fault : kFaults) {
    SCOPED_TRACE(fault.name);
    Step s = few_tensors();
    s.one_set = one_set = !one_set;
    s.options.gradient_clip = 1;
    fault.make(s);
    s.run();
    expect_nothing_moved(s);
    EXPECT_EQ(std::isfinite(s.norm.floats()[0]), !std::isfinite(s.loss));
    EXPECT_EQ(s.set_step, kSetStep + (one_set ? 0 : 1));
    EXPECT_EQ(s.set_skipped, kSetSkipped + (one_set ? 0 : 1));
    EXPECT_EQ(s.skipped.total, kTotal + 1);
    EXPECT_EQ(s.skipped.in_a_row, kInARow + 1);
    EXPECT_EQ(s.skipped.stopped_at, 0);
  }
}

TEST(AdamW, StopsAtOneThatIsTooMany) {
  for (const int64_t in_a_row : {kMost - 1, kMost}) {
    Step s = few_tensors();
    s.skipped.in_a_row = in_a_row;
    s.loss = NAN;
    s.run();
    expect_nothing_moved(s);
    const bool stops = in_a_row == kMost;
    EXPECT_EQ(s.skipped.stopped_at, stops ? kStep + 1 : 0);
    EXPECT_EQ(s.skipped.in_a_row, kMost);
    EXPECT_EQ(s.skipped.total, kTotal + (stops ? 0 : 1));
    EXPECT_EQ(s.set_skipped, kSetSkipped + (stops ? 0 : 1));
  }
}

TEST(AdamW, MovesNothingOnceStopped) {
  Step s = few_tensors();
  s.skipped = {kTotal, kMost, kStep - 3};
  s.scalars[0].stopped = s.scalars[1].stopped = 1;
  s.run();
  expect_nothing_moved(s);
  EXPECT_EQ(s.set_step, kSetStep + 1);
  EXPECT_EQ(s.skipped.stopped_at, kStep - 3);
  EXPECT_EQ(s.skipped.in_a_row, kMost);
  EXPECT_EQ(s.skipped.total, kTotal);
  EXPECT_EQ(s.set_skipped, kSetSkipped);
}

// Neither the order of threads nor addresses change a bit.
TEST(AdamW, BitsAreTheSame) {
  std::vector<Floats> results;
  for (const char* order : {"forward", "backward", "2"}) {
    const Setting setting("DMAMBA_EMULATION_ORDER", order);
    const size_t offset = results.size();
    Step s;
    std::mt19937 random(8);
    s.options.gradient_clip = 1;
    s.tensors.emplace_back(random, 4103, Offsets{offset, 0, 0, 0, 0}, Mirror::kNone, false);
    s.tensors.emplace_back(random, 130, Offsets{}, Mirror::kNone, true);
    s.run();
    Floats all = s.norm.floats();
    for (const Tensor& t : s.tensors) {
      append(all, t.parameter.floats());
      append(all, t.first.floats());
      append(all, t.second.floats());
    }
    results.push_back(all);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(Mirrors, DecayRates) {
  for (const size_t count : {1, 2, 255, 256, 257, 1000}) {
    std::mt19937 random(static_cast<unsigned>(count));
    const Floats x = random_floats(random, count, -3, 3);
    Placed<float> of_x(x, 1), out(count, 1);
    const MirrorTensor tensor{of_x.data(), out.data(), Mirror::kDecayRates,
                              static_cast<int64_t>(count)};
    ASSERT_EQ(launch_mirrors(&tensor, 1, nullptr), cudaSuccess);
    Doubles expected;
    for (const float v : x) expected.push_back(-std::exp(double{v}));
    EXPECT_LE(relative_error(out.floats(), expected), kExact);
    EXPECT_TRUE(out.alone());
  }
}

TEST(Mirrors, AnEmptyOneWritesNothing) {
  Placed<float> x(Floats(8, 1)), out(8);
  const MirrorTensor tensor{x.data(), out.data(), Mirror::kDecayRates, 0};
  EXPECT_EQ(launch_mirrors(&tensor, 1, nullptr), cudaSuccess);
  EXPECT_TRUE(out.untouched());
}

// Beside a thread's four numbers, a block's 1024, and a launch's 128 tensors.
TEST(Mirrors, AreWrittenAlone) {
  std::mt19937 random(7);
  constexpr size_t kCounts[] = {1, 3, 4, 6, 1023, 1024, 1027, 5003, 0};
  for (const size_t shift : {0, 1}) {
    std::vector<Floats> values;
    std::vector<Placed<float>> parameters, rates;
    std::vector<Placed<__nv_bfloat16>> rounded;
    for (int i = 0; i < 131; ++i) {
      values.push_back(random_floats(random, kCounts[i % std::size(kCounts)], -3, 3));
      parameters.emplace_back(values.back(), shift);
      rates.emplace_back(values.back().size(), 0);
      rounded.emplace_back(values.back().size(), shift);
    }
    std::vector<MirrorTensor> list;
    for (size_t i = 0; i < values.size(); ++i) {
      const bool matrix = i % 2 == 0;
      list.push_back(
          {parameters[i].data(),
           matrix ? static_cast<void*>(rounded[i].data()) : static_cast<void*>(rates[i].data()),
           matrix ? Mirror::kBFloat16 : Mirror::kDecayRates,
           static_cast<int64_t>(values[i].size())});
    }
    ASSERT_EQ(launch_mirrors(list.data(), static_cast<int>(list.size()), nullptr), cudaSuccess);
    for (size_t i = 0; i < values.size(); ++i) {
      for (size_t j = 0; j < values[i].size(); ++j) {
        if (i % 2 == 0) {
          const float wanted = __bfloat162float(__float2bfloat16_rn(values[i][j]));
          ASSERT_EQ(__bfloat162float(rounded[i].data()[j]), wanted) << i << ", " << j;
        } else {
          ASSERT_NEAR(rates[i].data()[j], -std::exp(double{values[i][j]}), 1e-5) << i << ", " << j;
        }
      }
    }
  }
}

}  // namespace
