// Copies of stores, with fewer episodes or other rewards; a share of the episodes by Fisher and
// Yates' shuffle, as far as it is needed, from counter-based draws.
#include "dmamba/data/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "data/disk_store.h"
#include "dmamba/common/error.h"
#include "dmamba/common/philox.h"

namespace dmamba::data {
namespace {

/// Arrays with room for `rows` transitions.
TransitionArrays make_arrays(const TrajectoryStore& store, std::int64_t rows) {
  const std::uint64_t bytes = bytes_in_memory(rows, store.state_dim(), store.act_dim());
  if (const std::uint64_t left = free_memory(); bytes > left) {
    throw DataError(
        store.name() + ": some of its episodes, or other rewards for them, are a copy " +
        "in memory, which takes " + std::to_string(bytes >> 20) + " MiB; " +
        std::to_string(left >> 20) + " MiB are free. Choose a smaller share, or write " +
        "the episodes to a file of their own");
  }
  TransitionArrays arrays;
  arrays.state_dim = store.state_dim();
  arrays.act_dim = store.act_dim();
  arrays.observations.resize(rows * arrays.state_dim);
  arrays.actions.resize(rows * arrays.act_dim);
  arrays.rewards.resize(rows);
  arrays.terminals.resize(rows);
  arrays.timeouts.resize(rows);
  return arrays;
}

/// Copies an episode to the rows from `row` on.
void copy_episode(const TrajectoryStore& store, const Episode& episode, std::int64_t row,
                  TransitionArrays& to) {
  store.read(episode.start, episode.length, to.observations.data() + row * to.state_dim,
             to.actions.data() + row * to.act_dim, to.rewards.data() + row, nullptr);
  (episode.terminated ? to.terminals : to.timeouts)[row + episode.length - 1] = 1;
}

}  // namespace

std::vector<std::int64_t> draw_episodes(const EpisodeStore& store, double fraction,
                                        std::uint64_t seed) {
  const std::int64_t all = store.num_episodes();
  const auto share = static_cast<std::int64_t>(std::llround(fraction * static_cast<double>(all)));
  const std::int64_t count = std::clamp<std::int64_t>(share, 1, all);
  std::vector<std::int64_t> episodes(all);
  std::iota(episodes.begin(), episodes.end(), std::int64_t{0});
  const common::Philox random{seed};
  for (std::int64_t i = 0; i < count; ++i) {
    const auto draw = random(static_cast<std::uint64_t>(i), 0, common::PhiloxPurpose::kEpisode);
    const auto rest = static_cast<std::uint64_t>(all - i);
    std::swap(episodes[i],
              episodes[i + static_cast<std::int64_t>(common::bounded(draw.bits64(0), rest))]);
  }
  episodes.resize(count);
  std::sort(episodes.begin(), episodes.end());
  return episodes;
}

std::shared_ptr<MemoryStore> select_episodes(const TrajectoryStore& store,
                                             const std::vector<std::int64_t>& episodes) {
  if (episodes.empty()) throw DataError(store.name() + ": no episode is chosen");
  std::int64_t rows = 0;
  for (const std::int64_t i : episodes) rows += store.episode(i).length;
  TransitionArrays arrays = make_arrays(store, rows);
  std::int64_t row = 0;
  for (const std::int64_t i : episodes) {
    const Episode episode = store.episode(i);
    copy_episode(store, episode, row, arrays);
    row += episode.length;
  }
  return MemoryStore::create(std::move(arrays), store.name(), store.metadata());
}

std::shared_ptr<MemoryStore> delay_rewards(const TrajectoryStore& store) {
  TransitionArrays arrays = make_arrays(store, store.num_transitions());
  for (std::int64_t i = 0; i < store.num_episodes(); ++i) {
    const Episode episode = store.episode(i);
    copy_episode(store, episode, episode.start, arrays);
    std::fill_n(arrays.rewards.begin() + episode.start, episode.length, 0.0F);
    arrays.rewards[episode.start + episode.length - 1] = static_cast<float>(episode.ret);
  }
  return MemoryStore::create(std::move(arrays), store.name(), store.metadata());
}

}  // namespace dmamba::data
