// Minari's HDF5 layout (Farama Foundation, https://minari.farama.org/content/dataset_standards):
// one group an episode, named episode_0, episode_1, ... See open_minari for the fields.
#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "data/disk_store.h"
#include "data/readers/file_check.h"
#include "data/readers/hdf5_file.h"
#include "data/readers/readers.h"
#include "data/validation.h"
#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"

namespace dmamba::data {
namespace {

constexpr std::array kFields = {"observations", "actions", "rewards", "terminations",
                                "truncations"};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

// Of a tuple's parts, which Minari calls _index_0, _index_1, ...; -1 of any other name.
std::int64_t index_of(std::string_view name) {
  constexpr std::string_view kPrefix = "_index_";
  std::int64_t index = -1;
  if (name.starts_with(kPrefix)) {
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), index);
  }
  return index;
}

// The datasets below an observation's group, a dictionary's by name, a tuple's by number: the order
// in which gymnasium flattens them. `name` itself where it is a dataset.
void find_parts(const Hdf5File& file, const std::string& name, int depth,
                std::vector<std::string>* parts) {
  constexpr int kDeepest = 8;  // links may form a ring
  std::vector<std::string> members = file.names(name);
  if (members.empty() || depth == kDeepest) {
    parts->push_back(name);
    return;
  }
  std::stable_sort(members.begin(), members.end(),
                   [](const auto& a, const auto& b) { return index_of(a) < index_of(b); });
  for (const std::string& member : members) {
    find_parts(file, name + "/" + member, depth + 1, parts);
  }
}

// Appends one episode after the other to flat arrays.
class EpisodeReader {
 public:
  explicit EpisodeReader(const Hdf5File& file) : file_(file) {}

  void read(const std::string& episode) {
    episode_ = episode;
    require_fields();
    const std::int64_t rows = read_rewards();
    read_ends(rows);
    read_actions(rows);
    read_observations(rows);
  }

