// The choice of the device. "Built with CUDA" and "has a GPU" are two questions: who meets the
// wrong answer has to know which.
#include "dmamba/train/device.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"

namespace dmamba::train {

c10::Device resolve_device(const std::string& choice, const std::string& key) {
  if (choice != "auto" && choice != "cpu" && choice != "cuda") {
    throw ConfigError("key '" + key + "': '" + choice +
                      "' is not allowed; must be one of auto, cpu, cuda");
  }
  if (choice == "cpu") return c10::kCPU;
  const bool built = ops::built_with_cuda();
  // Asked only where it matters: the question starts CUDA's driver.
  if (built && at::hasCUDA()) return c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice();
  if (choice == "auto") return c10::kCPU;
  if (!built) {
    throw ConfigError(key +
                      ": cuda needs CUDA ops, and this dmamba was built without them (dmamba info "
                      "says why); install a CUDA build of torch and of dmamba, or use auto or cpu");
  }
  throw ConfigError(key +
                    ": cuda needs a GPU, and torch finds no usable one; look at nvidia-smi and "
                    "CUDA_VISIBLE_DEVICES, or use auto or cpu");
}

void check_precision(const std::string& precision, c10::Device device) {
  if (precision == "tf32" && !device.is_cuda()) {
    throw ConfigError(
        "training.precision: tf32 is arithmetic of CUDA devices, and this run is on the CPU; use "
        "fp32 or bf16, or training.device=cuda");
  }
}

}  // namespace dmamba::train
