// Checks that stores, readers and samplers share, so that all word their errors alike.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/data/episode_store.h"

namespace dmamba::data {

/// A field's name and its number of rows.
using FieldLength = std::pair<std::string, std::int64_t>;

/// Throws DataError naming every field's length unless all are equal and at least 1.
void require_equal_lengths(const std::string& source, const std::vector<FieldLength>& fields);

/// Throws std::out_of_range unless i is an episode of the store.
void require_episode(const EpisodeStore& store, std::int64_t i);

/// Throws std::out_of_range where transitions [first, first + count) leave the store.
void require_range(const EpisodeStore& store, std::int64_t first, std::int64_t count);

/// Looks for NaN and infinity in a row-major (rows, columns) array that comes in pieces.
class FiniteCheck {
 public:
  /// The next values.
  void add(std::span<const float> values);

  /// Throws what require_finite() does, of all that was added.
  void require(const std::string& source, const std::string& field, std::int64_t columns) const;

 private:
  std::int64_t seen_ = 0;
  std::int64_t bad_ = 0;
  std::int64_t first_ = 0;  // of the bad ones: where it is, and whether it is NaN
  bool nan_ = false;
};

/// Throws DataError naming the first row (and column, if columns > 1) of `values`, a row-major
/// (rows, columns) array, that holds NaN or infinity, and how many such values there are.
void require_finite(const std::string& source, const std::string& field,
                    std::span<const float> values, std::int64_t columns);

/// Throws ConfigError, opening with `sampler`, where an option that all samplers have is out of
/// range.
void require_sampling_options(const std::string& sampler, std::int64_t batch_size,
                              std::int64_t context_length, std::int64_t max_timestep,
                              double rtg_scale);

/// Throws DataError where the context is longer than the store's longest episode.
void require_context_fits(const EpisodeStore& store, std::int64_t context_length);

}  // namespace dmamba::data
