// State statistics and dataset figures.
#include "dmamba/data/statistics.h"

#include <algorithm>
#include <cmath>

namespace dmamba::data {
namespace {

constexpr std::int64_t kBlock = 4096;    // transitions read at a time: a store may lie on disk
constexpr double kSmallestScale = 1e-6;  // keeps a constant component from dividing by zero

// Calls visit(component, value) for every component of every state, in order.
template <typename Visit>
void for_each_component(const TrajectoryStore& store, Visit visit) {
  const std::int64_t state_dim = store.state_dim();
  std::vector<float> block(kBlock * state_dim);
  for (std::int64_t first = 0; first < store.num_transitions(); first += kBlock) {
    const std::int64_t count = std::min(kBlock, store.num_transitions() - first);
    store.read(first, count, block.data(), nullptr, nullptr, nullptr);
    for (std::int64_t row = 0; row < count; ++row) {
      for (std::int64_t component = 0; component < state_dim; ++component) {
        visit(component, block[row * state_dim + component]);
      }
    }
  }
}

// sorted: ascending, not empty; fraction in [0, 1].
double percentile(const std::vector<double>& sorted, double fraction) {
  const double position = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

StateStatistics state_statistics(const TrajectoryStore& store) {
  const auto rows = static_cast<double>(store.num_transitions());
  std::vector<double> mean(store.state_dim(), 0.0);
  std::vector<double> variance(store.state_dim(), 0.0);
  for_each_component(store, [&](std::int64_t i, double value) { mean[i] += value; });
  for (double& sum : mean) {
    sum /= rows;
  }
  for_each_component(store, [&](std::int64_t i, double value) {
    variance[i] += (value - mean[i]) * (value - mean[i]);
  });
  StateStatistics result;
  for (std::size_t i = 0; i < mean.size(); ++i) {
    result.mean.push_back(static_cast<float>(mean[i]));
    result.std.push_back(static_cast<float>(std::sqrt(variance[i] / rows) + kSmallestScale));
  }
  return result;
}

Summary summarize(const EpisodeStore& store) {
  Summary result;
  result.episodes = store.num_episodes();
  result.transitions = store.num_transitions();
  result.dropped = store.dropped_transitions();
  result.length_min = store.episode(0).length;
  std::vector<double> returns;
  returns.reserve(result.episodes);
  for (std::int64_t i = 0; i < result.episodes; ++i) {
    const Episode episode = store.episode(i);
    returns.push_back(episode.ret);
    (episode.terminated ? result.terminated : result.truncated) += 1;
    result.length_min = std::min(result.length_min, episode.length);
    result.length_max = std::max(result.length_max, episode.length);
    result.return_mean += episode.ret;
  }
  const auto episodes = static_cast<double>(result.episodes);
  result.length_mean = static_cast<double>(result.transitions) / episodes;
  result.return_mean /= episodes;
  for (const double value : returns) {
    result.return_std += (value - result.return_mean) * (value - result.return_mean);
  }
  result.return_std = std::sqrt(result.return_std / episodes);
  std::sort(returns.begin(), returns.end());
  result.return_min = returns.front();
  result.return_p90 = percentile(returns, 0.9);
  result.return_max = returns.back();
  return result;
}

}  // namespace dmamba::data
