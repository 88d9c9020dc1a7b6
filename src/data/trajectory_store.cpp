// MemoryStore: validation, episodes, returns-to-go.
#include "dmamba/data/trajectory_store.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

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
  const std::int64_t rows = num_transitions();
  std::int64_t start = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (arrays_.terminals[row] != 0 || arrays_.timeouts[row] != 0) {
      episodes_.push_back({.start = start,
                           .length = row + 1 - start,
                           .ret = 0.0,
                           .terminated = arrays_.terminals[row] != 0});
      start = row + 1;
    }
  }
  if (episodes_.empty()) {
    throw DataError(name_ + ": no episode ends: terminals and timeouts are false in all " +
                    std::to_string(rows) + " rows; set one of them at each episode's last row");
  }
  dropped_ = rows - start;
  arrays_.observations.resize(start * arrays_.state_dim);
  arrays_.actions.resize(start * arrays_.act_dim);
  arrays_.rewards.resize(start);
  std::vector<std::uint8_t>().swap(arrays_.terminals);
  std::vector<std::uint8_t>().swap(arrays_.timeouts);
}

void MemoryStore::sum_returns() {
  rtg_.resize(arrays_.rewards.size());
  for (Episode& episode : episodes_) {
    double sum = 0.0;
    for (std::int64_t row = episode.start + episode.length - 1; row >= episode.start; --row) {
      sum += arrays_.rewards[row];
      if (std::abs(sum) > std::numeric_limits<float>::max()) {
        throw DataError(name_ + ": the return-to-go at row " + std::to_string(row) +
                        " leaves the range of float32; scale the rewards down");
      }
      rtg_[row] = static_cast<float>(sum);
    }
    episode.ret = sum;
  }
}

Episode MemoryStore::episode(std::int64_t i) const {
  if (i < 0 || i >= num_episodes()) {
    throw std::out_of_range(name_ + ": episode " + std::to_string(i) + " of " +
                            std::to_string(num_episodes()));
  }
  return episodes_[i];
}

void MemoryStore::read(std::int64_t first, std::int64_t count, float* states, float* actions,
                       float* rewards, float* rtg) const {
  if (first < 0 || count < 0 || first > num_transitions() - count) {
    throw std::out_of_range(name_ + ": " + std::to_string(count) + " transitions from " +
                            std::to_string(first) + " on leave the store's " +
                            std::to_string(num_transitions()));
  }
  copy_rows(arrays_.observations, first, count, arrays_.state_dim, states);
  copy_rows(arrays_.actions, first, count, arrays_.act_dim, actions);
  copy_rows(arrays_.rewards, first, count, 1, rewards);
  copy_rows(rtg_, first, count, 1, rtg);
}

}  // namespace dmamba::data
