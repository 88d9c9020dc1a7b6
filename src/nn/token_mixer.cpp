// The table of token mixers.
#include "dmamba/nn/token_mixer.h"

#include "dmamba/common/error.h"
#include "dmamba/nn/mamba.h"
#include "src/nn/attention.h"
#include "src/nn/convolution.h"
#include "src/nn/s4d.h"

namespace dmamba::nn {
namespace {

using Factory = std::shared_ptr<TokenMixer> (*)(const config::ModelConfig&);

std::shared_ptr<TokenMixer> make_mamba(const config::ModelConfig& c) {
  return std::make_shared<MambaImpl>(
      MambaOptions{c.d_model, c.d_state, c.d_conv, c.expand, c.dt_rank});
}

template <class Mixer>
std::shared_ptr<TokenMixer> make(const config::ModelConfig& c) {
  return std::make_shared<Mixer>(c);
}

struct Row {
  const char* name;
  Factory make;
};

constexpr Row kMixers[] = {
    {"mamba", make_mamba},
    {"attention", make<AttentionImpl>},
    {"convolution", make<ConvolutionImpl>},
    {"s4d", make<S4dImpl>},
};

}  // namespace

std::vector<std::string> token_mixer_names() {
  std::vector<std::string> names;
  for (const Row& row : kMixers) names.emplace_back(row.name);
  return names;
}

std::shared_ptr<TokenMixer> make_token_mixer(const std::string& name,
                                             const config::ModelConfig& config) {
  std::string known;
  for (const Row& row : kMixers) {
    if (name == row.name) return row.make(config);
    known += std::string(known.empty() ? "" : ", ") + row.name;
  }
  throw ConfigError("model.token_mixer: '" + name + "' is unknown; choose one of " + known);
}

}  // namespace dmamba::nn
