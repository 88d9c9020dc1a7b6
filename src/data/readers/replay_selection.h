// Which episodes of a recording are read.
#pragma once

#include <cstdint>
#include <vector>

#include "dmamba/data/frame_store.h"

namespace dmamba::data {

/// How many episodes of each shard are chosen, from its first on. `lengths` holds those of every
/// shard's episodes in transitions, shards ascending.
///
/// As create_dataset of the Decision Transformer (github.com/kzl/decision-transformer, atari): a
/// visit goes to a shard drawn uniformly and takes its next trajectories_per_buffer episodes;
/// visits end with the episode that completes `transitions`, or once all are taken. Ours draws
/// among the shards that have some left, by Philox.
std::vector<std::int64_t> choose_episodes(const std::vector<std::vector<std::int64_t>>& lengths,
                                          const ReplaySelection& selection);

}  // namespace dmamba::data
