// MemoryStore: validation, episodes, returns-to-go.
#include "dmamba/data/trajectory_store.h"

#include <algorithm>
#include <span>
#include <utility>

#include "data/episode_finder.h"
#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

std::int64_t rows_of(const std::string& source, const std::string& field, std::size_t size,
                     std::int64_t columns) {
  const auto values = static_cast<std::int64_t>(size);
  if (columns < 1) {
    throw DataError(source + ": " + field + " must have at least 1 column, got " +
                    std::to_string(columns));
  }
  if (values % columns != 0) {
    throw DataError(source + ": " + field + " has " + std::to_string(values) +
                    " values, not a multiple of its " + std::to_string(columns) + " columns");
  }
  return values / columns;
}

void validate(const TransitionArrays& arrays, const std::string& source) {
  require_equal_lengths(
      source, {{"observations",
                rows_of(source, "observations", arrays.observations.size(), arrays.state_dim)},
               {"actions", rows_of(source, "actions", arrays.actions.size(), arrays.act_dim)},
               {"rewards", static_cast<std::int64_t>(arrays.rewards.size())},
               {"terminals", static_cast<std::int64_t>(arrays.terminals.size())},
               {"timeouts", static_cast<std::int64_t>(arrays.timeouts.size())}});
  require_finite(source, "observations", arrays.observations, arrays.state_dim);
  require_finite(source, "actions", arrays.actions, arrays.act_dim);
  require_finite(source, "rewards", arrays.rewards, 1);
}

void copy_rows(const std::vector<float>& from, std::int64_t first, std::int64_t count,
               std::int64_t columns, float* to) {
  if (to != nullptr) {
    std::copy_n(from.data() + first * columns, count * columns, to);
  }
}

}  // namespace

std::shared_ptr<MemoryStore> MemoryStore::create(TransitionArrays arrays, std::string name,
                                                 Metadata metadata) {
  validate(arrays, name);
  std::shared_ptr<MemoryStore> store(
      new MemoryStore(std::move(arrays), std::move(name), std::move(metadata)));
  store->find_episodes();
  store->sum_returns();
  return store;
}

MemoryStore::MemoryStore(TransitionArrays arrays, std::string name, Metadata metadata)
    : arrays_(std::move(arrays)), name_(std::move(name)), metadata_(std::move(metadata)) {}

void MemoryStore::find_episodes() {
  EpisodeFinder finder;
  finder.add(arrays_.terminals, arrays_.timeouts);
  episodes_ = finder.take(name_);
  dropped_ = finder.dropped();
  const std::int64_t rows = finder.rows() - dropped_;
  arrays_.observations.resize(rows * arrays_.state_dim);
  arrays_.actions.resize(rows * arrays_.act_dim);
  arrays_.rewards.resize(rows);
  std::vector<std::uint8_t>().swap(arrays_.terminals);
  std::vector<std::uint8_t>().swap(arrays_.timeouts);
}

void MemoryStore::sum_returns() {
  rtg_.resize(arrays_.rewards.size());
  for (Episode& e : episodes_) {
    const std::span rewards(arrays_.rewards.data() + e.start, static_cast<std::size_t>(e.length));
    e.ret = data::sum_returns(name_, rewards, e.start, 0.0,
                              {rtg_.data() + e.start, static_cast<std::size_t>(e.length)});
  }
}

Episode MemoryStore::episode(std::int64_t i) const {
  require_episode(*this, i);
  return episodes_[i];
}

void MemoryStore::read(std::int64_t first, std::int64_t count, float* states, float* actions,
                       float* rewards, float* rtg) const {
  require_range(*this, first, count);
  copy_rows(arrays_.observations, first, count, arrays_.state_dim, states);
  copy_rows(arrays_.actions, first, count, arrays_.act_dim, actions);
  copy_rows(arrays_.rewards, first, count, 1, rewards);
  copy_rows(rtg_, first, count, 1, rtg);
}

}  // namespace dmamba::data
