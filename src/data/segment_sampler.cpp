// Drawing segments and writing them as padded, standardised batches.
#include "dmamba/data/segment_sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr float kPaperActionPadding = -10.0f;

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw ConfigError("SegmentSampler: " + message);
  }
}

void validate(const SamplerOptions& options, std::int64_t state_dim) {
  require_sampling_options("SegmentSampler", options.batch_size, options.context_length,
                           options.max_timestep, options.rtg_scale);
  require(
      static_cast<std::int64_t>(options.state_mean.size()) == state_dim &&
          static_cast<std::int64_t>(options.state_std.size()) == state_dim,
      "state_mean and state_std must have the dataset's state_dim = " + std::to_string(state_dim) +
          " entries, got " + std::to_string(options.state_mean.size()) + " and " +
          std::to_string(options.state_std.size()));
  for (std::int64_t i = 0; i < state_dim; ++i) {
    require(std::isfinite(options.state_mean[i]), "state_mean[" + std::to_string(i) +
                                                      "] must be finite, got " +
                                                      std::to_string(options.state_mean[i]));
    require(std::isfinite(options.state_std[i]) && options.state_std[i] > 0.0f,
            "state_std[" + std::to_string(i) + "] must be a positive number, got " +
                std::to_string(options.state_std[i]));
  }
}

}  // namespace

SegmentSampler::SegmentSampler(std::shared_ptr<const TrajectoryStore> store, SamplerOptions options)
    : store_(std::move(store)), options_(std::move(options)), random_{options_.seed} {
  validate(options_, store_->state_dim());
  require_context_fits(*store_, options_.context_length);
  starts_.reserve(store_->num_episodes() + 1);
  for (std::int64_t i = 0; i < store_->num_episodes(); ++i) {
    starts_.push_back(store_->episode(i).start);
  }
  starts_.push_back(store_->num_transitions());
  padding_state_.assign(store_->state_dim(), 0.0f);
  if (options_.paper_padding) {
    for (std::size_t i = 0; i < padding_state_.size(); ++i) {
      padding_state_[i] = -options_.state_mean[i] / options_.state_std[i];
    }
  }
}

Segment SegmentSampler::segment(std::uint64_t step, std::int64_t index) const {
  if (index < 0 || index >= options_.batch_size) {
    throw std::out_of_range("SegmentSampler: sample " + std::to_string(index) + " of a batch of " +
                            std::to_string(options_.batch_size));
  }
  const common::PhiloxBlock draw =
      random_(step, static_cast<std::uint32_t>(index), common::PhiloxPurpose::kSegment);
  // A uniform transition's episode is an episode drawn by length.
  const auto transition =
      static_cast<std::int64_t>(common::bounded(draw.bits64(0), starts_.back()));
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), transition);
  const std::int64_t episode = after - starts_.begin() - 1;
  const std::int64_t episode_length = starts_[episode + 1] - starts_[episode];
  const auto start = static_cast<std::int64_t>(common::bounded(draw.bits64(1), episode_length));
  return {.episode = episode,
          .start = start,
          .length = std::min(options_.context_length, episode_length - start)};
}

void SegmentSampler::sample(std::uint64_t step, const BatchView& out) const {
  sample_range(step, 0, options_.batch_size, out);
}

void SegmentSampler::sample_range(std::uint64_t step, std::int64_t first, std::int64_t count,
                                  const BatchView& out) const {
  if (first < 0 || count < 0 || first > options_.batch_size - count) {
    throw std::out_of_range("SegmentSampler: " + std::to_string(count) + " samples from " +
                            std::to_string(first) + " on leave the batch of " +
                            std::to_string(options_.batch_size));
  }
  for (std::int64_t row = 0; row < count; ++row) {
    write(segment(step, first + row), row, out);
  }
}

void SegmentSampler::write(const Segment& segment, std::int64_t row, const BatchView& out) const {
  const std::int64_t state_dim = store_->state_dim();
  const std::int64_t padding = options_.context_length - segment.length;
  const std::int64_t begin = row * options_.context_length + padding;
  write_padding(row, padding, out);

  float* states = out.states + begin * state_dim;
  float* rtg = out.returns_to_go + begin;
  store_->read(starts_[segment.episode] + segment.start, segment.length, states,
               out.actions + begin * store_->act_dim(), nullptr, rtg);
  normalise(segment.length, states, rtg);
  for (std::int64_t t = 0; t < segment.length; ++t) {
    out.timesteps[begin + t] = std::min(segment.start + t, options_.max_timestep - 1);
    out.mask[begin + t] = true;
  }
}

void SegmentSampler::normalise(std::int64_t count, float* states, float* returns_to_go) const {
  const std::int64_t state_dim = store_->state_dim();
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t i = 0; i < state_dim; ++i) {
      float& value = states[t * state_dim + i];
      value = (value - options_.state_mean[i]) / options_.state_std[i];
    }
    returns_to_go[t] = static_cast<float>(returns_to_go[t] / options_.rtg_scale);
  }
}

void SegmentSampler::read_all(float* states, float* actions, float* returns_to_go) const {
  store_->read(0, store_->num_transitions(), states, actions, nullptr, returns_to_go);
  normalise(store_->num_transitions(), states, returns_to_go);
}

float SegmentSampler::padding_action() const {
  return options_.paper_padding ? kPaperActionPadding : 0.0f;
}

void SegmentSampler::write_padding(std::int64_t row, std::int64_t count,
                                   const BatchView& out) const {
  const std::int64_t state_dim = store_->state_dim();
  const std::int64_t begin = row * options_.context_length;
  for (std::int64_t t = 0; t < count; ++t) {
    std::copy(padding_state_.begin(), padding_state_.end(), out.states + (begin + t) * state_dim);
  }
  std::fill_n(out.actions + begin * store_->act_dim(), count * store_->act_dim(), padding_action());
  std::fill_n(out.returns_to_go + begin, count, 0.0f);
  std::fill_n(out.timesteps + begin, count, 0);
  std::fill_n(out.mask + begin, count, false);
}

}  // namespace dmamba::data
