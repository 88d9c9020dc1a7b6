// What a dataset says about itself: normalisation statistics, and the figures that `dmamba data
// info` prints and default targets are taken from.
#pragma once

#include <cstdint>
#include <vector>

#include "dmamba/data/trajectory_store.h"

namespace dmamba::data {

/// Per-component mean and scale of the states; both (state_dim,).
struct StateStatistics {
  std::vector<float> mean;
  std::vector<float> std;  ///< population standard deviation + 1e-6, as the author's code; > 0
};

/// Statistics over all transitions of the store, in two passes accumulated in double.
StateStatistics state_statistics(const TrajectoryStore& store);

/// Figures of a dataset. Lengths in transitions, returns raw and undiscounted.
struct Summary {
  std::int64_t episodes = 0;
  std::int64_t transitions = 0;
  std::int64_t dropped = 0;     ///< transitions of partial episodes, not counted above
  std::int64_t terminated = 0;  ///< episodes ended by the environment
  std::int64_t truncated = 0;   ///< episodes cut by the time limit
  std::int64_t length_min = 0;
  double length_mean = 0.0;
  std::int64_t length_max = 0;
  double return_min = 0.0;
  double return_mean = 0.0;
  double return_std = 0.0;  ///< population standard deviation over episodes
  double return_p90 = 0.0;  ///< 90th percentile, linear between neighbours (numpy's default)
  double return_max = 0.0;
};

/// Summarises the store's episodes.
Summary summarize(const EpisodeStore& store);

}  // namespace dmamba::data
