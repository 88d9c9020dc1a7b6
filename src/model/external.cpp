// The parameters' names as a tree of modules; the loss.
#include "dmamba/model/external.h"

#include <sstream>

#include "dmamba/common/error.h"
#include "src/nn/action_loss.h"

namespace dmamba::model {
namespace {

using torch::Tensor;
using ModulePtr = std::shared_ptr<torch::nn::Module>;

/// The words between the dots.
std::vector<std::string> words_of(const std::string& name) {
  std::vector<std::string> words;
  std::istringstream text(name);
  for (std::string word; std::getline(text, word, '.');) words.push_back(word);
  return words;
}

/// The child of that name, made where there is none.
torch::nn::Module& child_of(torch::nn::Module& parent, const std::string& name) {
  const auto children = parent.named_children();
  if (children.contains(name)) return *children[name];
  return *parent.register_module(name, std::make_shared<torch::nn::Module>("Part"));
}

void add(torch::nn::Module& root, const ExternalPart& part) {
  const std::vector<std::string> words = words_of(part.name);
  torch::nn::Module* parent = &root;
  for (size_t i = 0; i + 1 < words.size(); ++i) parent = &child_of(*parent, words[i]);
  if (part.module) {
    parent->register_module(words.back(), part.module);
  } else {
    // It also sets whether the tensor requires a gradient.
    parent->register_parameter(words.back(), part.parameter, part.parameter.requires_grad());
  }
}

}  // namespace

ExternalModelImpl::ExternalModelImpl(ExternalOptions options) : options_(std::move(options)) {
  for (const ExternalPart& part : options_.parts) {
    if (part.name.starts_with("sets.")) {
      throw ConfigError(options_.name + ": parameter '" + part.name +
                        "': names that begin with sets. belong to models of several sets; call "
                        "the attribute otherwise");
    }
    add(*this, part);
  }
  const std::vector<Tensor> all = parameters();
  if (all.empty()) throw ConfigError(options_.name + ": has no parameters; nothing to train");
  first_ = all.front();
}

Tensor ExternalModelImpl::forward(const Tensor& states, const Tensor& actions,
                                  const Tensor& returns_to_go, const Tensor& timesteps,
                                  const ops::OptionalTensor& mask) {
  // Whose memory is somebody's batch or window; what is predicted is compared with it.
  return options_.forward(states.clone(), actions.clone(), returns_to_go.clone(), timesteps.clone(),
                          mask.has_value() ? mask->clone() : Tensor());
}

Tensor ExternalModelImpl::loss(const Tensor& states, const Tensor& actions,
                               const Tensor& returns_to_go, const Tensor& timesteps,
                               const Tensor& mask) {
  return nn::action_error(forward(states, actions, returns_to_go, timesteps, mask), actions, mask);
}

}  // namespace dmamba::model
