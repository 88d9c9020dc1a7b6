// GELU against erf, and what dropout promises of its mask.
#include <torch/torch.h>

#include <cmath>

#include "tests/cpp/ops/test_support.h"

namespace dmamba::ops::testing {
namespace {

using at::Tensor;

/// 0, 1, a vector and a bit, more than a unit of 4096.
constexpr int64_t kSizes[] = {0, 1, 15, 65, 4096, 10001};

TEST(Gelu, ValueAndDerivativeMatchErf) {
  for (const int64_t size : kSizes) {
    const Tensor exact = torch::linspace(-9, 9, size, at::kDouble);
    const Tensor phi = 0.5 * (1 + at::erf(exact / std::sqrt(2.0)));
    const Tensor slope = phi + exact * at::exp(-0.5 * exact * exact) / std::sqrt(2 * M_PI);
    for_each_capability([&] {
      Tensor x = exact.to(at::kFloat).requires_grad_();
      const Tensor y = ops::gelu(x);
      y.sum().backward();
      if (size == 0) return;
      // Absolute: in the far tail the derivative is a difference of what both sides lose.
      EXPECT_LE((y.detach() - exact * phi).abs().max().item<double>(), 1e-6);
      EXPECT_LE((x.grad() - slope).abs().max().item<double>(), 5e-7);
    });
  }
}

TEST(Gelu, KeepsItsTails) {
  const float inf = INFINITY;
  for_each_capability([&] {
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
      const Tensor x = torch::tensor({inf, 0.0f, 1e30f, -1e30f, -inf}).to(dtype).requires_grad_();
      const Tensor y = ops::gelu(x);
      EXPECT_TRUE(at::equal(y, torch::tensor({inf, 0.0f, 1e30f, 0.0f, 0.0f}).to(dtype))) << y;
      y.sum().backward();
      const Tensor slope = torch::tensor({1.0f, 0.5f, 1.0f, 0.0f, 0.0f}).to(dtype);
      EXPECT_LE((x.grad() - slope).abs().max().item<double>(), 1e-6) << x.grad();
      const Tensor nan = torch::tensor({NAN}).to(dtype).requires_grad_();
      const Tensor of_nan = ops::gelu(nan);
      of_nan.sum().backward();
      EXPECT_TRUE(of_nan.isnan().item<bool>() && nan.grad().isnan().item<bool>());
    }
  });
}

TEST(Dropout, MaskIsThatOfItsKeyOnEveryInstructionSetAndType) {
  const SettingsGuard guard;
  for (const int64_t size : kSizes) {
    set_cpu_capability("portable");
    const Tensor expected = ops::dropout(at::ones({size}), 0.3, -17);
    for_each_capability([&] {
      EXPECT_TRUE(at::equal(ops::dropout(at::ones({size}), 0.3, -17), expected));
      for (const auto dtype : {at::kDouble, at::kBFloat16}) {
        EXPECT_TRUE(at::equal(ops::dropout(at::ones({size}, dtype), 0.3, -17) != 0, expected != 0));
      }
    });
    expect_same_bits_for_any_threads(
        [&] { return std::vector<Tensor>{ops::dropout(at::ones({size}), 0.3, -17)}; });
  }
}

TEST(Dropout, DropsItsShareScalesTheRestAndKnowsItsKeys) {
  const int64_t n = 200000;
  for (const double p : {0.1, 0.5, 0.9}) {
    const Tensor y = ops::dropout(at::ones({n}), p, 5);
    const double kept = (y != 0).sum().item<double>() / static_cast<double>(n);
    EXPECT_NEAR(kept, 1 - p, 4 * std::sqrt(p * (1 - p) / static_cast<double>(n)));
    EXPECT_FLOAT_EQ(y.max().item<float>(), static_cast<float>(1 / (1 - p)));
    EXPECT_FALSE(at::equal(y, ops::dropout(at::ones({n}), p, 6)));
  }
  EXPECT_TRUE(at::equal(ops::dropout(at::ones({n}), 0.0, 5), at::ones({n})));
}

TEST(Dropout, GradientPassesWhereTheValueDid) {
  Tensor x = torch::randn({3, 777}).requires_grad_();
  const Tensor y = ops::dropout(x, 0.4, 99);
  y.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), ops::dropout(at::ones({3, 777}), 0.4, 99)));
}

TEST(Elementwise, StridedInputsGiveTheSameBits) {
  const Tensor x = torch::randn({9, 37});
  EXPECT_TRUE(at::equal(ops::gelu(strided(x)), ops::gelu(x)));
  EXPECT_TRUE(at::equal(ops::dropout(strided(x), 0.3, 3), ops::dropout(x, 0.3, 3)));
}

TEST(Elementwise, ErrorsNameOpAndValue) {
  EXPECT_EQ(message_of([] { ops::dropout(at::ones({2}), 1.0, 0); }),
            "dropout: p must be in [0, 1), got 1");
  EXPECT_EQ(message_of([] { ops::gelu(at::ones({2}, at::kInt)); }),
            "gelu: x must be float32, bfloat16 or float64, got Int");
}

}  // namespace
}  // namespace dmamba::ops::testing
