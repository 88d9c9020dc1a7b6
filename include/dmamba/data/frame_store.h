// Recorded games: single frames, discrete actions, clipped rewards (Atari, DQN-replay).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dmamba/data/episode_store.h"

namespace dmamba::data {

constexpr std::int64_t kFrameSide = 84;                        ///< rows and columns of a frame
constexpr std::int64_t kFrameBytes = kFrameSide * kFrameSide;  ///< uint8 grey values
constexpr std::int64_t kFrameStack = 4;  ///< frames that the model sees at once

/// Which part of a DQN-replay recording is read. A shard is one `$store$_*_ckpt.N.gz` set.
struct ReplaySelection {
  std::int64_t buffers = 0;                  ///< the last so many shards by number; 0: all
  std::int64_t trajectories_per_buffer = 0;  ///< episodes a visit; 0: all of the shard
  std::int64_t transitions = 0;              ///< visits end once so many are chosen; 0: no limit
  std::uint64_t seed = 0;                    ///< of the visits' order
  std::string game = {};  ///< of a folder that holds several; empty: its only one

  bool operator==(const ReplaySelection&) const = default;
};

/// Where the chosen frames are kept.
struct FrameCache {
  std::string folder = {};  ///< of converted files, which later starts map; empty: in memory alone
};

/// Episodes of (frame, action, reward, return-to-go). A frame is stored once; the stack that the
/// model sees at step t is frames t - 3 to t of the same episode, zero before its start.
class FrameStore final : public EpisodeStore {
 public:
  /// The frames, wherever they lie; shared, so that a mapped file stays open with the store.
  struct Frames {
    std::shared_ptr<const void> owner;
    const std::uint8_t* data = nullptr;  ///< (transitions, 84, 84)
  };
  /// One entry a transition; N of them.
  struct Columns {
    std::vector<std::int32_t> actions;
    std::vector<float> rewards;
    std::vector<std::int64_t> episode_ends;  ///< transitions before each end, ascending; last is N
    std::vector<std::uint8_t> terminated;    ///< one an episode
    std::int64_t dropped = 0;
  };

  /// Throws DataError, opening with `name`, where the parts contradict each other, there is no
  /// transition, an action is negative or above 17, or a reward is not finite.
  static std::shared_ptr<FrameStore> create(Frames frames, Columns columns, std::string name,
                                            Metadata metadata = {});

  std::int64_t num_actions() const { return num_actions_; }  ///< largest action + 1
  std::int64_t num_transitions() const override {
    return static_cast<std::int64_t>(columns_.rewards.size());
  }
  std::int64_t num_episodes() const override {
    return static_cast<std::int64_t>(columns_.episode_ends.size());
  }
  std::int64_t dropped_transitions() const override { return columns_.dropped; }
  Episode episode(std::int64_t i) const override;
  const std::string& name() const override { return name_; }
  const Metadata& metadata() const override { return metadata_; }

  /// Whole columns, of num_transitions() entries: frames (N, 84, 84) uint8, actions, rewards as
  /// recorded, returns-to-go (undiscounted sum of those from here to the episode's end).
  std::span<const std::uint8_t> frames() const;
  std::span<const std::int32_t> actions() const { return columns_.actions; }
  std::span<const float> rewards() const { return columns_.rewards; }
  std::span<const float> returns_to_go() const { return rtg_; }
  /// Transitions before the end of each episode.
  std::span<const std::int64_t> episode_ends() const { return columns_.episode_ends; }

 private:
  FrameStore(Frames frames, Columns columns, std::string name, Metadata metadata);

  Frames frames_;
  Columns columns_;
  std::vector<float> rtg_;
  std::vector<double> returns_;  // by episode
  std::int64_t num_actions_ = 0;
  std::string name_;
  Metadata metadata_;
};

/// Called now and then while a recording is read: bytes of compressed input read, and in all. May
/// throw, which ends the reading; called by the thread that called open_replay.
using ReadProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Reads a recording in the DQN-replay layout: `path` is a folder that leads to
/// `$store$_{observation,action,reward,terminal}_ckpt.N.gz` (gzip of .npy) directly, or through
/// `replay_logs`, `<run>/replay_logs` or `<Game>/<run>/replay_logs`; or a converted file.
///
/// The three zero rows that stand before an episode are padding, not transitions; episodes without
/// their beginning (a shard begins in their midst) or end are dropped and counted. Metadata:
/// `game`, `shards`.
///
/// Shards are inflated side by side, each no further than to its last chosen row (all of it, for
/// its checksum, where all its episodes are chosen), straight to where the frames stay: a mapped
/// HDF5 file in cache.folder, under a name made of the recording and the selection, or memory.
/// Throws DataError naming file, field and numbers: a missing, truncated or damaged shard, fields
/// of different length, a wrong folder (what was looked for, what is there), an unknown game (which
/// there are), nothing left to read.
std::shared_ptr<FrameStore> open_replay(const std::string& path, const ReplaySelection& selection,
                                        const FrameCache& cache = {},
                                        const ReadProgress& progress = {});

}  // namespace dmamba::data
