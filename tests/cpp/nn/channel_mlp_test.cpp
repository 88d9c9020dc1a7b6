// The channel mixer as one function, against torch's own modules.
#include "src/nn/channel_mlp.h"

#include "tests/cpp/nn/test_support.h"

namespace dmamba::nn {
namespace {

using namespace testing;
using torch::Tensor;

/// x, weight1, bias1, weight2, bias2, fp64.
Values make_inputs(int64_t batch, int64_t L, int64_t d_model, int64_t hidden) {
  torch::manual_seed(6);
  const auto normal = [](at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); };
  return {normal({batch, L, d_model}), normal({hidden, d_model}) / 3, normal({hidden}),
          normal({d_model, hidden}) / 3, normal({d_model})};
}

Tensor fused(const Values& v) { return channel_mlp(v[0], v[1], v[2], v[3], v[4]); }

Tensor composed(const Values& v) {
  return torch::linear(torch::gelu(torch::linear(v[0], v[1], v[2])), v[3], v[4]);
}

TEST(ChannelMlp, ValueAndGradientsAreThoseOfTheComposition) {
  for (const auto& [batch, L, d_model, hidden] :
       {std::tuple{2, 40, 9, 37}, {1, 1, 1, 1}, {3, 11, 16, 64}, {1, 129, 4, 70}}) {
    const Values inputs = make_inputs(batch, L, d_model, hidden);
    const Values expected = value_and_gradients(composed, inputs);
    expect_close(value_and_gradients(fused, inputs), expected, 1e-13);
    expect_close(value_and_gradients(fused, to_type(inputs, torch::kFloat)), expected, 1e-5);
  }
}

TEST(ChannelMlp, AutocastWorksInBfloat16OnFloatTensors) {
  const Values inputs = make_inputs(2, 20, 16, 64);
  const Values expected = value_and_gradients(composed, inputs);
  const AutocastGuard guard;
  const Values results = value_and_gradients(fused, to_type(inputs, torch::kFloat));
  EXPECT_EQ(results[0].scalar_type(), torch::kBFloat16);
  for (size_t i = 1; i < results.size(); ++i) EXPECT_EQ(results[i].scalar_type(), torch::kFloat);
  expect_close(results, expected, 4e-2);
}

TEST(ChannelMlp, SecondOrderIsAnError) {
  Values leaves;
  for (const Tensor& t : make_inputs(1, 2, 3, 4)) leaves.push_back(t.requires_grad_());
  const Tensor y = fused(leaves).sum();
  EXPECT_NE(message_of([&] {
              torch::autograd::grad({y}, {leaves[0]}, {}, /*retain_graph=*/true,
                                    /*create_graph=*/true);
            }).find("channel_mlp: derivatives of second order"),
            std::string::npos);
}

}  // namespace
}  // namespace dmamba::nn
