// Checks that stores, readers and samplers share, so that all word their errors alike.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dmamba/data/episode_store.h"

namespace dmamba::data {

/// A field's name and its number of rows.
using FieldLength = std::pair<std::string, std::int64_t>;

/// Throws DataError naming every field's length unless all are equal and at least 1.
void require_equal_lengths(const std::string& source, const std::vector<FieldLength>& fields);

/// Throws DataError naming the first row (and column, if columns > 1) of `values`, a row-major
/// (rows, columns) array, that holds NaN or infinity, and how many such values there are.
void require_finite(const std::string& source, const std::string& field,
                    const std::vector<float>& values, std::int64_t columns);

/// Throws ConfigError, opening with `sampler`, where an option that all samplers have is out of
/// range.
void require_sampling_options(const std::string& sampler, std::int64_t batch_size,
                              std::int64_t context_length, std::int64_t max_timestep,
                              double rtg_scale);

/// Throws DataError where the context is longer than the store's longest episode.
void require_context_fits(const EpisodeStore& store, std::int64_t context_length);

}  // namespace dmamba::data
