// ReplayOutline: episodes from columns.
#include "dmamba/data/replay_outline.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace dmamba::data {

ReplayOutline::ReplayOutline(FrameStore::Columns columns, std::string name, Metadata metadata)
    : columns_(std::move(columns)), name_(std::move(name)), metadata_(std::move(metadata)) {
  std::int64_t start = 0;
  for (std::size_t i = 0; i < columns_.episode_ends.size(); ++i) {
    const std::int64_t end = columns_.episode_ends[i];
    Episode episode{
        .start = start, .length = end - start, .terminated = columns_.terminated[i] != 0};
    for (std::int64_t row = end - 1; row >= start; --row) {  // in the order of FrameStore's sums
      episode.ret += columns_.rewards[row];
    }
    episodes_.push_back(episode);
    start = end;
  }
  num_actions_ = *std::max_element(columns_.actions.begin(), columns_.actions.end()) + 1;
}

Episode ReplayOutline::episode(std::int64_t i) const {
  if (i < 0 || i >= num_episodes()) {
    throw std::out_of_range(name_ + ": episode " + std::to_string(i) + " of " +
                            std::to_string(num_episodes()));
  }
  return episodes_[i];
}

}  // namespace dmamba::data
