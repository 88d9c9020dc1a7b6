// What the tests of the fused functions share.
#pragma once

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

namespace dmamba::nn::testing {

using Values = std::vector<torch::Tensor>;
using Function = std::function<torch::Tensor(const Values&)>;

/// max |actual - expected| / max |expected|, in fp64.
inline double relative_error(const torch::Tensor& actual, const torch::Tensor& expected) {
  EXPECT_EQ(actual.sizes(), expected.sizes());
  const auto a = actual.detach().to(torch::kDouble), e = expected.detach().to(torch::kDouble);
  return ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).item<double>();
}

/// The value and the gradients of all inputs, for a fixed random gradient of the value.
inline Values value_and_gradients(const Function& function, const Values& inputs) {
  Values leaves;
  for (const auto& t : inputs) leaves.push_back(t.detach().clone().requires_grad_());
  torch::Tensor value = function(leaves);
  torch::manual_seed(17);
  const auto weights = torch::randn(value.sizes(), torch::kDouble).to(value.scalar_type());
  Values results = torch::autograd::grad({value}, leaves, {weights});
  results.insert(results.begin(), value);
  return results;
}

/// Negated, so that NaN fails.
inline void expect_close(const Values& actual, const Values& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = relative_error(actual[i], expected[i]);
    EXPECT_TRUE(error <= tolerance) << "result " << i << ": " << error << " > " << tolerance;
  }
}

inline Values to_type(const Values& values, torch::ScalarType type) {
  Values converted;
  for (const auto& t : values) converted.push_back(t.to(type));
  return converted;
}

/// Turns autocast to bfloat16 on for the CPU.
class AutocastGuard {
 public:
  AutocastGuard() {
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  ~AutocastGuard() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
  }
};

inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no c10::Error";
}

}  // namespace dmamba::nn::testing
