// Drawing segments of games and writing them as strips of frames.
#include "dmamba/data/frame_sampler.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "data/validation.h"

namespace dmamba::data {
namespace {

constexpr std::int64_t kBefore = kFrameStack - 1;  // frames of a strip before the segment

}  // namespace

FrameSampler::FrameSampler(std::shared_ptr<const FrameStore> store, FrameSamplerOptions options)
    : store_(std::move(store)), options_(options), random_{options_.seed} {
  require_sampling_options("FrameSampler", options_.batch_size, options_.context_length,
                           options_.max_timestep, options_.rtg_scale);
  require_context_fits(*store_, options_.context_length);
}

Segment FrameSampler::segment(std::uint64_t step, std::int64_t index) const {
  if (index < 0 || index >= options_.batch_size) {
    throw std::out_of_range("FrameSampler: sample " + std::to_string(index) + " of a batch of " +
                            std::to_string(options_.batch_size));
  }
  const common::PhiloxBlock draw =
      random_(step, static_cast<std::uint32_t>(index), common::PhiloxPurpose::kSegment);
  const auto transition =
      static_cast<std::int64_t>(common::bounded(draw.bits64(0), store_->num_transitions()));
  const std::span<const std::int64_t> ends = store_->episode_ends();
  const std::int64_t episode =
      std::upper_bound(ends.begin(), ends.end(), transition) - ends.begin();
  const std::int64_t start = episode == 0 ? 0 : ends[episode - 1];
  const std::int64_t episode_length = ends[episode] - start;
  const std::int64_t length = std::min(options_.context_length, episode_length);
  return {.episode = episode,
          .start = std::min(transition - start, episode_length - length),
          .length = length};
}

void FrameSampler::sample(std::uint64_t step, const FrameBatchView& out) const {
  for (std::int64_t row = 0; row < options_.batch_size; ++row) sample_row(step, row, row, out);
}

void FrameSampler::sample_row(std::uint64_t step, std::int64_t index, std::int64_t row,
                              const FrameBatchView& out) const {
  write(segment(step, index), row, out);
}

void FrameSampler::write(const Segment& segment, std::int64_t row,
                         const FrameBatchView& out) const {
  const std::int64_t K = options_.context_length;
  const std::int64_t padding = K - segment.length;
  const std::int64_t episode_start =
      segment.episode == 0 ? 0 : store_->episode_ends()[segment.episode - 1];
  const std::int64_t from = episode_start + segment.start;

  const std::int64_t history = std::min(kBefore, segment.start);
  const std::int64_t blank = kBefore - history + padding;
  std::uint8_t* strip = out.strips + row * (kBefore + K) * kFrameBytes;
  std::memset(strip, 0, blank * kFrameBytes);
  std::memcpy(strip + blank * kFrameBytes, store_->frames().data() + (from - history) * kFrameBytes,
              (history + segment.length) * kFrameBytes);

  std::int64_t* actions = out.actions + row * K;
  float* rtg = out.returns_to_go + row * K;
  bool* mask = out.mask + row * K;
  std::fill_n(actions, padding, 0);
  std::fill_n(rtg, padding, 0.0f);
  std::fill_n(mask, padding, false);
  for (std::int64_t t = 0; t < segment.length; ++t) {
    actions[padding + t] = store_->actions()[from + t];
    rtg[padding + t] = static_cast<float>(store_->returns_to_go()[from + t] / options_.rtg_scale);
    mask[padding + t] = true;
  }
  out.timesteps[row] = std::min(segment.start, options_.max_timestep - 1);
}

}  // namespace dmamba::data
