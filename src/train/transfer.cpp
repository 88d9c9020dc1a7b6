// Which parameters of a file fit, which begin anew, and which are an error.
#include "dmamba/train/transfer.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "dmamba/common/error.h"
#include "dmamba/config/yaml.h"
#include "dmamba/train/checkpoint.h"
#include "dmamba/train/safetensors.h"
#include "src/train/dtypes.h"
#include "src/train/patterns.h"

namespace dmamba::train {
namespace {

namespace fs = std::filesystem;
using torch::Tensor;
using Shape = std::vector<int64_t>;

const std::string kSets = "sets.";  // what parameters of one of several sets begin with
const std::string kAuto = "auto";

/// A module whose size follows from the data: which dimension of its weight does.
struct DataModule {
  const char* name;
  size_t dimension;
};
constexpr DataModule kDataModules[] = {{"embed_state", 1},
                                       {"embed_action", 1},
                                       {"predict_action", 0},
                                       {"action_embeddings", 0},
                                       {"head", 0}};

/// The name without "sets.SET.".
std::string own_name(const std::string& name) {
  if (!name.starts_with(kSets)) return name;
  return name.substr(name.find('.', kSets.size()) + 1);
}

/// "embed_state" of "sets.hopper.embed_state.weight"; null for a parameter of the trunk.
const DataModule* data_module_of(const std::string& name) {
  const std::string own = own_name(name);
  for (const DataModule& module : kDataModules) {
    if (own.starts_with(std::string(module.name) + ".")) return &module;
  }
  return nullptr;
}

/// "sets.hopper.embed_state" of "sets.hopper.embed_state.weight".
std::string module_name(const std::string& name, const DataModule& module) {
  return name.substr(0, name.size() - own_name(name).size()) + module.name;
}

/// Whether shapes differ in nothing but the dimension that follows from the data.
bool differs_by_data(const DataModule& module, const Shape& theirs, const Shape& ours) {
  if (theirs.size() != ours.size()) return false;
  for (size_t d = 0; d < ours.size(); ++d) {
    if (d != module.dimension && theirs[d] != ours[d]) return false;
  }
  return true;
}

/// "Hopper" of "Hopper-v4": versions of an environment have the same states and actions.
std::string without_version(const std::string& environment) {
  return environment.substr(0, environment.rfind("-v"));
}

std::string text_of(const Shape& shape) { return c10::str(at::IntArrayRef(shape)); }

at::ScalarType type_of(const TensorBlob& blob, const std::string& where) {
  const std::optional<at::ScalarType> type = dtype_of(blob.dtype);
  if (type) return *type;
  throw CheckpointError(where + ": tensor '" + blob.name + "' is " + blob.dtype +
                        ", which is no dtype of a parameter");
}

/// The tensors of a file under this model's names, and what the checkpoint says of itself.
class Origin {
 public:
  /// `set`: of which, in a checkpoint of several sets, embeddings and head are meant; or empty.
  Origin(const fs::path& from, const std::string& set)
      : path_(tensors_path(from)), file_(SafetensorsFile::open(path_)) {
    if (fs::is_directory(from)) state_ = read_training_state(from);
    std::set<std::string> sets;
    for (const std::string& name : file_.names()) {
      const std::string own = own_name(name);
      if (own == name) {
        names_[name] = name;
        continue;
      }
      const std::string its =
          name.substr(kSets.size(), name.size() - kSets.size() - own.size() - 1);
      sets.insert(its);
      if (its == set) names_[own] = name;
      names_[name] = name;
    }
    check_set(set, sets);
  }

  std::string path() const { return path_.string(); }

  /// Null where there is none.
  const TensorBlob* find(const std::string& name) const {
    const auto found = names_.find(name);
    return found == names_.end() ? nullptr : &file_.find(found->second);
  }

  Tensor read(const std::string& name) const {
    const TensorBlob& blob = *find(name);
    Tensor tensor = torch::empty(blob.shape, type_of(blob, path()));
    std::memcpy(tensor.mutable_data_ptr(), blob.data, blob.bytes);
    return tensor;
  }

  /// The first tensor of the trunk that the model has no parameter for; empty: none.
  std::string superfluous(const std::set<std::string>& model) const {
    for (const auto& [name, stored] : names_) {
      if (model.count(name) == 0 && data_module_of(name) == nullptr) return name;
    }
    return "";
  }

  /// Whether what the data shape was learned in another environment, as far as both say.
  bool other_environment(const config::Config& config) const {
    if (!state_ || !config.transfer.set.empty()) return false;  // a named set is what is wanted
    const std::string& theirs = state_->config.dataset.environment;
    const std::string& ours = config.dataset.environment;
    return !theirs.empty() && !ours.empty() && without_version(theirs) != without_version(ours);
  }

  /// "; model.d_model is 64 there, 128 here": what may explain that a parameter does not fit.
  std::string explain(const config::Config& config) const {
    static const std::set<std::string> without_shape{"model.dropout", "model.embedding_dropout",
                                                     "model.padding", "model.initialization"};
    std::string text;
    if (!state_) return text;
    for (const auto& [key, theirs, ours] : config::differences(state_->config, config)) {
      if (!key.starts_with("model.") || without_shape.count(key) > 0) continue;
      text += "; " + key + " is " + theirs + " there, " + ours + " here";
    }
    return text;
  }

