// The DQN-replay layout: Agarwal, Schuurmans, Norouzi, "An optimistic perspective on offline
// reinforcement learning" (ICML 2020). See open_replay for what is read.
#include <filesystem>
#include <memory>
#include <new>
#include <utility>

#include "data/readers/replay_folder.h"
#include "data/readers/replay_reading.h"
#include "dmamba/common/error.h"
#include "dmamba/data/frame_store.h"

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

}  // namespace

std::shared_ptr<FrameStore> open_replay(const std::string& path, const ReplaySelection& selection,
                                        const FrameCache&, const ReadProgress& progress) {
  require_selection(selection);
  const Recording recording = find_recording(path, selection);
  Metadata metadata = {{"game", recording.game}, {"shards", shard_list(recording.shards)}};
  std::shared_ptr<MemoryStorage> storage;
  FrameStore::Columns columns =
      ReplayReading(recording, selection, progress).read([&](const FrameStore::Columns& planned) {
        storage.reset();  // of a first attempt
        const auto rows = static_cast<std::int64_t>(planned.rewards.size());
        return storage = std::make_shared<MemoryStorage>(rows, path);
      });
  return FrameStore::create(storage->frames(), std::move(columns), path, std::move(metadata));
}

}  // namespace dmamba::data
