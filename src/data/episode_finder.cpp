// See episode_finder.h.
#include "data/episode_finder.h"

#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba::data {

void EpisodeFinder::add(std::span<const std::uint8_t> terminals,
                        std::span<const std::uint8_t> timeouts) {
  for (std::size_t i = 0; i < terminals.size(); ++i, ++rows_) {
    if (terminals[i] == 0 && timeouts[i] == 0) continue;
    episodes_.push_back({.start = covered_,
                         .length = rows_ + 1 - covered_,
                         .ret = 0.0,
                         .terminated = terminals[i] != 0});
    covered_ = rows_ + 1;
  }
}

std::vector<Episode> EpisodeFinder::take(const std::string& name) {
  if (episodes_.empty()) {
    throw DataError(name + ": no episode ends: terminals and timeouts are false in all " +
                    std::to_string(rows_) + " rows; set one of them at each episode's last row");
  }
  return std::move(episodes_);
}

double sum_returns(const std::string& name, std::span<const float> rewards, std::int64_t first_row,
                   double after, std::span<float> rtg) {
  double sum = after;
  for (std::size_t i = rewards.size(); i-- > 0;) {
    sum += rewards[i];
    if (std::abs(sum) > std::numeric_limits<float>::max()) {
      throw DataError(name + ": the return-to-go at row " +
                      std::to_string(first_row + static_cast<std::int64_t>(i)) +
                      " leaves the range of float32; scale the rewards down");
    }
    rtg[i] = static_cast<float>(sum);
  }
  return sum;
}

}  // namespace dmamba::data
