// Which device a choice stands for, and what is said where there is none.
#include "dmamba/train/device.h"

#include <ATen/Context.h>

#include "dmamba/ops/ops.h"
#include "tests/cpp/train/test_support.h"

namespace dmamba::train {
namespace {

using testing::expect_contains;
using testing::message_of;

TEST(Device, ChoicesThatNeedNoGpu) {
  EXPECT_EQ(resolve_device("cpu", "training.device"), c10::Device(c10::kCPU));
  expect_contains(message_of<ConfigError>([] { resolve_device("gpu", "evaluation.device"); }),
                  {"evaluation.device", "'gpu'", "auto, cpu, cuda"});
}

TEST(Device, CudaIsFoundOrTheMessageSaysWhatIsMissing) {
  const auto message = [] {
    return message_of<ConfigError>([] { resolve_device("cuda", "training.device"); });
  };
  if (!ops::built_with_cuda()) {
    expect_contains(message(), {"training.device: cuda", "built without", "dmamba info", "cpu"});
  } else if (!at::hasCUDA()) {
    expect_contains(message(), {"training.device: cuda", "no usable", "nvidia-smi", "cpu"});
  } else {
    EXPECT_TRUE(resolve_device("cuda", "training.device").is_cuda());
    EXPECT_EQ(resolve_device("auto", "training.device"), resolve_device("cuda", "training.device"));
    return;
  }
  EXPECT_EQ(resolve_device("auto", "training.device"), c10::Device(c10::kCPU));
}

TEST(Device, Tf32IsForGpus) {
  for (const char* precision : {"fp32", "bf16"}) check_precision(precision, c10::kCPU);
  check_precision("tf32", c10::Device(c10::kCUDA, 0));
  expect_contains(message_of<ConfigError>([] { check_precision("tf32", c10::kCPU); }),
                  {"training.precision", "tf32", "CPU", "fp32 or bf16"});
}

}  // namespace
}  // namespace dmamba::train
