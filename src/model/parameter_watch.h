// Whether a model's parameters are still those of which somebody keeps a copy.
#pragma once

#include <torch/nn.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

namespace dmamba::model {

/// Sees parameters that changed in place or got other memory. A change that torch does not count
/// (through `.data` in Python) is not seen.
class ParameterWatch {
 public:
  explicit ParameterWatch(const torch::nn::Module& model) : parameters_(model.parameters()) {}

  /// Since copied(), and at first.
  bool changed() const { return !std::ranges::equal(parameters_, copied_, {}, source); }

  void copied() {
    copied_.clear();
    std::ranges::transform(parameters_, std::back_inserter(copied_), source);
  }

 private:
  using Source = std::pair<const void*, int64_t>;  // a parameter's memory and version

  static Source source(const torch::Tensor& t) {
    return {t.unsafeGetTensorImpl()->data(), t.is_inference() ? 0 : t._version()};
  }

  std::vector<torch::Tensor> parameters_;
  std::vector<Source> copied_;
};

}  // namespace dmamba::model
