// The wording of the errors about arrays of transitions and about sampling.
#include "data/validation.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw ConfigError(message);
  }
}

}  // namespace

void require_equal_lengths(const std::string& source, const std::vector<FieldLength>& fields) {
  const bool equal = std::all_of(fields.begin(), fields.end(), [&](const FieldLength& field) {
    return field.second == fields.front().second;
  });
  if (!equal) {
    std::string list;
    for (const auto& [name, rows] : fields) {
      list += (list.empty() ? "" : ", ") + name + " " + std::to_string(rows);
    }
    throw DataError(source + ": the fields differ in length (rows: " + list +
                    "); every field needs one row per transition");
  }
  if (fields.front().second < 1) {
    throw DataError(source + ": the dataset is empty (" + fields.front().first + " has 0 rows)");
  }
}

void require_episode(const EpisodeStore& store, std::int64_t i) {
  if (i >= 0 && i < store.num_episodes()) return;
  throw std::out_of_range(store.name() + ": episode " + std::to_string(i) + " of " +
                          std::to_string(store.num_episodes()));
}

void require_range(const EpisodeStore& store, std::int64_t first, std::int64_t count) {
  if (first >= 0 && count >= 0 && first <= store.num_transitions() - count) return;
  throw std::out_of_range(store.name() + ": " + std::to_string(count) + " transitions from " +
                          std::to_string(first) + " on leave the store's " +
                          std::to_string(store.num_transitions()));
}

void FiniteCheck::add(std::span<const float> values) {
  const auto is_bad = [](float value) { return !std::isfinite(value); };
  // Counting is many times faster than looking for the first: nearly always there is none.
  const auto bad = std::count_if(values.begin(), values.end(), is_bad);
  if (bad > 0 && bad_ == 0) {
    const auto first = std::find_if(values.begin(), values.end(), is_bad);
    first_ = seen_ + (first - values.begin());
    nan_ = std::isnan(*first);
  }
  bad_ += bad;
  seen_ += static_cast<std::int64_t>(values.size());
}

void FiniteCheck::require(const std::string& source, const std::string& field,
                          std::int64_t columns) const {
  if (bad_ == 0) return;
  std::string place = field + " row " + std::to_string(first_ / columns);
  if (columns > 1) {
    place += ", column " + std::to_string(first_ % columns);
  }
  throw DataError(source + ": " + place + " is " + (nan_ ? "NaN" : "infinite") + " (" +
                  std::to_string(bad_) + " such values in the field); remove or repair these rows");
}

void require_finite(const std::string& source, const std::string& field,
                    std::span<const float> values, std::int64_t columns) {
  FiniteCheck check;
  check.add(values);
  check.require(source, field, columns);
}

void require_sampling_options(const std::string& sampler, std::int64_t batch_size,
                              std::int64_t context_length, std::int64_t max_timestep,
                              double rtg_scale) {
  constexpr std::int64_t kMostSamples = std::int64_t{1}
                                        << 32;  // the index is a 32-bit counter word
  require(batch_size >= 1 && batch_size <= kMostSamples,
          sampler + ": batch_size must be 1 to 2^32, got " + std::to_string(batch_size));
  require(context_length >= 1,
          sampler + ": context_length must be at least 1, got " + std::to_string(context_length));
  require(max_timestep >= 1,
          sampler + ": max_timestep must be at least 1, got " + std::to_string(max_timestep));
  require(std::isfinite(rtg_scale) && rtg_scale > 0.0,
          sampler + ": rtg_scale must be a positive number, got " + std::to_string(rtg_scale));
}

void require_context_fits(const EpisodeStore& store, std::int64_t context_length) {
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < store.num_episodes(); ++i) {
    longest = std::max(longest, store.episode(i).length);
  }
  if (context_length > longest) {
    throw DataError(store.name() + ": context length K = " + std::to_string(context_length) +
                    " exceeds the longest episode, " + std::to_string(longest) +
                    " steps; choose K of at most " + std::to_string(longest));
  }
}

}  // namespace dmamba::data
