// Training segments of recorded games.
//
// As the author's Atari code (github.com/Toshihiro-Ota/decision-mamba): a transition is drawn
// uniformly, and the segment is the K transitions from it on, moved back where the episode ends
// first. His segments of an episode shorter than K reach into the one before; ours are padded on
// the left. Every sample is a function of (seed, step, index) alone, as in segment_sampler.h.
#pragma once

#include <cstdint>
#include <memory>

#include "dmamba/common/philox.h"
#include "dmamba/data/frame_store.h"
#include "dmamba/data/segment_sampler.h"

namespace dmamba::data {

struct FrameSamplerOptions {
  std::int64_t batch_size = 128;     ///< segments a step; 1 to 2^32
  std::int64_t context_length = 30;  ///< K, timesteps a segment
  std::uint64_t seed = 0;
  double rtg_scale = 1.0;             ///< returns-to-go are divided by it; finite, > 0
  std::int64_t max_timestep = 10000;  ///< timesteps are capped at max_timestep - 1
};

/// Where a batch is written: contiguous, row-major, owned by the caller; none may be null. Before a
/// short segment stand zeros in every field.
struct FrameBatchView {
  /// (batch, 3 + K, 84, 84): the frames of a segment and the three before it, zero before the
  /// episode's start: the stack of step t is strips[:, t : t + 4].
  std::uint8_t* strips;
  std::int64_t* actions;    ///< (batch, K)
  float* returns_to_go;     ///< (batch, K, 1), divided by rtg_scale
  std::int64_t* timesteps;  ///< (batch,), of the segment's first step, counted in its episode
  bool* mask;               ///< (batch, K), false at padding
};

/// Draws batches of segments from a store. Const members may be called from any number of threads
/// and allocate nothing.
class FrameSampler {
 public:
  /// Throws DataError where K exceeds the longest episode, ConfigError where an option is out of
  /// range.
  FrameSampler(std::shared_ptr<const FrameStore> store, FrameSamplerOptions options);

  /// The segment that sample `index` of `step` is: of length min(K, the episode's). Throws
  /// std::out_of_range unless 0 <= index < batch_size.
  Segment segment(std::uint64_t step, std::int64_t index) const;

  /// Writes the whole batch of `step`: batch_size samples.
  void sample(std::uint64_t step, const FrameBatchView& out) const;

  /// Writes sample `index` of `step` to row `row` of `out`: several threads, and several ranks, can
  /// share a batch.
  void sample_row(std::uint64_t step, std::int64_t index, std::int64_t row,
                  const FrameBatchView& out) const;

  const FrameSamplerOptions& options() const { return options_; }
  const FrameStore& store() const { return *store_; }

 private:
  void write(const Segment& segment, std::int64_t row, const FrameBatchView& out) const;

  std::shared_ptr<const FrameStore> store_;
  FrameSamplerOptions options_;
  common::Philox random_;
};

}  // namespace dmamba::data
