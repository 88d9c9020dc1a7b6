// Episodes and returns-to-go of a recording that comes in pieces: it need not be in memory whole.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dmamba/data/episode_store.h"

namespace dmamba::data {

/// Tells from the flags of the rows, given in order, where episodes end.
class EpisodeFinder {
 public:
  /// The flags of the next rows.
  void add(std::span<const std::uint8_t> terminals, std::span<const std::uint8_t> timeouts);

  std::int64_t rows() const { return rows_; }                ///< that were given
  std::int64_t dropped() const { return rows_ - covered_; }  ///< of them, after the last end

  /// The whole episodes, without their returns. Throws DataError, opening with `name`, where none
  /// has ended.
  std::vector<Episode> take(const std::string& name);

 private:
  std::vector<Episode> episodes_;
  std::int64_t rows_ = 0;
  std::int64_t covered_ = 0;  // rows of whole episodes
};

/// Goes backwards over some rows of an episode: rtg[i] becomes rewards[i] + ... + the last reward +
/// `after`, the sum of the rewards that follow. Returns the sum from the first of the rows on.
/// Throws DataError, opening with `name` and naming the row (`first_row` is that of rewards[0]),
/// where a sum leaves float32.
double sum_returns(const std::string& name, std::span<const float> rewards, std::int64_t first_row,
                   double after, std::span<float> rtg);

}  // namespace dmamba::data
