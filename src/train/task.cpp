// What the tasks share.
#include "src/train/task.h"

#include <algorithm>

#include "dmamba/common/error.h"
#include "src/ops/graph.h"
#include "src/train/precision.h"

namespace dmamba::train {

torch::Tensor loss_of(Task& task, torch::Device device, bool bf16) {
  const Autocast autocast(device.type(), bf16);
  return task.loss();
}

std::string describe_segments(const std::string& dataset, int64_t batch,
                              const std::function<data::Segment(int64_t)>& segment) {
  constexpr int64_t kNamed = 4;
  std::string text = std::to_string(batch) + " segments of " + dataset;
  for (int64_t i = 0; i < std::min(batch, kNamed); ++i) {
    const data::Segment s = segment(i);
    text += (i == 0 ? ", from step " : "; from step ") + std::to_string(s.start) + " of episode " +
            std::to_string(s.episode);
  }
  return batch > kNamed ? text + "; ..." : text;
}

void Task::choose_contexts(const std::vector<int64_t>& /*lengths*/) {
  throw ConfigError(store().name() + ": this kind of run has one context length");
}

bool keep_on_device(const config::TrainingConfig& training, const std::string& name, int64_t bytes,
                    torch::Device device) {
  if (!device.is_cuda() || training.data == "host") return false;
  const int64_t free = ops::free_memory(device);
  if (training.data == "device" && bytes > free) {
    throw ConfigError("training.data: device, but " + name + " takes " +
                      std::to_string(bytes >> 20) + " MiB and the device has " +
                      std::to_string(free >> 20) + " MiB left; use auto or host");
  }
  return training.data == "device" || bytes <= free / 4;
}

void check_scale(const config::Config& config) {
  if (config.dataset.rtg_scale > 0) return;
  throw ConfigError("dataset.rtg_scale must be resolved to a positive number before training");
}

}  // namespace dmamba::train