 private:
  static fs::path tensors_path(const fs::path& from) {
    if (fs::is_directory(from)) return from / "model.safetensors";
    if (fs::is_regular_file(from)) return from;
    throw CheckpointError("transfer.init_from: there is no " + from.string() +
                          "; name a checkpoint folder, a run folder or a safetensors file");
  }

  void check_set(const std::string& wanted, const std::set<std::string>& sets) const {
    if (wanted.empty() || sets.count(wanted) > 0) return;
    std::string known;
    for (const std::string& set : sets) known += (known.empty() ? "" : ", ") + set;
    throw CheckpointError(
        path_.string() + ": has no set '" + wanted + "' (transfer.set); " +
        (known.empty() ? "it was trained on one set: leave the key out" : "it has " + known));
  }

  fs::path path_;
  SafetensorsFile file_;
  std::optional<TrainingState> state_;
  std::map<std::string, std::string> names_;  // in this model's terms -> in the file
};

/// Modules that keep what they have, each as a whole: a weight of another size has no use for the
/// bias that was learned with it.
std::set<std::string> fresh_modules(const Origin& origin, const config::Config& config,
                                    const std::vector<std::string>& names,
                                    const std::map<std::string, Tensor>& parameters) {
  std::set<std::string> modules;
  const bool elsewhere = origin.other_environment(config);
  for (const std::string& name : names) {
    const DataModule* module = data_module_of(name);
    if (module == nullptr) continue;
    const TensorBlob* blob = origin.find(name);
    const Shape ours = parameters.at(name).sizes().vec();
    const bool resized =
        blob != nullptr && blob->shape != ours && differs_by_data(*module, blob->shape, ours);
    if (elsewhere || blob == nullptr || resized) modules.insert(module_name(name, *module));
  }
  return modules;
}

/// Throws unless the file has the parameter in its shape.
void check_fits(const Origin& origin, const config::Config& config, const std::string& name,
                const Tensor& parameter) {
  const TensorBlob* blob = origin.find(name);
  const std::string advice = origin.explain(config) +
                             ". Give this run the model.* values of the other, or name what shall "
                             "begin anew in transfer.fresh";
  if (blob == nullptr) {
    throw CheckpointError(origin.path() + ": has no parameter '" + name + "', which is " +
                          text_of(parameter.sizes().vec()) + " here" + advice);
  }
  if (blob->shape != parameter.sizes().vec()) {
    throw CheckpointError(origin.path() + ": parameter '" + name + "' is " + text_of(blob->shape) +
                          " there, " + text_of(parameter.sizes().vec()) + " here" + advice);
  }
  type_of(*blob, origin.path());
}

std::vector<std::string> names_of(const torch::nn::Module& model) {
  std::vector<std::string> names;
  for (const auto& item : model.named_parameters()) names.push_back(item.key());
  return names;
}

}  // namespace

TransferReport init_parameters(const fs::path& from, torch::nn::Module& model,
                               const config::Config& config) {
  const Origin origin(from, config.transfer.set);
  std::vector<std::string> names;
  std::map<std::string, Tensor> parameters;  // and buffers
  for (const auto& [name, tensor] : saved_tensors(model)) {
    names.push_back(name);
    parameters.emplace(name, tensor);
  }

  std::vector<std::string> patterns = config.transfer.fresh;
  const bool automatic = std::erase(patterns, kAuto) > 0;
  const std::vector<bool> asked = match_all("transfer.fresh", patterns, names);
  std::set<std::string> modules;
  if (automatic) modules = fresh_modules(origin, config, names, parameters);

  TransferReport report;
  for (size_t i = 0; i < names.size(); ++i) {
    const DataModule* module = data_module_of(names[i]);
    const bool fresh =
        asked[i] || (module != nullptr && modules.count(module_name(names[i], *module)) > 0);
    if (!fresh) check_fits(origin, config, names[i], parameters.at(names[i]));
    (fresh ? report.fresh : report.taken).push_back(names[i]);
  }
  const std::string extra = origin.superfluous({names.begin(), names.end()});
  if (!extra.empty()) {
    throw CheckpointError(origin.path() + ": parameter '" + extra + "', " +
                          text_of(origin.find(extra)->shape) +
                          ", has no counterpart in this model" + origin.explain(config) +
                          ". Give this run the model.* values of the other");
  }
  torch::NoGradGuard no_grad;
  for (const std::string& name : report.taken) parameters.at(name).copy_(origin.read(name));
  return report;
}

void freeze(torch::nn::Module& model, const std::vector<std::string>& patterns) {
  const std::vector<std::string> names = names_of(model);
  const std::vector<bool> frozen = match_all("transfer.freeze", patterns, names);
  if (std::find(frozen.begin(), frozen.end(), false) == frozen.end()) {
    throw ConfigError("key 'transfer.freeze': every parameter is frozen; nothing is left to train");
  }
  auto parameters = model.named_parameters();
  for (size_t i = 0; i < names.size(); ++i) {
    if (frozen[i]) parameters[names[i]].requires_grad_(false);
  }
}

std::vector<double> rate_factors(const std::vector<std::string>& names,
                                 const std::vector<std::string>& entries) {
  std::vector<double> factors(names.size(), 1.0);
  for (const std::string& entry : entries) {
    const config::RateFactor rate = config::parse_rate_factor(entry);
    const std::vector<bool> matching = match_all("transfer.learning_rates", {rate.pattern}, names);
    for (size_t i = 0; i < names.size(); ++i) {
      if (matching[i]) factors[i] = rate.factor;
    }
  }
  return factors;
}

}  // namespace dmamba::train
