// The arithmetic of a scope: it holds inside, and the caller's comes back.
#include "src/train/precision.h"

#include <gtest/gtest.h>

#include <string>

namespace dmamba::train {
namespace {

constexpr auto kBackend = at::Float32Backend::CUDA;
constexpr auto kOp = at::Float32Op::MATMUL;

/// Puts torch's settings back as they are in a new process.
class Precision : public ::testing::Test {
 protected:
  void TearDown() override {
    at::globalContext().setFloat32MatmulPrecision("highest");
    at::globalContext().setFloat32Precision(at::Float32Backend::MKLDNN, kOp,
                                            at::Float32Precision::NONE);
    at::globalContext().setFloat32Precision(kBackend, kOp, at::Float32Precision::NONE);
  }
};

TEST_F(Precision, Tf32HoldsInTheScopeAndTheSettingComesBack) {
  at::Context& context = at::globalContext();
  for (const std::string setting : {"highest", "high", "medium"}) {
    for (const bool allowed : {false, true}) {
      context.setFloat32MatmulPrecision(setting);
      const auto older = context.float32MatmulPrecision();
      const auto newer = context.float32Precision(kBackend, kOp);
      {
        const Tf32Products products(allowed);
        EXPECT_EQ(context.allowTF32CuBLAS(), allowed) << setting;
        EXPECT_EQ(context.float32Precision(kBackend, kOp) == at::Float32Precision::TF32, allowed);
      }
      EXPECT_EQ(context.float32MatmulPrecision(), older) << setting << " " << allowed;
      EXPECT_EQ(context.float32Precision(kBackend, kOp), newer) << setting << " " << allowed;
    }
  }
}

TEST_F(Precision, SettingOfTheNewerInterfaceAloneComesBack) {
  at::Context& context = at::globalContext();
  context.setFloat32MatmulPrecision("highest");
  context.setFloat32Precision(kBackend, kOp, at::Float32Precision::TF32);
  {
    const Tf32Products products(false);
    EXPECT_FALSE(context.allowTF32CuBLAS());
  }
  EXPECT_EQ(context.float32Precision(kBackend, kOp), at::Float32Precision::TF32);
}

TEST_F(Precision, AutocastComesBack) {
  const auto type = at::autocast::get_autocast_dtype(at::kCPU);
  {
    const Autocast outer(at::kCPU, false);
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    {
      const Autocast inner(at::kCPU, true);
      EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
      EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kBFloat16);
    }
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  }
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), type);
}

}  // namespace
}  // namespace dmamba::train
