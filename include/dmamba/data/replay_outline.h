// What a recorded game holds, told without its frames.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dmamba/data/frame_store.h"

namespace dmamba::data {

/// The episodes of a recording as a FrameStore has them, but for the frames.
class ReplayOutline final : public EpisodeStore {
 public:
  /// `columns` as FrameStore::create takes them, checked already.
  ReplayOutline(FrameStore::Columns columns, std::string name, Metadata metadata);

  std::int64_t num_actions() const { return num_actions_; }  ///< largest action + 1
  std::span<const std::int32_t> actions() const { return columns_.actions; }
  std::int64_t num_transitions() const override {
    return static_cast<std::int64_t>(columns_.rewards.size());
  }
  std::int64_t num_episodes() const override { return static_cast<std::int64_t>(episodes_.size()); }
  std::int64_t dropped_transitions() const override { return columns_.dropped; }
  Episode episode(std::int64_t i) const override;
  const std::string& name() const override { return name_; }
  const Metadata& metadata() const override { return metadata_; }

 private:
  FrameStore::Columns columns_;
  std::vector<Episode> episodes_;
  std::int64_t num_actions_ = 0;
  std::string name_;
  Metadata metadata_;
};

/// Looks at a recording as open_replay reads it, without reading its frames but for the first few
/// of each shard, and without writing anything: a ReplayOutline, or the FrameStore where there is a
/// converted file, `path` itself or in `cache.folder`. Which of the zero rows before a game are
/// padding is taken to be alike in all games of a shard, as Dopamine writes them; open_replay,
/// which sees all frames, finds out. Throws DataError and ConfigError as open_replay.
std::shared_ptr<EpisodeStore> outline_replay(const std::string& path,
                                             const ReplaySelection& selection,
                                             const FrameCache& cache = {},
                                             const ReadProgress& progress = {});

}  // namespace dmamba::data
