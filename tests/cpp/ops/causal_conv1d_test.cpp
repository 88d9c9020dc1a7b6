// The causal convolution against a scalar fp64 loop over its equation, and its own promises.
#include <torch/torch.h>

#include <cmath>
#include <optional>

#include "tests/cpp/ops/test_support.h"

namespace dmamba::ops::testing {
namespace {

using at::Tensor;

/// The arguments of one call.
struct Conv {
  Tensor x, weight;
  OptionalTensor bias;
  bool silu = true;
  TokenFlags flags;
  OptionalTensor initial_state;

  std::tuple<Tensor, Tensor> run() const {
    return causal_conv1d(x, weight, bias, silu, flags, initial_state);
  }

  Conv slice(int64_t begin, int64_t end, const OptionalTensor& state) const {
    const auto cut = [&](const Tensor& t) { return t.slice(1, begin, end); };
    Conv c = *this;
    c.x = cut(x);
    if (flags.mask) c.flags.mask = cut(*flags.mask);
    if (flags.segment_starts) c.flags.segment_starts = cut(*flags.segment_starts);
    c.initial_state = state;
    return c;
  }
};

Conv make_conv(int64_t batch, int64_t L, int64_t d_inner, int64_t width,
               at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(L * 1000 + d_inner * 10 + width);
  const auto parameter = dtype == at::kDouble ? at::kDouble : at::kFloat;
  Conv c;
  c.x = torch::randn({batch, L, d_inner}).to(dtype);
  c.weight = torch::randn({d_inner, width}).to(parameter);
  c.bias = torch::randn({d_inner}).to(parameter);
  c.flags.mask = torch::rand({batch, L}) > 0.2;
  c.flags.segment_starts = torch::rand({batch, L}) < 0.1;
  c.initial_state = torch::randn({batch, d_inner, width - 1}).to(parameter);
  return c;
}

/// Outputs and the last width - 1 inputs, in fp64.
std::tuple<Tensor, Tensor> reference(const Conv& c) {
  const auto real = [](const Tensor& t) { return t.to(at::kDouble).contiguous(); };
  const Tensor x_ = real(c.x), weight_ = real(c.weight);
  const int64_t batch = x_.size(0), L = x_.size(1), d_inner = x_.size(2), width = weight_.size(1);
  const Tensor bias_ = c.bias ? real(*c.bias) : at::zeros({d_inner}, at::kDouble);
  const Tensor state_ = c.initial_state ? real(*c.initial_state)
                                        : at::zeros({batch, d_inner, width - 1}, at::kDouble);
  Tensor out_ = at::empty_like(x_), last_ = at::empty_like(state_);
  const auto x = x_.accessor<double, 3>(), state = state_.accessor<double, 3>();
  const auto weight = weight_.accessor<double, 2>();
  const auto bias = bias_.accessor<double, 1>();
  auto out = out_.accessor<double, 3>(), last = last_.accessor<double, 3>();
  const auto flag = [](const OptionalTensor& t, int64_t b, int64_t i, bool absent) {
    return t ? t->index({b, i}).item<bool>() : absent;
  };
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<bool> live(L), start(L);
    for (int64_t t = 0; t < L; ++t) {
      live[t] = flag(c.flags.mask, b, t, true);
      start[t] = flag(c.flags.segment_starts, b, t, false);
    }
    // The input at time s, seen by a token of the segment that begins at `begin`.
    const auto input = [&](int64_t s, int64_t begin, int64_t d) {
      if (s < begin) return 0.0;
      if (s < 0) return state[b][d][s + width - 1];
      return live[s] ? x[b][s][d] : 0.0;
    };
    int64_t begin = -width;
    for (int64_t t = 0; t < L; ++t) {
      if (start[t]) begin = t;
      for (int64_t d = 0; d < d_inner; ++d) {
        double y = bias[d];
        for (int64_t k = 0; k < width; ++k) {
          y += weight[d][k] * input(t - (width - 1) + k, begin, d);
        }
        out[b][t][d] = c.silu ? y / (1.0 + std::exp(-y)) : y;
      }
    }
    for (int64_t d = 0; d < d_inner; ++d) {
      for (int64_t k = 0; k + 1 < width; ++k) last[b][d][k] = input(L - (width - 1) + k, begin, d);
    }
  }
  return {out_, last_};
}

TEST(CausalConv1d, MatchesFp64ReferenceAtAllSizes) {
  for (const int64_t L : {1, 2, 31, 60, 129, 1134}) {
    for (const int64_t d_inner : {1, 37, 256}) {
      for (const int64_t width : {1, 4, 3}) {
        const Conv c = make_conv(L > 1000 ? 1 : 2, L, d_inner, width);
        const auto [out, last] = reference(c);
        for_each_capability([&, &out = out, &last = last] {
          SCOPED_TRACE("L " + std::to_string(L) + ", d_inner " + std::to_string(d_inner) +
                       ", width " + std::to_string(width));
          const auto [actual_out, actual_last] = c.run();
          expect_close(actual_out, out, 2e-6, "out");
          EXPECT_EQ(relative_error(actual_last, last), 0.0) << "inputs are copied, not computed";
        });
      }
    }
  }
}

TEST(CausalConv1d, Bf16AndFp64MatchTheReference) {
  const Conv half = make_conv(2, 129, 37, 4, at::kBFloat16);
  const auto half_expected = reference(half);
  for_each_capability([&] {
    const auto [out, last] = half.run();
    EXPECT_EQ(out.scalar_type(), at::kBFloat16);
    EXPECT_EQ(last.scalar_type(), at::kFloat);
    expect_close(out, std::get<0>(half_expected), 1e-2, "out");
    EXPECT_EQ(relative_error(last, std::get<1>(half_expected)), 0.0);
  });
  const Conv exact = make_conv(2, 129, 37, 3, at::kDouble);
  expect_close(std::get<0>(exact.run()), std::get<0>(reference(exact)), 1e-14, "out");
}

TEST(CausalConv1d, EachOptionAloneMatchesTheReference) {
  const Conv all = make_conv(2, 31, 37, 4);
  Conv none = all;
  none.bias = none.initial_state = std::nullopt;
  none.flags = {};
  none.silu = false;
  std::vector<Conv> variants(6, none);
  variants[1].bias = all.bias;
  variants[2].silu = true;
  variants[3].flags.mask = all.flags.mask;
  variants[4].flags.segment_starts = all.flags.segment_starts;
  variants[5].initial_state = all.initial_state;
  for (size_t i = 0; i < variants.size(); ++i) {
    SCOPED_TRACE("variant " + std::to_string(i));
    const auto [out, last] = reference(variants[i]);
    for_each_capability([&, &out = out, &last = last] {
      const auto [actual_out, actual_last] = variants[i].run();
      expect_close(actual_out, out, 2e-6, "out");
      expect_close(actual_last, last, 0.0, "last_state");
    });
  }
}

/// Outputs and all gradients; the loss weighs outputs and last state by fixed numbers.
std::vector<Tensor> outputs_and_gradients(const Conv& conv) {
  Conv c = conv;
  std::vector<Tensor> leaves;
  const auto leaf = [&](const Tensor& t) {
    leaves.push_back(t.detach().clone().requires_grad_());
    return leaves.back();
  };
  c.x = leaf(c.x), c.weight = leaf(c.weight), c.bias = leaf(*c.bias);
  c.initial_state = leaf(*c.initial_state);
  const auto [out, last] = c.run();
  const auto weights = [](const Tensor& t) {
    return at::arange(t.numel(), t.options().dtype(at::kDouble)).mul(0.7).sin().view(t.sizes());
  };
  ((out * weights(out)).sum() + (last * weights(last)).sum()).backward();
  std::vector<Tensor> results{out.detach(), last.detach()};
  for (const Tensor& t : leaves) results.push_back(t.grad());
  return results;
}

TEST(CausalConv1d, GradientsOfEachInstructionSetMatchFp64) {
  for (const int64_t L : {1, 2, 3, 31, 129}) {
    for (const int64_t d_inner : {1, 37}) {
      for (const int64_t width : {1, 2, 4, 7}) {
        const Conv c = make_conv(2, L, d_inner, width);
        Conv exact = c;
        exact.x = c.x.to(at::kDouble), exact.weight = c.weight.to(at::kDouble);
        exact.bias = c.bias->to(at::kDouble);
        exact.initial_state = c.initial_state->to(at::kDouble);
        const auto expected = outputs_and_gradients(exact);
        for_each_capability([&] {
          SCOPED_TRACE("L " + std::to_string(L) + ", d_inner " + std::to_string(d_inner) +
                       ", width " + std::to_string(width));
          const auto actual = outputs_and_gradients(c);
          const char* names[] = {"out", "last", "dx", "dweight", "dbias", "dstate"};
          for (size_t i = 0; i < expected.size(); ++i) {
            // A sum over batch and L that cancels, in one channel, loses a digit.
            expect_close(actual[i], expected[i], 2e-5, names[i]);
          }
        });
      }
    }
  }
}

TEST(CausalConv1d, SameBitsForAnyNumberOfThreads) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const Conv wide = make_conv(1, 129, 2048, 4, dtype), tall = make_conv(50, 60, 40, 3, dtype);
    expect_same_bits_for_any_threads([&] { return outputs_and_gradients(wide); });
    expect_same_bits_for_any_threads([&] { return outputs_and_gradients(tall); });
  }
}