  /// What was read since they were emptied.
  TransitionArrays& arrays() { return arrays_; }
  std::int64_t without_end() const { return without_end_; }
  const std::vector<std::string>& parts() const { return parts_; }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& what) const {
    throw DataError(file_.path() + ": " + episode_ + "/" + key + " " + what);
  }

  void require_fields() const {
    const std::vector<std::string> present = file_.names(episode_);
    if (present.empty()) {
      const bool there = contains(file_.names("/"), episode_);
      throw DataError(file_.path() + ": " + episode_ + " is " + (there ? "empty" : "missing") +
                      ": the file has " + std::to_string(file_.count("/")) +
                      " groups, which must be episode_0, episode_1 and so on");
    }
    for (const char* field : kFields) {
      if (!contains(present, field)) {
        throw DataError(file_.path() + ": " + episode_ + " has no " + field + ", only " +
                        join(present));
      }
    }
  }

  std::int64_t read_rewards() {
    const auto [info, values] = file_.read_numbers(episode_ + "/rewards");
    if (info.shape.size() != 1 && !(info.shape.size() == 2 && info.shape[1] == 1)) {
      refuse("rewards", "must be (steps,), got " + info.shape_text());
    }
    if (values.empty()) {
      refuse("rewards", "are empty: the episode has no steps; leave it out");
    }
    require_finite(file_.path(), episode_ + "/rewards", values, 1);
    arrays_.rewards.insert(arrays_.rewards.end(), values.begin(), values.end());
    return static_cast<std::int64_t>(values.size());
  }

  // An episode ends where its group does; the flags of its last row say how.
  void read_ends(std::int64_t rows) {
    const std::array<std::pair<const char*, std::vector<std::uint8_t>*>, 2> fields = {
        {{"terminations", &arrays_.terminals}, {"truncations", &arrays_.timeouts}}};
    for (const auto& [field, ends] : fields) {
      const std::vector<std::uint8_t> flags = file_.read_flags(episode_ + "/" + field);
      require_rows(field, static_cast<std::int64_t>(flags.size()), rows, rows);
      const auto first = std::find(flags.begin(), flags.end(), 1) - flags.begin();
      if (first < rows - 1) {
        refuse(field, "row " + std::to_string(first) + " is set, but the episode goes on to row " +
                          std::to_string(rows - 1) + "; it must end there, or be two episodes");
      }
      ends->insert(ends->end(), flags.begin(), flags.end());
    }
    if (arrays_.terminals.back() == 0 && arrays_.timeouts.back() == 0) {
      ++without_end_;
      arrays_.timeouts.back() = 1;  // the recording stopped here, as a time limit would have
    }
  }

  void read_actions(std::int64_t rows) {
    const std::string name = episode_ + "/actions";
    if (!file_.names(name).empty()) {
      refuse("actions", "are a dictionary or a tuple; one vector of real numbers is needed");
    }
    const std::string dtype = file_.info(name).dtype;
    if (!dtype.starts_with("float")) {
      refuse("actions", "are " + dtype +
                            ", so discrete; real numbers are needed (only models of games choose "
                            "among discrete actions)");
    }
    const std::vector<float> values = read_matrix("actions", rows, rows, &arrays_.act_dim);
    arrays_.actions.insert(arrays_.actions.end(), values.begin(), values.end());
  }

  void read_observations(std::int64_t rows) {
    find_parts_of_observation();
    std::vector<std::vector<float>> parts;
    parts.reserve(parts_.size());
    for (std::size_t k = 0; k < parts_.size(); ++k) {
      parts.push_back(read_matrix(parts_[k], rows, rows + 1, &dims_[k]));
    }
    arrays_.state_dim = std::accumulate(dims_.begin(), dims_.end(), std::int64_t{0});
    std::vector<float>& out = arrays_.observations;
    if (parts.size() == 1) {
      out.insert(out.end(), parts[0].begin(), parts[0].end());
      return;
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::size_t k = 0; k < parts.size(); ++k) {
        const auto first = parts[k].begin() + row * dims_[k];
        out.insert(out.end(), first, first + dims_[k]);
      }
    }
  }

  void find_parts_of_observation() {
    std::vector<std::string> parts;
    find_parts(file_, episode_ + "/observations", 0, &parts);
    for (std::string& part : parts) {
      part.erase(0, episode_.size() + 1);
    }
    if (parts_.empty()) {
      parts_ = std::move(parts);
      dims_.assign(parts_.size(), 0);
    } else if (parts != parts_) {
      throw DataError(file_.path() + ": " + episode_ + " has " + join(parts) +
                      ", but episode_0 has " + join(parts_));
    }
  }

  // The first `rows` rows of a field, of `rows` or `most` that it may have. `dim` is its number of
  // components in the episodes before, 0 in the first.
  std::vector<float> read_matrix(const std::string& key, std::int64_t rows, std::int64_t most,
                                 std::int64_t* dim) const {
    auto [info, values] = file_.read_numbers(episode_ + "/" + key);
    const bool scalar = info.shape.size() == 1 && info.dtype.starts_with("float");
    if (info.dtype == "uint8" || !(scalar || info.shape.size() == 2) || info.shape.back() == 0) {
      refuse(key, "must be (steps, components) of numbers, got " + info.dtype + " of shape " +
                      info.shape_text() + "; pictures and discrete values are not supported");
    }
    require_rows(key, static_cast<std::int64_t>(info.shape[0]), rows, most);
    const std::int64_t found = scalar ? 1 : static_cast<std::int64_t>(info.shape[1]);
    if (*dim != 0 && *dim != found) {
      refuse(key, "has " + std::to_string(found) + " components, that of episode_0 has " +
                      std::to_string(*dim));
    }
    *dim = found;
    values.resize(rows * found);  // what was seen after the last action is not used
    require_finite(file_.path(), episode_ + "/" + key, values, found);
    return std::move(values);
  }

  void require_rows(const std::string& key, std::int64_t found, std::int64_t rows,
                    std::int64_t most) const {
    if (found != rows && found != most) {
      refuse(key, "has " + std::to_string(found) + " rows, must have " + std::to_string(rows) +
                      (most > rows ? " or " + std::to_string(most) : "") + ": there are " +
                      std::to_string(rows) + " rewards");
    }
  }

  const Hdf5File& file_;
  std::string episode_;  // the one that is being read
  std::vector<std::string> parts_;
  std::vector<std::int64_t> dims_;  // components of each part
  std::int64_t without_end_ = 0;
  TransitionArrays arrays_;
};

