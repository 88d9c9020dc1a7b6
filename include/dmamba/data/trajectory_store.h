// Where the recorded episodes are kept.
//
// TrajectoryStore is the seam between readers (which fill one) and the sampler and the statistics
// (which read one). MemoryStore holds everything in memory; a store that stays on disk can stand in
// its place. All stores are immutable once built, and their const members may be called from any
// number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dmamba/data/episode_store.h"

namespace dmamba::data {

/// Episodes of (state, action, reward, return-to-go), in the order in which they were recorded.
class TrajectoryStore : public EpisodeStore {
 public:
  virtual std::int64_t state_dim() const = 0;  ///< components of a state, at least 1
  virtual std::int64_t act_dim() const = 0;    ///< components of an action, at least 1

  /// Copies transitions [first, first + count), whatever episodes they belong to. Any pointer may
  /// be null: that field is not read.
  ///   states:  (count, state_dim) float32, as recorded
  ///   actions: (count, act_dim) float32, as recorded
  ///   rewards: (count,) float32, raw
  ///   rtg:     (count,) float32, raw undiscounted sum of the rewards from here to the episode's
  ///   end
  /// Throws std::out_of_range where the range leaves the store.
  virtual void read(std::int64_t first, std::int64_t count, float* states, float* actions,
                    float* rewards, float* rtg) const = 0;
};

/// Recorded transitions as flat arrays, before validation. N transitions; row-major.
/// The members are called as D4RL calls its datasets, and so do the error messages.
struct TransitionArrays {
  std::int64_t state_dim = 0;
  std::int64_t act_dim = 0;
  std::vector<float> observations;      ///< (N, state_dim)
  std::vector<float> actions;           ///< (N, act_dim)
  std::vector<float> rewards;           ///< (N,)
  std::vector<std::uint8_t> terminals;  ///< (N,) nonzero: the environment ended the episode here
  std::vector<std::uint8_t> timeouts;   ///< (N,) nonzero: the time limit cut the episode here
};

/// A store that holds everything in memory.
class MemoryStore final : public TrajectoryStore {
 public:
  /// Validates the arrays and takes them over. An episode ends where `terminals` or `timeouts` is
  /// set; what follows the last end is a partial episode, dropped and counted. `name` opens every
  /// error message. Throws DataError where a size is below 1, there are no transitions, the fields
  /// differ in length, a value is NaN or infinite, no episode ends, or a return-to-go leaves
  /// float32.
  static std::shared_ptr<MemoryStore> create(TransitionArrays arrays, std::string name,
                                             Metadata metadata = {});

  std::int64_t state_dim() const override { return arrays_.state_dim; }
  std::int64_t act_dim() const override { return arrays_.act_dim; }
  std::int64_t num_transitions() const override {
    return static_cast<std::int64_t>(arrays_.rewards.size());
  }
  std::int64_t num_episodes() const override { return static_cast<std::int64_t>(episodes_.size()); }
  std::int64_t dropped_transitions() const override { return dropped_; }
  Episode episode(std::int64_t i) const override;
  void read(std::int64_t first, std::int64_t count, float* states, float* actions, float* rewards,
            float* rtg) const override;
  const std::string& name() const override { return name_; }
  const Metadata& metadata() const override { return metadata_; }

 private:
  MemoryStore(TransitionArrays arrays, std::string name, Metadata metadata);
  void find_episodes();
  void sum_returns();

  TransitionArrays arrays_;  // the flags are released once the episodes are known
  std::vector<float> rtg_;   // (N,)
  std::vector<Episode> episodes_;
  std::int64_t dropped_ = 0;
  std::string name_;
  Metadata metadata_;
};

}  // namespace dmamba::data