TEST(CausalConv1d, StridedInputsGiveTheSameBits) {
  const Conv c = make_conv(2, 31, 37, 4);
  Conv views = c;
  views.x = strided(c.x), views.weight = strided(c.weight), views.bias = strided(*c.bias);
  views.flags = {strided(*c.flags.mask), strided(*c.flags.segment_starts)};
  views.initial_state = strided(*c.initial_state);
  const auto [out, last] = c.run();
  const auto [view_out, view_last] = views.run();
  EXPECT_TRUE(at::equal(out, view_out));
  EXPECT_TRUE(at::equal(last, view_last));
}

TEST(CausalConv1d, StepByStepEqualsTheWholeSequence) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const int64_t width : {1, 4, 3}) {
      Conv c = make_conv(3, 31, 37, width, dtype);
      c.flags = {};
      for_each_capability([&] {
        const auto [out, last] = c.run();
        for (Tensor state : {c.initial_state->clone(),
                             c.initial_state->transpose(1, 2).contiguous().transpose(1, 2)}) {
          std::vector<Tensor> outs;
          for (int64_t t = 0; t < 31; ++t) {
            outs.push_back(causal_conv1d_update(state, c.x.select(1, t), c.weight, c.bias, c.silu));
          }
          expect_close(at::stack(outs, 1), out, 2e-7, "out");
          expect_close(state, last, 0.0, "state");
        }
      });
    }
  }
}

