// Checkpoints: tensors as safetensors, the rest as JSON, in a folder that appears whole or not at
// all.
#include "dmamba/train/checkpoint.h"

#include <torch/version.h>

#include <array>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "dmamba/common/atomic_file.h"
#include "dmamba/common/error.h"
#include "dmamba/config/yaml.h"
#include "dmamba/train/safetensors.h"
#include "src/train/checksum.h"
#include "src/train/dtypes.h"

namespace dmamba::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

constexpr int kFormat = 1;
constexpr int kDeepest = 64;                   // of state.json
constexpr const char* kChecksumKey = "crc32";  // of state.json without it

/// What could not be written whole takes no space on a disk that may be full.
void remove_unfinished(const fs::path& folder) {
  std::error_code ignored;
  fs::remove_all(folder, ignored);
}

std::string dtype_of_tensor(const Tensor& t) {
  const std::optional<std::string> name = dtype_name(t.scalar_type());
  TORCH_INTERNAL_ASSERT(name, "no safetensors name for ", t.scalar_type());
  return *name;
}

/// Named tensors on their way into a file; keeps CPU copies alive until it is written.
class Tensors {
 public:
  void add(const std::string& name, const Tensor& t) {
    kept_.push_back(t.detach().cpu().contiguous());
    const Tensor& kept = kept_.back();
    blobs_.push_back(
        {name, dtype_of_tensor(kept), kept.sizes().vec(), kept.const_data_ptr(), kept.nbytes()});
  }
  void write(const fs::path& path) const { write_safetensors(path, blobs_, {{"format", "pt"}}); }

 private:
  std::vector<Tensor> kept_;
  std::vector<TensorBlob> blobs_;
};

/// Copies the tensors of a file to those of the same names. Everything is compared before anything
/// is copied.
void read_tensors(const fs::path& path, const std::map<std::string, Tensor>& into) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  for (const std::string& name : file.names()) {
    if (into.count(name) == 0) {
      throw CheckpointError(path.string() + ": tensor '" + name +
                            "' has no counterpart in this model; was it saved from another one?");
    }
  }
  for (const auto& [name, t] : into) {
    if (!file.contains(name)) {
      throw CheckpointError(path.string() + ": tensor '" + name + "' is missing");
    }
    const TensorBlob& blob = file.find(name);
    if (blob.shape != t.sizes().vec() || blob.dtype != dtype_of_tensor(t)) {
      throw CheckpointError(path.string() + ": tensor '" + name + "' is " + blob.dtype + " " +
                            c10::str(at::IntArrayRef(blob.shape)) + ", the model's is " +
                            dtype_of_tensor(t) + " " + c10::str(t.sizes()));
    }
  }
  torch::NoGradGuard no_grad;
  for (const auto& [name, t] : into) {
    const TensorBlob& blob = file.find(name);
    Tensor host = torch::empty(t.sizes(), t.options().device(torch::kCPU).requires_grad(false));
    std::memcpy(host.mutable_data_ptr(), blob.data, blob.bytes);
    Tensor target = t;
    target.copy_(host);
  }
}

std::map<std::string, Tensor> moments(const AdamW& optimizer) {
  std::map<std::string, Tensor> tensors;
  for (const Slot& slot : optimizer.slots()) {
    tensors.emplace("exp_avg." + slot.name, slot.first_moment);
    tensors.emplace("exp_avg_sq." + slot.name, slot.second_moment);
  }
  return tensors;
}

