// Training segments, drawn as the paper's code draws them.
//
// Decision Mamba (arXiv 2403.19925), code of the author's repository: a trajectory is drawn with
// probability proportional to its length, then a start uniformly within it; the segment runs from
// the start for up to K steps and is padded on the left to K. Trajectory and start are independent
// draws: an episode's last steps are as likely starts as any, so short segments occur.
//
// Every sample is a function of (seed, step, sample index) alone, through Philox in integer
// arithmetic. Prefetch threads, several ranks and a resumed run thus draw the same segments.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dmamba/common/philox.h"
#include "dmamba/data/trajectory_store.h"

namespace dmamba::data {

struct SamplerOptions {
  std::int64_t batch_size = 64;      ///< segments a step, over all ranks; 1 to 2^32
  std::int64_t context_length = 20;  ///< K, timesteps a segment
  std::uint64_t seed = 0;
  /// What stands before a segment shorter than K. The mask is false there either way.
  ///   false: zeros in every field.
  ///   true:  as the author's code: a raw state of zero, standardised (-mean / std); actions -10;
  ///          returns-to-go and timesteps 0.
  bool paper_padding = false;
  double rtg_scale = 1.0;            ///< returns-to-go are divided by it; finite, > 0
  std::vector<float> state_mean;     ///< (state_dim,); states become (state - mean) / std
  std::vector<float> state_std;      ///< (state_dim,), > 0
  std::int64_t max_timestep = 1000;  ///< timesteps are capped at max_timestep - 1
};

/// A piece of one episode: its transitions [start, start + length), counted within the episode.
struct Segment {
  std::int64_t episode;
  std::int64_t start;
  std::int64_t length;  ///< 1 to K; less than K where the episode ends first

  bool operator==(const Segment&) const = default;
};

/// Where a batch is written: contiguous, row-major, owned by the caller; none may be null.
struct BatchView {
  float* states;            ///< (batch, K, state_dim), standardised
  float* actions;           ///< (batch, K, act_dim)
  float* returns_to_go;     ///< (batch, K, 1), divided by rtg_scale
  std::int64_t* timesteps;  ///< (batch, K), steps since the episode's start, capped
  bool* mask;               ///< (batch, K), false at padding
};

/// Draws batches of segments from a store. Const members may be called from any number of threads
/// and allocate nothing.
class SegmentSampler {
 public:
  /// Throws DataError where K exceeds the longest episode, ConfigError where an option is out of
  /// range or the statistics do not have state_dim entries.
  SegmentSampler(std::shared_ptr<const TrajectoryStore> store, SamplerOptions options);

  /// The segment that sample `index` of `step` is. Throws std::out_of_range unless
  /// 0 <= index < batch_size.
  Segment segment(std::uint64_t step, std::int64_t index) const;

  /// Writes the whole batch of `step`: batch_size samples.
  void sample(std::uint64_t step, const BatchView& out) const;

  /// Writes samples [first, first + count) of `step` to rows 0 to count - 1 of `out`: one rank's
  /// share. Throws std::out_of_range where the range leaves the batch.
  void sample_range(std::uint64_t step, std::int64_t first, std::int64_t count,
                    const BatchView& out) const;

  /// Copies the whole recording as batches hold it: states (transitions, state_dim) standardised,
  /// actions (transitions, act_dim), returns-to-go (transitions,) scaled.
  void read_all(float* states, float* actions, float* returns_to_go) const;

  /// What stands in a batch before a short segment: a state (state_dim,), and every component of an
  /// action.
  const std::vector<float>& padding_state() const { return padding_state_; }
  float padding_action() const;

  const SamplerOptions& options() const { return options_; }
  const TrajectoryStore& store() const { return *store_; }

 private:
  void write(const Segment& segment, std::int64_t row, const BatchView& out) const;
  void normalise(std::int64_t count, float* states, float* returns_to_go) const;
  void write_padding(std::int64_t row, std::int64_t count, const BatchView& out) const;

  std::shared_ptr<const TrajectoryStore> store_;
  SamplerOptions options_;
  common::Philox random_;
  std::vector<std::int64_t> starts_;  // (episodes + 1,) first transition of each, then their total
  std::vector<float> padding_state_;  // (state_dim,)
};

}  // namespace dmamba::data
