// A model whose arithmetic is somebody else's code, such as a torch.nn.Module in Python.
#pragma once

#include <torch/nn.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/config/config.h"
#include "dmamba/ops/ops.h"

namespace dmamba::model {

/// A parameter, or a module of this library's with all that is in it, where the external model has
/// it: exactly one of the two is given.
struct ExternalPart {
  std::string name;  ///< with dots, such as layers.0.weight
  torch::Tensor parameter;
  std::shared_ptr<torch::nn::Module> module;
};

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// What is known of an external model. The functions may be called from any thread, one at a time.
struct ExternalOptions {
  std::string name;  ///< of its class, for messages and checkpoints
  int64_t state_dim = 0;
  int64_t act_dim = 0;
  config::ModelConfig config;  ///< of which context_length, max_timestep and padding count here
  std::vector<ExternalPart> parts;      ///< in the model's own order
  std::vector<std::string> embeddings;  ///< parameters that `decay: matrices` leaves alone
  /// Arguments and result as DMambaImpl::forward's. Inputs may be kept or changed.
  std::function<torch::Tensor(const torch::Tensor& states, const torch::Tensor& actions,
                              const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                              const torch::Tensor& mask)>
      forward;
  std::function<NamedTensors()> buffers;  ///< those that belong into a checkpoint, as they are now
  std::function<bool()> is_training;
  std::function<void(bool)> set_training;
};

/// Has the external model's parameters for its own, the same tensors under the same names, so that
/// whoever trains, saves or moves this one does so to that one.
class ExternalModelImpl : public torch::nn::Module {
 public:
  /// Throws ConfigError for a model without parameters, or a name that this library has a meaning
  /// for ("sets.").
  explicit ExternalModelImpl(ExternalOptions options);

  torch::Tensor forward(const torch::Tensor& states, const torch::Tensor& actions,
                        const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                        const ops::OptionalTensor& mask = {});

  /// The training loss, as DMambaImpl::loss.
  torch::Tensor loss(const torch::Tensor& states, const torch::Tensor& actions,
                     const torch::Tensor& returns_to_go, const torch::Tensor& timesteps,
                     const torch::Tensor& mask);

  /// The external model's mode is the only one.
  void train(bool on = true) override { options_.set_training(on); }
  bool is_training() const noexcept override { return options_.is_training(); }

  NamedTensors current_buffers() const { return options_.buffers(); }

  const std::string& class_name() const { return options_.name; }
  int64_t state_dim() const { return options_.state_dim; }
  int64_t act_dim() const { return options_.act_dim; }
  /// Where the parameters are.
  torch::Device device() const { return first_.device(); }
  const config::ModelConfig& config() const { return options_.config; }
  const std::vector<std::string>& embeddings() const { return options_.embeddings; }

 private:
  ExternalOptions options_;
  torch::Tensor first_;  // parameter
};
TORCH_MODULE(ExternalModel);

}  // namespace dmamba::model
