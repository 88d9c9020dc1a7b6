// Torch's default generators while a step draws from them.
#pragma once

#include <ATen/Context.h>

#include <mutex>
#include <vector>

namespace dmamba::train {

/// The default generators that code on the device may draw from: its own, and the CPU's.
inline std::vector<at::Generator> default_generators(at::Device device) {
  at::Context& context = at::globalContext();
  std::vector<at::Generator> generators{context.defaultGenerator(at::kCPU)};
  if (!device.is_cpu()) generators.push_back(context.defaultGenerator(device));
  return generators;
}

/// Has them draw what follows from the seed, as torch.manual_seed does.
inline void seed_generators(at::Device device, uint64_t seed) {
  for (at::Generator& generator : default_generators(device)) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  }
}

/// When the scope ends they are as they were.
class KeptGenerators {
 public:
  explicit KeptGenerators(at::Device device) : generators_(default_generators(device)) {
    for (at::Generator& generator : generators_) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      states_.push_back(generator.get_state());
    }
  }
  ~KeptGenerators() {
    for (size_t i = 0; i < generators_.size(); ++i) {
      const std::lock_guard<std::mutex> lock(generators_[i].mutex());
      generators_[i].set_state(states_[i]);
    }
  }
  KeptGenerators(const KeptGenerators&) = delete;
  KeptGenerators& operator=(const KeptGenerators&) = delete;

 private:
  std::vector<at::Generator> generators_;
  std::vector<at::Tensor> states_;
};

}  // namespace dmamba::train
