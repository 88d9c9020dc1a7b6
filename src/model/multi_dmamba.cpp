// One tree of modules for models that share most of theirs.
#include "dmamba/model/multi_dmamba.h"

#include <set>

#include "dmamba/common/error.h"

namespace dmamba::model {
namespace {

using torch::nn::Module;

void check_names(const std::vector<DMamba>& models, const std::vector<std::string>& names) {
  if (models.empty() || models.size() != names.size()) {
    throw ConfigError("MultiDMamba: needs a name for each model, got " +
                      std::to_string(models.size()) + " models and " +
                      std::to_string(names.size()) + " names");
  }
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (name.empty() || name.find('.') != std::string::npos) {
      throw ConfigError("MultiDMamba: '" + name + "' is no name of a set: not empty, no dots");
    }
    if (!seen.insert(name).second) {
      throw ConfigError("MultiDMamba: there are two sets '" + name + "'");
    }
  }
}

}  // namespace

MultiDMambaImpl::MultiDMambaImpl(const std::vector<DMamba>& models, std::vector<std::string> names)
    : models_(models), names_(std::move(names)) {
  check_names(models_, names_);
  const auto trunk = models_[0]->named_children();
  for (const auto& child : trunk) {
    if (!DMambaImpl::follows_from_data(child.key())) register_module(child.key(), child.value());
  }
  const auto sets = register_module("sets", std::make_shared<Module>("Sets"));
  for (size_t i = 0; i < models_.size(); ++i) {
    const auto own = sets->register_module(names_[i], std::make_shared<Module>("Set"));
    for (const auto& child : models_[i]->named_children()) {
      if (DMambaImpl::follows_from_data(child.key())) {
        own->register_module(child.key(), child.value());
      } else if (child.value() != trunk[child.key()]) {
        throw ConfigError("MultiDMamba: the model of '" + names_[i] +
                          "' has a trunk of its own; make it over that of '" + names_[0] + "'");
      }
    }
  }
}

void MultiDMambaImpl::train(bool on) {
  Module::train(on);
  for (auto& model : models_) model->train(on);
}

}  // namespace dmamba::model
