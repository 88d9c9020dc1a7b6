// Stores made of another: some of its episodes, or its rewards at other times.
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

/// A store of these episodes of another, in the order given; its transitions are copied. Throws
/// DataError where there are none, std::out_of_range for a number that is not an episode's.
std::shared_ptr<MemoryStore> select_episodes(const TrajectoryStore& store,
                                             const std::vector<std::int64_t>& episodes);

/// The same episodes with delayed rewards: all of an episode's come with its last step (the sparse
/// setting of the Decision Transformer, arXiv 2106.01345, section 5.3), so that the return-to-go is
/// the return at every step.
std::shared_ptr<MemoryStore> delay_rewards(const TrajectoryStore& store);

}  // namespace dmamba::data
