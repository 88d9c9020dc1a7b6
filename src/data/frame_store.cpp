// FrameStore: validation, returns-to-go.
#include "dmamba/data/frame_store.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::int32_t kLastAction = 17;  // Atari has 18 joystick positions

void validate_ends(const FrameStore::Columns& columns, const std::string& source) {
  const auto rows = static_cast<std::int64_t>(columns.rewards.size());
  std::int64_t before = 0;
  for (std::size_t i = 0; i < columns.episode_ends.size(); ++i) {
    const std::int64_t end = columns.episode_ends[i];
    if (end <= before || end > rows) {
      throw DataError(source + ": episode_ends[" + std::to_string(i) + "] is " +
                      std::to_string(end) + ", but must lie above " + std::to_string(before) +
                      " and not above the " + std::to_string(rows) + " transitions");
    }
    before = end;
  }
  if (before != rows) {
    throw DataError(source + ": the last episode ends at " + std::to_string(before) + " of " +
                    std::to_string(rows) + " transitions; leave out those after it");
  }
  if (columns.terminated.size() != columns.episode_ends.size()) {
    throw DataError(source + ": terminated has " + std::to_string(columns.terminated.size()) +
                    " entries, but there are " + std::to_string(columns.episode_ends.size()) +
                    " episodes; it needs one for each");
  }
}

void validate(const FrameStore::Frames& frames, const FrameStore::Columns& columns,
              const std::string& source) {
  require_equal_lengths(source, {{"actions", static_cast<std::int64_t>(columns.actions.size())},
                                 {"rewards", static_cast<std::int64_t>(columns.rewards.size())}});
  if (frames.data == nullptr) {
    throw DataError(source + ": there are no frames");
  }
  validate_ends(columns, source);
  require_finite(source, "rewards", columns.rewards, 1);
  const auto bad =
      std::find_if(columns.actions.begin(), columns.actions.end(),
                   [](std::int32_t action) { return action < 0 || action > kLastAction; });
  if (bad != columns.actions.end()) {
    throw DataError(source + ": actions row " + std::to_string(bad - columns.actions.begin()) +
                    " is " + std::to_string(*bad) + "; an Atari action is 0 to " +
                    std::to_string(kLastAction));
  }
  if (columns.dropped < 0) {
    throw DataError(source + ": the number of dropped transitions is negative, " +
                    std::to_string(columns.dropped));
  }
}

}  // namespace

std::shared_ptr<FrameStore> FrameStore::create(Frames frames, Columns columns, std::string name,
                                               Metadata metadata) {
  validate(frames, columns, name);
  return std::shared_ptr<FrameStore>(
      new FrameStore(std::move(frames), std::move(columns), std::move(name), std::move(metadata)));
}

FrameStore::FrameStore(Frames frames, Columns columns, std::string name, Metadata metadata)
    : frames_(std::move(frames)),
      columns_(std::move(columns)),
      name_(std::move(name)),
      metadata_(std::move(metadata)) {
  rtg_.resize(columns_.rewards.size());
  returns_.reserve(columns_.episode_ends.size());
  std::int64_t start = 0;
  for (const std::int64_t end : columns_.episode_ends) {
    double sum = 0.0;
    for (std::int64_t row = end - 1; row >= start; --row) {
      sum += columns_.rewards[row];
      if (std::abs(sum) > std::numeric_limits<float>::max()) {
        throw DataError(name_ + ": the return-to-go at row " + std::to_string(row) +
                        " leaves the range of float32; scale the rewards down");
      }
      rtg_[row] = static_cast<float>(sum);
    }
    returns_.push_back(sum);
    start = end;
  }
  num_actions_ = *std::max_element(columns_.actions.begin(), columns_.actions.end()) + 1;
}

Episode FrameStore::episode(std::int64_t i) const {
  if (i < 0 || i >= num_episodes()) {
    throw std::out_of_range(name_ + ": episode " + std::to_string(i) + " of " +
                            std::to_string(num_episodes()));
  }
  const std::int64_t start = i == 0 ? 0 : columns_.episode_ends[i - 1];
  return {.start = start,
          .length = columns_.episode_ends[i] - start,
          .ret = returns_[i],
          .terminated = columns_.terminated[i] != 0};
}

std::span<const std::uint8_t> FrameStore::frames() const {
  return {frames_.data, static_cast<std::size_t>(num_transitions() * kFrameBytes)};
}

}  // namespace dmamba::data
