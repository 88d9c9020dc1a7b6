// HDF5 files through the readers that open them. DMAMBA_FUZZ_READER is one of open_d4rl and
// open_minari_file; what is accepted must be whole, finite, and the same when it is read again from
// where it lies, without being held in memory.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "data/readers/readers.h"
#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"
#include "memory_file.h"

namespace {

using dmamba::data::TrajectoryStore;

struct Content {
  std::vector<float> states, actions, rewards, rtg;
  bool operator==(const Content&) const = default;
};

Content content_of(const TrajectoryStore& store) {
  const std::int64_t rows = store.num_transitions();
  Content content;
  content.states.resize(rows * store.state_dim());
  content.actions.resize(rows * store.act_dim());
  content.rewards.resize(rows);
  content.rtg.resize(rows);
  store.read(0, rows, content.states.data(), content.actions.data(), content.rewards.data(),
             content.rtg.data());
  return content;
}

std::shared_ptr<TrajectoryStore> open(const std::string& path, const char* kind) {
  dmamba::data::Storage storage;
  storage.kind = kind;
  return dmamba::data::DMAMBA_FUZZ_READER(path, storage);
}

void require_finite(const std::vector<float>& values) {
  for (const float value : values) dmamba::fuzz::require(std::isfinite(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static dmamba::fuzz::MemoryFile file("input.hdf5");
  file.fill(data, size);
  try {
    const auto store = open(file.path(), "memory");
    const Content content = content_of(*store);
    for (const auto* field : {&content.states, &content.actions, &content.rewards, &content.rtg}) {
      require_finite(*field);
    }
    std::int64_t steps = 0;
    for (std::int64_t i = 0; i < store->num_episodes(); ++i) {
      dmamba::fuzz::require(store->episode(i).start == steps && store->episode(i).length > 0);
      steps += store->episode(i).length;
    }
    dmamba::fuzz::require(steps > 0 && steps + store->dropped_transitions() >= steps);
    const auto again = open(file.path(), "disk");
    dmamba::fuzz::require(content_of(*again) == content);
  } catch (const dmamba::DataError&) {
  }
  return 0;
}
