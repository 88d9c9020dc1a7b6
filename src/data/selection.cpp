// Fisher and Yates' shuffle, as far as it is needed, from counter-based draws.
#include "dmamba/data/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "dmamba/common/philox.h"

namespace dmamba::data {

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

std::shared_ptr<MemoryStore> keep_episodes(const TrajectoryStore& store,
                                           const std::vector<std::int64_t>& episodes) {
  std::int64_t rows = 0;
  for (const std::int64_t i : episodes) rows += store.episode(i).length;
  TransitionArrays arrays;
  arrays.state_dim = store.state_dim();
  arrays.act_dim = store.act_dim();
  arrays.observations.resize(rows * store.state_dim());
  arrays.actions.resize(rows * store.act_dim());
  arrays.rewards.resize(rows);
  arrays.terminals.assign(rows, 0);
  arrays.timeouts.assign(rows, 0);
  std::int64_t row = 0;
  for (const std::int64_t i : episodes) {
    const Episode episode = store.episode(i);
    store.read(episode.start, episode.length, arrays.observations.data() + row * store.state_dim(),
               arrays.actions.data() + row * store.act_dim(), arrays.rewards.data() + row, nullptr);
    row += episode.length;
    (episode.terminated ? arrays.terminals : arrays.timeouts)[row - 1] = 1;
  }
  return MemoryStore::create(std::move(arrays), store.name(), store.metadata());
}

}  // namespace dmamba::data
