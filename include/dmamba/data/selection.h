// Training on some of a store's episodes: which, and a store of those alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dmamba/data/trajectory_store.h"

namespace dmamba::data {

/// Indices of round(fraction * episodes) episodes, at least one, ascending: drawn without
/// replacement, each set of that size as likely as any other, the same for the same seed. fraction
/// is in (0, 1].
std::vector<std::int64_t> draw_episodes(const EpisodeStore& store, double fraction,
                                        std::uint64_t seed);

/// A store of the episodes with these indices, in this order, under the old name; what the others
/// held counts as neither data nor dropped. Throws DataError where there is none, std::out_of_range
/// for an index of no episode.
std::shared_ptr<MemoryStore> keep_episodes(const TrajectoryStore& store,
                                           const std::vector<std::int64_t>& episodes);

}  // namespace dmamba::data
