// The D4RL HDF5 layout: Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning"
// (arXiv 2004.07219), as its MuJoCo locomotion files have it. See open_dataset for the fields.
#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "data/disk_store.h"
#include "data/readers/hdf5_file.h"
#include "data/readers/hdf5_rows.h"
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

// Calls visit(first, count) for all rows of a dataset, in blocks of whole chunks.
template <class Visit>
void for_each_block(const Hdf5Rows& dataset, std::int64_t width, Visit visit) {
  const auto rows = static_cast<std::int64_t>(dataset.info().shape[0]);
  const std::int64_t chunk = dataset.chunk_rows();
  const std::int64_t most = std::max<std::int64_t>(1, rows_of_block(width) / chunk) * chunk;
  for (std::int64_t first = 0; first < rows; first += most) {
    visit(first, std::min(most, rows - first));
  }
}

// A column of the file where it lies, or copied as float32.
DiskColumn column_on_disk(const Hdf5File& file, const std::string& field, const Storage& storage) {
  const Hdf5Rows dataset(file, field);
  const auto& shape = dataset.info().shape;
  const std::int64_t width = shape.size() == 2 ? static_cast<std::int64_t>(shape[1]) : 1;
  if (const auto offset = dataset.float_offset()) {
    return {RandomFile::open(file.path()), *offset, width};
  }
  ScratchColumn copy(storage.scratch);
  for_each_block(dataset, width, [&](std::int64_t first, std::int64_t count) {
    std::vector<float> block(static_cast<std::size_t>(count * width));
    dataset.floats(first, count, block.data());
    copy.append(block);
  });
  return copy.finish(width);
}

std::shared_ptr<TrajectoryStore> open_on_disk(const Hdf5File& file, const Storage& storage) {
  DiskStore::Columns columns{column_on_disk(file, "observations", storage),
                             column_on_disk(file, "actions", storage),
                             column_on_disk(file, "rewards", storage)};
  EpisodeFinder ends;
  const Hdf5Rows terminals(file, "terminals"), timeouts(file, "timeouts");
  for_each_block(terminals, 1, [&](std::int64_t first, std::int64_t count) {
    ends.add(terminals.flags(first, count), timeouts.flags(first, count));
  });
  return DiskStore::create(std::move(columns), std::move(ends), file.path(),
                           file.read_scalars("metadata"), storage);
}

}  // namespace

std::shared_ptr<TrajectoryStore> open_d4rl(const std::string& path, const Storage& storage) {
  const Hdf5File file(path);
  require_fields(file);
  const Infos infos = inspect_fields(file);
  TransitionArrays arrays;
  arrays.state_dim = static_cast<std::int64_t>(infos.at("observations").shape[1]);
  arrays.act_dim = static_cast<std::int64_t>(infos.at("actions").shape[1]);
  const auto rows = static_cast<std::int64_t>(infos.at("rewards").shape[0]);
  if (bytes_in_memory(rows, arrays.state_dim, arrays.act_dim) > memory_limit(storage)) {
    return open_on_disk(file, storage);
  }
  arrays.observations = file.read_floats("observations");
  arrays.actions = file.read_floats("actions");
  arrays.rewards = file.read_floats("rewards");
  arrays.terminals = file.read_flags("terminals");
  arrays.timeouts = file.read_flags("timeouts");
  return MemoryStore::create(std::move(arrays), path, file.read_scalars("metadata"));
}

}  // namespace dmamba::data