// Where episodes go once there are too many for memory.
class Spill {
 public:
  explicit Spill(const std::string& folder)
      : observations_(folder), actions_(folder), rewards_(folder) {}

  /// Empties the arrays.
  void take(TransitionArrays& arrays) {
    observations_.append(arrays.observations);
    actions_.append(arrays.actions);
    rewards_.append(arrays.rewards);
    ends_.add(arrays.terminals, arrays.timeouts);
    // With their memory, which is large when the first episodes go.
    arrays = {.state_dim = arrays.state_dim, .act_dim = arrays.act_dim};
  }

  /// `sizes` tells those of a state and of an action.
  std::shared_ptr<TrajectoryStore> store(const TransitionArrays& sizes, const std::string& path,
                                         Metadata metadata, const Storage& storage) {
    return DiskStore::create(
        {observations_.finish(sizes.state_dim), actions_.finish(sizes.act_dim), rewards_.finish(1)},
        std::move(ends_), path, std::move(metadata), storage);
  }

 private:
  ScratchColumn observations_, actions_, rewards_;
  EpisodeFinder ends_;
};

}  // namespace

bool looks_like_minari(const std::string& path) {
  try {
    return !Hdf5File(path).names("episode_0").empty();
  } catch (const DataError&) {
    return false;  // d4rl's reader says what is wrong with the file
  }
}

std::shared_ptr<TrajectoryStore> open_minari(const std::string& path, Metadata metadata,
                                             const Storage& storage) {
  if (!is_hdf5(path)) return open_minari_here(path, std::move(metadata), storage);
  require_kind(storage);
  return read_checked(path, "minari", storage,
                      [&] { return open_minari_here(path, metadata, storage); });
}

std::shared_ptr<TrajectoryStore> open_minari_here(const std::string& path, Metadata metadata,
                                                  const Storage& storage) {
  const Hdf5File file(path);
  const auto episodes = static_cast<std::int64_t>(file.count("/"));
  if (episodes == 0) {
    throw DataError(path + ": the dataset is empty: it has no group episode_0");
  }
  const std::uint64_t limit = memory_limit(storage);
  EpisodeReader reader(file);
  std::optional<Spill> spill;
  for (std::int64_t i = 0; i < episodes; ++i) {
    reader.read("episode_" + std::to_string(i));
    const TransitionArrays& arrays = reader.arrays();
    const auto rows = static_cast<std::int64_t>(arrays.rewards.size());
    if (!spill && bytes_in_memory(rows, arrays.state_dim, arrays.act_dim) > limit) {
      spill.emplace(storage.scratch);
    }
    if (spill) spill->take(reader.arrays());
  }
  if (reader.parts().size() > 1) {
    metadata["observation_parts"] = join(reader.parts());
  }
  if (reader.without_end() > 0) {
    metadata["episodes_without_end"] = std::to_string(reader.without_end());
  }
  if (spill) return spill->store(reader.arrays(), path, std::move(metadata), storage);
  return MemoryStore::create(std::move(reader.arrays()), path, std::move(metadata));
}

std::shared_ptr<TrajectoryStore> open_minari_file(const std::string& path, const Storage& storage) {
  return open_minari_here(path, {}, storage);
}

}  // namespace dmamba::data
