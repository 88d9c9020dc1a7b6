// The inside of a Mamba block as one function, against the same composed of single ops.
#include "src/nn/mamba_inner.h"

#include "tests/cpp/nn/test_support.h"

namespace dmamba::nn {
namespace {

using namespace testing;
using torch::Tensor;

struct Sizes {
  int64_t batch, L, d_inner, d_conv, dt_rank, d_state;
};

/// xz and the parameters in the order of MambaInnerParameters, fp64.
Values make_inputs(const Sizes& s) {
  torch::manual_seed(5);
  const auto normal = [](at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); };
  return {normal({s.batch, s.L, 2 * s.d_inner}),
          normal({s.d_inner, s.d_conv}),
          normal({s.d_inner}),
          normal({s.dt_rank + 2 * s.d_state, s.d_inner}) / 8,
          normal({s.d_inner, s.dt_rank}),
          normal({s.d_inner}),
          normal({s.d_inner, s.d_state}),
          normal({s.d_inner})};
}

MambaInnerParameters parameters(const Values& v) {
  return {v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
}

ops::TokenFlags random_flags(const Sizes& s) {
  return {torch::rand({s.batch, s.L}) > 0.2, torch::rand({s.batch, s.L}) < 0.1};
}

/// The same equations over single differentiable ops.
Tensor composed(const Values& v, const ops::TokenFlags& flags) {
  const int64_t dt_rank = v[4].size(1), d_state = v[6].size(1);
  const auto halves = v[0].chunk(2, -1);
  const Tensor u = std::get<0>(ops::causal_conv1d(halves[0], v[1], v[2], true, flags));
  const auto parts = torch::matmul(u, v[3].t()).split_with_sizes({dt_rank, d_state, d_state}, -1);
  const Tensor delta = torch::matmul(parts[0], v[4].t());
  return std::get<0>(ops::selective_scan(u, delta, -torch::exp(v[6]), parts[1], parts[2], v[7],
                                         halves[1], v[5], true, flags));
}

Function fused(const ops::TokenFlags& flags) {
  return [flags](const Values& v) { return mamba_inner(v[0], parameters(v), flags); };
}

TEST(MambaInner, ValueAndGradientsAreThoseOfTheComposition) {
  for (const Sizes& s : {Sizes{3, 9, 37, 4, 3, 16}, Sizes{1, 1, 1, 1, 1, 1},
                         Sizes{2, 2, 20, 3, 2, 5}, Sizes{2, 70, 33, 4, 8, 16}}) {
    const Values inputs = make_inputs(s);
    for (const ops::TokenFlags& flags : {ops::TokenFlags{}, random_flags(s)}) {
      const Values expected =
          value_and_gradients([&](const Values& v) { return composed(v, flags); }, inputs);
      expect_close(value_and_gradients(fused(flags), inputs), expected, 1e-12);
      expect_close(value_and_gradients(fused(flags), to_type(inputs, torch::kFloat)), expected,
                   2e-5);
    }
  }
}

TEST(MambaInner, AutocastGivesBfloat16ActivationsAndFloatParameterGradients) {
  const Sizes s{2, 12, 48, 4, 3, 16};
  const Values inputs = make_inputs(s);
  const Values expected =
      value_and_gradients([](const Values& v) { return composed(v, {}); }, inputs);
  Values mixed = to_type(inputs, torch::kFloat);
  mixed[0] = mixed[0].to(torch::kBFloat16);
  const AutocastGuard guard;
  const Values results = value_and_gradients(fused({}), mixed);
  EXPECT_EQ(results[0].scalar_type(), torch::kBFloat16);
  EXPECT_EQ(results[1].scalar_type(), torch::kBFloat16);
  for (size_t i = 2; i < results.size(); ++i) EXPECT_EQ(results[i].scalar_type(), torch::kFloat);
  expect_close(results, expected, 4e-2);
}

TEST(MambaInner, WithoutGradientsTheValueHasTheSameBits) {
  const Sizes s{2, 9, 37, 4, 3, 16};
  const Values inputs = to_type(make_inputs(s), torch::kFloat);
  const ops::TokenFlags flags = random_flags(s);
  const Tensor with = value_and_gradients(fused(flags), inputs)[0];
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(fused(flags)(inputs), with));
}

TEST(MambaInner, StepsMoveTheStatesOn) {
  const Sizes s{2, 10, 20, 3, 2, 5};
  const Values inputs = make_inputs(s);
  Tensor conv = torch::zeros({2, 20, 2}, torch::kDouble);
  Tensor ssm = torch::zeros({2, 20, 5}, torch::kDouble);
  Values pieces;
  for (const auto& [start, n] : {std::pair{0, 3}, {3, 1}, {4, 6}}) {
    pieces.push_back(
        mamba_inner_step(inputs[0].narrow(1, start, n), parameters(inputs), {}, conv, ssm));
  }
  EXPECT_LE(relative_error(torch::cat(pieces, 1), composed(inputs, {})), 1e-13);
}

TEST(MambaInner, EmptyBatchGivesEmptyValuesAndZeroGradients) {
  const Values results = value_and_gradients(fused({}), make_inputs({0, 3, 4, 2, 1, 2}));
  EXPECT_EQ(results[0].sizes(), at::IntArrayRef({0, 3, 4}));
  EXPECT_EQ(results[1].sizes(), at::IntArrayRef({0, 3, 8}));
  for (size_t i = 2; i < results.size(); ++i) EXPECT_EQ(results[i].abs().sum().item<double>(), 0);
}

TEST(MambaInner, SecondOrderIsAnError) {
  const Sizes s{1, 3, 4, 2, 1, 2};
  Values leaves;
  for (const Tensor& t : make_inputs(s)) leaves.push_back(t.requires_grad_());
  const Tensor y = fused({})(leaves).sum();
  EXPECT_NE(message_of([&] {
              torch::autograd::grad({y}, {leaves[0]}, {}, /*retain_graph=*/true,
                                    /*create_graph=*/true);
            }).find("mamba_inner: derivatives of second order"),
            std::string::npos);
}

}  // namespace
}  // namespace dmamba::nn