/// Throws NotFiniteError unless everything that is trained is finite.
void check_finite(const fs::path& folder, const AdamW& optimizer) {
  std::vector<Tensor> trained;
  for (const Slot& slot : optimizer.slots()) {
    if (slot.parameter.requires_grad()) trained.push_back(slot.parameter.detach());
  }
  if (trained.empty()) return;
  const double largest = std::numeric_limits<double>::infinity();
  const Tensor finite = torch::stack(at::_foreach_norm(trained, largest)).isfinite().cpu();
  if (finite.all().item<bool>()) return;
  size_t bad = 0;
  for (const Slot& slot : optimizer.slots()) {
    if (!slot.parameter.requires_grad()) continue;
    if (!finite[static_cast<int64_t>(bad++)].item<bool>()) {
      throw NotFiniteError("no checkpoint " + folder.string() + " is written: parameter '" +
                           slot.name +
                           "' holds NaN or infinity. The checkpoints before it are as they were; a "
                           "lower training.learning_rate may avoid it");
    }
  }
}

std::map<std::string, Tensor> map_of(const model::NamedTensors& tensors) {
  return {tensors.begin(), tensors.end()};
}

json to_json(const SetState& s) {
  return {{"name", s.name},           {"state_dim", s.state_dim},
          {"act_dim", s.act_dim},     {"state_mean", s.state_mean},
          {"state_std", s.state_std}, {"steps", s.steps},
          {"skipped", s.skipped}};
}

SetState read_set(const json& j) {
  return {j.at("name").get<std::string>(),
          j.at("state_dim").get<int64_t>(),
          j.at("act_dim").get<int64_t>(),
          j.at("state_mean").get<std::vector<float>>(),
          j.at("state_std").get<std::vector<float>>(),
          j.at("steps").get<int64_t>(),
          j.value("skipped", int64_t{0})};  // absent in older checkpoints
}

json to_json(const SkippedState& s) {
  return {{"total", s.total}, {"in_a_row", s.in_a_row}, {"since_row", s.since_row}};
}

SkippedState read_skipped(const json& j) {
  if (j.is_null()) return {};
  return {j.at("total").get<int64_t>(), j.at("in_a_row").get<int64_t>(),
          j.at("since_row").get<int64_t>()};
}

json to_json(const ContextState& s) {
  if (s.note.empty()) return nullptr;
  return {{"lengths", s.lengths}, {"best", s.best}, {"note", json::parse(s.note)}};
}

ContextState read_contexts(const json& j) {
  if (j.is_null()) return {};
  return {j.at("lengths").get<std::vector<int64_t>>(), j.at("best").get<int64_t>(),
          j.at("note").dump()};
}

std::string checksum_of_state(const json& j) {
  const std::string text = j.dump();
  const std::array<std::string_view, 1> pieces{text};
  return checksum_of(pieces);
}

/// Throws where the file names a checksum and has another. Older ones name none.
void check_state(const fs::path& path, json j) {
  const auto named = j.find(kChecksumKey);
  if (named == j.end()) return;
  const auto expected = named->get<std::string>();
  j.erase(named);
  const std::string sum = checksum_of_state(j);
  if (sum == expected) return;
  throw CheckpointError(path.string() + ": " + other_checksum(sum, expected));
}

json to_json(const TrainingState& s) {
  json sets = json::array();
  for (const SetState& set : s.sets) sets.push_back(to_json(set));
  return {{"format", kFormat},
          {"step", s.step},
          {"state_dim", s.state_dim},
          {"act_dim", s.act_dim},
          {"state_mean", s.state_mean},
          {"state_std", s.state_std},
          {"num_actions", s.num_actions},
          {"external_model", s.external_model},
          {"data_digest", s.data_digest},
          {"sets", sets},
          {"contexts", to_json(s.contexts)},
          {"loss_sum", s.loss_sum},
          {"gradient_norm_sum", s.gradient_norm_sum},
          {"steps_summed", s.steps_summed},
          {"skipped", to_json(s.skipped)},
          {"torch", TORCH_VERSION},
          {"config", config::to_yaml(s.config)}};
}

}  // namespace

model::NamedTensors saved_tensors(const torch::nn::Module& model) {
  model::NamedTensors tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value());
  if (const auto* external = model.as<model::ExternalModelImpl>()) {
    for (auto& buffer : external->current_buffers()) tensors.push_back(std::move(buffer));
  }
  return tensors;
}