TEST(CausalConv1d, InitialStateChainsTwoHalvesToTheWhole) {
  const Conv c = make_conv(2, 31, 37, 4);
  const auto [out, last] = c.run();
  for (const int64_t cut : {1, 2, 17, 30}) {
    const auto [first, middle] = c.slice(0, cut, c.initial_state).run();
    const auto [second, end] = c.slice(cut, 31, middle).run();
    expect_close(at::cat({first, second}, 1), out, 2e-7, "out");
    expect_close(end, last, 0.0, "last_state");
  }
}

TEST(CausalConv1d, PackedSegmentsEqualSeparateRuns) {
  Conv c = make_conv(2, 31, 37, 4);
  const std::vector<int64_t> bounds{0, 1, 3, 20, 31};
  c.flags.segment_starts = at::zeros({2, 31}, at::kBool);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    c.flags.segment_starts->select(1, bounds[i]).fill_(true);
  }
  const auto [out, last] = c.run();
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    Conv part = c.slice(bounds[i], bounds[i + 1], std::nullopt);
    part.flags.segment_starts = std::nullopt;
    const auto [part_out, part_last] = part.run();
    expect_close(out.slice(1, bounds[i], bounds[i + 1]), part_out, 2e-7, "out");
    if (bounds[i + 1] == 31) expect_close(last, part_last, 0.0, "last_state");
  }
}

TEST(CausalConv1d, MaskedInputsCountAsZeroWhateverTheyHold) {
  Conv c = make_conv(2, 31, 37, 4);
  c.flags.segment_starts = std::nullopt;
  Conv zeroed = c;
  zeroed.flags = {};
  zeroed.x = c.x * c.flags.mask->unsqueeze(2);
  c.x.masked_fill_(c.flags.mask->logical_not().unsqueeze(2), std::nan(""));
  EXPECT_TRUE(at::equal(std::get<0>(c.run()), std::get<0>(zeroed.run())));
  EXPECT_TRUE(at::equal(std::get<1>(c.run()), std::get<1>(zeroed.run())));
}

TEST(CausalConv1d, ErrorsNameOpArgumentAndShapes) {
  Conv c = make_conv(2, 31, 37, 4);
  c.weight = c.weight.slice(0, 0, 36);
  EXPECT_EQ(message_of([&] { c.run(); }),
            "causal_conv1d: weight must be (d_inner, width) = (37, width), got [36, 4]");
  Tensor state = at::zeros({2, 37, 4});
  EXPECT_EQ(
      message_of([&] { causal_conv1d_update(state, at::zeros({2, 37}), at::zeros({37, 4})); }),
      "causal_conv1d_update: initial_state must be (batch, d_inner, width - 1) = "
      "[2, 37, 3], got [2, 37, 4]");
  Tensor shared = at::zeros({1, 37, 3}).expand({2, 37, 3});
  EXPECT_EQ(
      message_of([&] { causal_conv1d_update(shared, at::zeros({2, 37}), at::zeros({37, 4})); }),
      "causal_conv1d_update: state of [2, 37, 3] is written in place, but its strides "
      "[0, 3, 1] let elements share memory (as expand does); pass state.clone()");
}

}  // namespace
}  // namespace dmamba::ops::testing
