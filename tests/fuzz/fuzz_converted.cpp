// Converted recordings, whose frames are mapped: every frame that an accepted file promises is
// touched.
#include <numeric>

#include "data/readers/replay_cache.h"
#include "dmamba/common/error.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static dmamba::fuzz::MemoryFile file("input.h5");
  static volatile std::uint64_t sum;
  file.fill(data, size);
  try {
    const auto store = dmamba::data::open_converted_here(file.path(), file.path(), "");
    const auto frames = store->frames();
    sum = std::accumulate(frames.begin(), frames.end(), std::uint64_t{0});
    const auto rows = store->num_transitions();
    dmamba::fuzz::require(frames.size() ==
                          static_cast<std::size_t>(rows * dmamba::data::kFrameBytes));
    dmamba::fuzz::require(store->episode_ends().back() == rows);
    for (const std::int32_t action : store->actions()) {
      dmamba::fuzz::require(action >= 0 && action < store->num_actions());
    }
  } catch (const dmamba::DataError&) {
  }
  return 0;
}
