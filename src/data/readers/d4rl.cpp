// The D4RL HDF5 layout: Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning"
// (arXiv 2004.07219), as its MuJoCo locomotion files have it. See open_dataset for the fields.
#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "data/readers/hdf5_file.h"
#include "data/readers/readers.h"
#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::array kFields = {"observations", "actions", "rewards", "terminals", "timeouts"};

using Infos = std::map<std::string, DatasetInfo>;

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

void require_fields(const Hdf5File& file) {
  const std::vector<std::string> present = file.names("/");
  std::vector<std::string> missing;
  for (const char* field : kFields) {
    if (std::find(present.begin(), present.end(), field) == present.end()) {
      missing.emplace_back(field);
    }
  }
  if (missing.empty()) {
    return;
  }
  std::string message = file.path() + ": missing " + join(missing) +
                        " (the D4RL layout needs observations, actions, rewards, terminals and "
                        "timeouts; the file has " +
                        (present.empty() ? "nothing" : join(present)) + ")";
  if (missing.size() == 1 && missing.front() == "timeouts") {
    message +=
        "; without timeouts the ends of episodes cut by the time limit are unknown: add them, all "
        "false if every episode ends with a terminal";
  }
  throw DataError(message);
}

void require_matrix(const Hdf5File& file, const std::string& field, const DatasetInfo& info) {
  if (info.shape.size() != 2 || info.shape[1] == 0) {
    throw DataError(file.path() + ": " + field + " must be (transitions, components), got " +
                    info.shape_text());
  }
}

void require_column(const Hdf5File& file, const std::string& field, const DatasetInfo& info) {
  const auto& shape = info.shape;
  if (shape.size() != 1 && !(shape.size() == 2 && shape[1] == 1)) {
    throw DataError(file.path() + ": " + field +
                    " must be (transitions,) or (transitions, 1), got " + info.shape_text());
  }
}

// Looks at every field's shape before any is read: a wrong one costs no time and no memory.
Infos inspect_fields(const Hdf5File& file) {
  Infos infos;
  std::vector<FieldLength> lengths;
  for (const std::string field : kFields) {
    const DatasetInfo info = file.info(field);
    if (field == "observations" || field == "actions") {
      require_matrix(file, field, info);
    } else {
      require_column(file, field, info);
    }
    lengths.emplace_back(field, static_cast<std::int64_t>(info.shape[0]));
    infos.emplace(field, info);
  }
  require_equal_lengths(file.path(), lengths);
  return infos;
}

}  // namespace

std::shared_ptr<TrajectoryStore> open_d4rl(const std::string& path) {
  const Hdf5File file(path);
  require_fields(file);
  const Infos infos = inspect_fields(file);
  TransitionArrays arrays;
  arrays.state_dim = static_cast<std::int64_t>(infos.at("observations").shape[1]);
  arrays.act_dim = static_cast<std::int64_t>(infos.at("actions").shape[1]);
  arrays.observations = file.read_floats("observations");
  arrays.actions = file.read_floats("actions");
  arrays.rewards = file.read_floats("rewards");
  arrays.terminals = file.read_flags("terminals");
  arrays.timeouts = file.read_flags("timeouts");
  return MemoryStore::create(std::move(arrays), path, file.read_scalars("metadata"));
}

}  // namespace dmamba::data
