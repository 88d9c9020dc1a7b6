// The DQN-replay layout: Agarwal, Schuurmans, Norouzi, "An optimistic perspective on offline
// reinforcement learning" (ICML 2020). See open_replay for what is read.
#include <filesystem>
#include <memory>
#include <new>
#include <utility>

#include "data/readers/conversion_lock.h"
#include "data/readers/replay_cache.h"
#include "data/readers/replay_folder.h"
#include "data/readers/replay_reading.h"
#include "dmamba/common/error.h"
#include "dmamba/common/log.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/replay_outline.h"

namespace dmamba::data {
namespace {

void require_selection(const ReplaySelection& selection) {
  const std::pair<const char*, std::int64_t> fields[] = {
      {"buffers", selection.buffers},
      {"trajectories_per_buffer", selection.trajectories_per_buffer},
      {"transitions", selection.transitions}};
  for (const auto& [name, value] : fields) {
    if (value < 0) {
      throw ConfigError(std::string("replay selection: ") + name + " must be at least 0, got " +
                        std::to_string(value));
    }
  }
}

class MemorySink final : public FrameSink {
 public:
  explicit MemorySink(std::uint8_t* out) : out_(out) {}
  std::uint8_t* room(std::int64_t*) override { return out_; }
  void take(std::int64_t count) override { out_ += count * kFrameBytes; }

 private:
  std::uint8_t* out_;
};

class MemoryStorage final : public FrameStorage {
 public:
  MemoryStorage(std::int64_t rows, const std::string& name) {
    try {
      frames_ = std::make_shared_for_overwrite<std::uint8_t[]>(rows * kFrameBytes);
    } catch (const std::bad_alloc&) {
      throw DataError(name + ": there is no memory for " + std::to_string(rows) + " frames, " +
                      std::to_string(rows * kFrameBytes) +
                      " bytes; choose fewer transitions, or set a cache folder");
    }
  }

  std::unique_ptr<FrameSink> sink(std::int64_t first_row) override {
    return std::make_unique<MemorySink>(frames_.get() + first_row * kFrameBytes);
  }

  FrameStore::Frames frames() const { return {frames_, frames_.get()}; }

 private:
  std::shared_ptr<std::uint8_t[]> frames_;
};

// What was chosen at its conversion is all that a converted file has.
std::shared_ptr<FrameStore> open_given_file(const std::string& path,
                                            const ReplaySelection& selection) {
  if (selection.buffers > 0 || selection.trajectories_per_buffer > 0 || selection.transitions > 0) {
    throw DataError(path +
                    ": from a converted file nothing can be selected; leave buffers, "
                    "trajectories_per_buffer and transitions at 0, or give the recording's folder");
  }
  if (std::filesystem::path(path).filename().string().starts_with("$store$_")) {
    throw DataError(path + ": is one file of a recording; give the folder in which it lies");
  }
  auto store = open_converted(path, path);
  const auto game = store->metadata().find("game");
  if (!selection.game.empty() && game != store->metadata().end() &&
      !same_game(game->second, selection.game)) {
    throw DataError(path + ": a recording of '" + game->second + "', not of '" + selection.game +
                    "'");
  }
  return store;
}

Metadata metadata_of(const Recording& recording) {
  return {{"game", recording.game}, {"shards", shard_list(recording.shards)}};
}

// The converted file of a recording and a selection, or nothing where it is not there or damaged.
std::shared_ptr<FrameStore> find_converted(const std::string& file, const std::string& path,
                                           const std::string& fingerprint,
                                           const std::string& consequence) {
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return nullptr;
  try {
    auto found = open_converted(file, path, fingerprint);
    ConversionLock::remove_abandoned(file);
    return found;
  } catch (const DataError& problem) {
    log_warning(problem.what() + consequence);
    return nullptr;
  }
}

std::shared_ptr<FrameStore> open_cached(const std::string& path, const Recording& recording,
                                        const ReplaySelection& selection, const std::string& folder,
                                        const Metadata& metadata, const ReadProgress& progress) {
  const std::string fingerprint = replay_fingerprint(recording, selection);
  const std::string file = converted_path(folder, recording, fingerprint);
  const auto find = [&] {
    return find_converted(file, path, fingerprint, "; the recording is converted again");
  };
  std::error_code error;
  const bool damaged = std::filesystem::exists(file, error);
  if (auto found = find()) return found;
  const ConversionLock lock(file, [&] {
    if (progress) progress(0, 0);
  });
  // Another process may have been first.
  if (!damaged || lock.waited()) {
    if (auto found = find()) return found;
  }
  std::shared_ptr<ConvertedFile> storage;
  ReplayReading(recording, selection, progress).read([&](const FrameStore::Columns& columns) {
    storage.reset();  // of a first attempt
    return storage = std::make_shared<ConvertedFile>(file, columns, metadata, fingerprint);
  });
  storage->commit();
  return open_converted(file, path, fingerprint);
}

std::shared_ptr<FrameStore> open_in_memory(const std::string& path, const Recording& recording,
                                           const ReplaySelection& selection, Metadata metadata,
                                           const ReadProgress& progress) {
  std::shared_ptr<MemoryStorage> storage;
  FrameStore::Columns columns =
      ReplayReading(recording, selection, progress).read([&](const FrameStore::Columns& planned) {
        storage.reset();  // of a first attempt
        const auto rows = static_cast<std::int64_t>(planned.rewards.size());
        return storage = std::make_shared<MemoryStorage>(rows, path);
      });
  return FrameStore::create(storage->frames(), std::move(columns), path, std::move(metadata));
}

}  // namespace

std::shared_ptr<FrameStore> open_replay(const std::string& path, const ReplaySelection& selection,
                                        const FrameCache& cache, const ReadProgress& progress) {
  require_selection(selection);
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return open_given_file(path, selection);
  const Recording recording = find_recording(path, selection);
  Metadata metadata = metadata_of(recording);
  if (!cache.folder.empty()) {
    return open_cached(path, recording, selection, cache.folder, metadata, progress);
  }
  return open_in_memory(path, recording, selection, std::move(metadata), progress);
}

std::shared_ptr<EpisodeStore> outline_replay(const std::string& path,
                                             const ReplaySelection& selection,
                                             const FrameCache& cache,
                                             const ReadProgress& progress) {
  require_selection(selection);
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) return open_given_file(path, selection);
  const Recording recording = find_recording(path, selection);
  if (!cache.folder.empty()) {
    const std::string fingerprint = replay_fingerprint(recording, selection);
    const std::string file = converted_path(cache.folder, recording, fingerprint);
    if (auto found = find_converted(file, path, fingerprint, "; the recording is looked at")) {
      return found;
    }
  }
  return std::make_shared<ReplayOutline>(ReplayReading(recording, selection, progress).outline(),
                                         path, metadata_of(recording));
}

}  // namespace dmamba::data
