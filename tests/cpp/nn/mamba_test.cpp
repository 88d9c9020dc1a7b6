// The Mamba block: steps against the whole sequence, initial values, names, errors.
#include "dmamba/nn/mamba.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "dmamba/common/error.h"

namespace dmamba::nn {
namespace {

using torch::Tensor;

Mamba make_mamba(MambaOptions options = {.d_model = 24, .d_state = 5, .d_conv = 3, .expand = 3}) {
  torch::manual_seed(3);
  return Mamba(options);
}

double largest(const Tensor& t) { return t.abs().max().item<double>(); }

TEST(Mamba, StepsInAnyPiecesEqualTheWhole) {
  Mamba mamba = make_mamba();
  const Tensor x = torch::randn({2, 12, 24});
  torch::NoGradGuard no_grad;
  const Tensor whole = mamba->forward(x, {});
  for (const std::vector<int64_t>& pieces :
       {std::vector<int64_t>(12, 1), {3, 3, 3, 3}, {1, 11}, {12}, {5, 2, 4, 1}}) {
    const auto state = mamba->initial_state(2);
    std::vector<Tensor> outs;
    int64_t t = 0;
    for (const int64_t n : pieces) {
      outs.push_back(mamba->step(x.narrow(1, t, n), {}, *state));
      t += n;
    }
    EXPECT_LE(largest(torch::cat(outs, 1) - whole), 1e-6) << pieces.size() << " pieces";
  }
}

TEST(Mamba, LaterTokensDoNotReachEarlierOnes) {
  Mamba mamba = make_mamba();
  Tensor x = torch::randn({1, 10, 24});
  const Tensor before = mamba->forward(x, {});
  x.select(1, 6).add_(1.0);
  const Tensor after = mamba->forward(x, {});
  EXPECT_TRUE(torch::equal(before.slice(1, 0, 6), after.slice(1, 0, 6)));
  EXPECT_FALSE(torch::allclose(before.slice(1, 6), after.slice(1, 6)));
}

TEST(Mamba, MaskedTokenLeavesTheSsmStateAndAStartBeginsAnew) {
  Mamba mamba = make_mamba();
  torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({1, 4, 24});
  const auto state = mamba->initial_state(1);
  mamba->step(x.narrow(1, 0, 3), {}, *state);
  auto& held = dynamic_cast<MambaState&>(*state);
  const Tensor before = held.ssm.clone();
  EXPECT_GT(largest(before), 0.0);
  mamba->step(x.narrow(1, 3, 1), {torch::zeros({1, 1}, torch::kBool), {}}, *state);
  EXPECT_TRUE(torch::equal(held.ssm, before));
  // A padded start of a segment leaves nothing of what was before.
  const ops::TokenFlags begin{torch::zeros({1, 1}, torch::kBool),
                              torch::ones({1, 1}, torch::kBool)};
  mamba->step(x.narrow(1, 3, 1), begin, *state);
  EXPECT_EQ(largest(held.ssm), 0.0);
  EXPECT_EQ(largest(held.conv), 0.0);
}

TEST(Mamba, StateIsNotTiedToTheParameters) {
  Mamba mamba = make_mamba();
  const auto state = mamba->initial_state(2);
  const auto& held = dynamic_cast<const MambaState&>(*state);
  EXPECT_EQ(held.conv.sizes(), at::IntArrayRef({2, 72, 2}));
  EXPECT_EQ(held.ssm.sizes(), at::IntArrayRef({2, 72, 5}));
  EXPECT_FALSE(held.conv.requires_grad());
  const Tensor out = mamba->step(torch::randn({2, 1, 24}), {}, *state);
  EXPECT_FALSE(out.requires_grad());
  mamba->to(torch::kDouble);
  const auto wide = mamba->initial_state(1);
  EXPECT_EQ(dynamic_cast<const MambaState&>(*wide).ssm.scalar_type(), torch::kDouble);
}

TEST(Mamba, InitialValuesAreThoseOfMambaSsm) {
  Mamba mamba = make_mamba({.d_model = 200, .d_state = 7});
  EXPECT_EQ(mamba->options().dt_rank, 13);  // ceil(200 / 16)
  const Tensor dt = torch::nn::functional::softplus(mamba->dt_proj->bias.detach());
  EXPECT_GE(dt.min().item<double>(), 0.001 * (1 - 1e-4));
  EXPECT_LE(dt.max().item<double>(), 0.1 * (1 + 1e-4));
  // Log-uniform: the median of 400 draws lies near the geometric mean, 0.01.
  EXPECT_NEAR(std::log10(dt.median().item<double>()), -2.0, 0.2);
  const double bound = 1 / std::sqrt(13.0);
  EXPECT_LE(largest(mamba->dt_proj->weight), bound);
  EXPECT_GT(largest(mamba->dt_proj->weight), 0.95 * bound);
  const Tensor A = torch::exp(mamba->A_log.detach());
  EXPECT_LE(largest(A - torch::arange(1, 8, torch::kFloat).expand({400, 7})), 1e-5);
  EXPECT_TRUE(torch::equal(mamba->D.detach(), torch::ones({400})));
}

TEST(Mamba, ParametersAreNamedAsInMambaSsm) {
  Mamba mamba = make_mamba();
  const std::vector<std::pair<std::string, std::vector<int64_t>>> expected{
      {"A_log", {72, 5}},
      {"D", {72}},
      {"in_proj.weight", {144, 24}},
      {"conv1d.weight", {72, 1, 3}},
      {"conv1d.bias", {72}},
      {"x_proj.weight", {12, 72}},
      {"dt_proj.weight", {72, 2}},
      {"dt_proj.bias", {72}},
      {"out_proj.weight", {24, 72}}};
  const auto parameters = mamba->named_parameters();
  EXPECT_EQ(parameters.size(), expected.size());
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(parameters.contains(name)) << name;
    EXPECT_EQ(parameters[name].sizes(), at::IntArrayRef(shape)) << name;
  }
}

TEST(Mamba, EveryParameterReceivesAGradient) {
  Mamba mamba = make_mamba();
  mamba->forward(torch::randn({2, 5, 24}), {}).square().sum().backward();
  for (const auto& item : mamba->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(largest(item.value().grad()), 0.0) << item.key();
  }
}

TEST(Mamba, SizesBelowOneAreErrorsThatNameThem) {
  const auto message = [](MambaOptions options) -> std::string {
    try {
      Mamba mamba(options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message({.d_model = 0}), "Mamba: d_model must be at least 1, got 0");
  EXPECT_EQ(message({.d_state = 0}), "Mamba: d_state must be at least 1, got 0");
  EXPECT_EQ(message({.d_conv = -1}), "Mamba: d_conv must be at least 1, got -1");
  EXPECT_EQ(message({.expand = 0}), "Mamba: expand must be at least 1, got 0");
  EXPECT_EQ(message({.dt_rank = -2}), "Mamba: dt_rank must be at least 1, got -2");
}

}  // namespace
}  // namespace dmamba::nn