void save_checkpoint(const fs::path& path, const TrainingState& state,
                     const torch::nn::Module& model, const AdamW& optimizer) {
  const fs::path folder = path.has_filename() ? path : path.parent_path();  // "a/b/" is "a/b"
  std::string hidden(1, '.');
  hidden += folder.filename().string() + ".tmp";
  const fs::path fresh = folder.parent_path() / hidden;
  check_finite(folder, optimizer);
  try {
    fs::remove_all(fresh);
    fs::create_directories(fresh);
    Tensors model_tensors, optimizer_tensors;
    for (const auto& [name, t] : map_of(saved_tensors(model))) model_tensors.add(name, t);
    for (const auto& [name, t] : moments(optimizer)) optimizer_tensors.add(name, t);
    model_tensors.write(fresh / "model.safetensors");
    optimizer_tensors.write(fresh / "optimizer.safetensors");
    json written = to_json(state);
    written[kChecksumKey] = checksum_of_state(written);
    write_file_atomically(fresh / "state.json", written.dump(1) + "\n");
    replace_folder_atomically(fresh, folder);
  } catch (const fs::filesystem_error& e) {
    remove_unfinished(fresh);
    throw Error("cannot write checkpoint " + folder.string() + ": " + e.what());
  } catch (...) {
    remove_unfinished(fresh);
    throw;
  }
}

TrainingState read_training_state(const fs::path& folder) {
  const fs::path path = folder / "state.json";
  std::ifstream file(path);
  if (!file) {
    throw CheckpointError(folder.string() +
                          ": not a checkpoint (no state.json); name a folder like "
                          "RUN/checkpoints/step-00001000");
  }
  try {
    const json j = json::parse(file, [&](int depth, json::parse_event_t, json&) {
      // Deeper ones would be copied and destroyed by as many calls within each other.
      if (depth > kDeepest) throw CheckpointError(path.string() + ": nested too deep; damaged");
      return true;
    });
    if (j.at("format").get<int>() != kFormat) {
      throw CheckpointError(path.string() + ": format " + j.at("format").dump() +
                            " is not known to this version, which reads " +
                            std::to_string(kFormat));
    }
    TrainingState s;
    s.step = j.at("step").get<int64_t>();
    s.state_dim = j.at("state_dim").get<int64_t>();
    s.act_dim = j.at("act_dim").get<int64_t>();
    s.state_mean = j.at("state_mean").get<std::vector<float>>();
    s.state_std = j.at("state_std").get<std::vector<float>>();
    s.num_actions = j.value("num_actions", int64_t{0});  // absent in older checkpoints
    s.external_model = j.value("external_model", std::string());
    s.data_digest = j.value("data_digest", std::string());
    for (const json& set : j.value("sets", json::array())) s.sets.push_back(read_set(set));
    s.contexts = read_contexts(j.value("contexts", json()));
    s.loss_sum = j.at("loss_sum").get<double>();
    s.gradient_norm_sum = j.at("gradient_norm_sum").get<double>();
    s.steps_summed = j.at("steps_summed").get<int64_t>();
    s.skipped = read_skipped(j.value("skipped", json()));  // absent in older checkpoints
    s.config = config::parse_config(j.at("config").get<std::string>(), path.string() + " (config)");
    check_state(path, j);  // last: of a field that is wrong there is more to say
    return s;
  } catch (const json::exception& e) {
    throw CheckpointError(path.string() + ": " + e.what());
  }
}

void load_parameters(const fs::path& folder, torch::nn::Module& model) {
  read_tensors(folder / "model.safetensors", map_of(saved_tensors(model)));
}

void load_optimizer(const fs::path& folder, AdamW& optimizer) {
  read_tensors(folder / "optimizer.safetensors", moments(optimizer));
}

}  // namespace dmamba::train
