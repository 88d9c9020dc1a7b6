// First all small columns, then the choice, then the frames; each step a job a shard.
#include "data/readers/replay_reading.h"

#include <filesystem>
#include <string>
#include <utility>

#include "data/readers/jobs.h"
#include "data/readers/replay_selection.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

std::int64_t size_of(const std::string& file) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  return error ? 0 : static_cast<std::int64_t>(size);
}

}  // namespace

ReplayReading::ReplayReading(const Recording& recording, const ReplaySelection& selection,
                             const ReadProgress& progress)
    : recording_(recording),
      selection_(selection),
      progress_(progress),
      shards_(recording.shards.size()) {
  for (const ReplayShard& shard : recording.shards) {
    for (const std::string& file : shard.files) total_ += size_of(file);
  }
}

void ReplayReading::tick() const {
  if (progress_) progress_(done_, total_);
}

void ReplayReading::plan() {
  const auto job = [this](std::int64_t i, const JobControl& control) {
    shards_[i] = read_columns(recording_.shards[i], [&](std::int64_t bytes) {
      done_ += bytes;
      control.check();
    });
  };
  run_jobs(static_cast<std::int64_t>(shards_.size()), job, [this] { tick(); });
}

void ReplayReading::scan() {
  const auto job = [this](std::int64_t i, const JobControl& control) {
    scan_padding(recording_.shards[i], [&](std::int64_t) { control.check(); }, &shards_[i]);
  };
  run_jobs(static_cast<std::int64_t>(shards_.size()), job, [this] { tick(); });
}

void ReplayReading::choose() {
  std::vector<std::vector<std::int64_t>> lengths;
  std::int64_t episodes = 0;
  std::int64_t rows = 0;
  for (const ShardColumns& shard : shards_) {
    std::vector<std::int64_t>& of_shard = lengths.emplace_back();
    for (const ReplayEpisode& episode : shard.whole()) of_shard.push_back(episode.length());
    episodes += static_cast<std::int64_t>(of_shard.size());
    rows += static_cast<std::int64_t>(shard.actions.size());
  }
  if (episodes == 0) {
    throw DataError(recording_.folder + ": no episode is whole in the " + std::to_string(rows) +
                    " rows of shards " + shard_list(recording_.shards) +
                    ": none has both its beginning and its terminal; choose other shards");
  }
  chosen_ = choose_episodes(lengths, selection_);
}

FrameStore::Columns ReplayReading::columns() const {
  FrameStore::Columns columns;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    const ShardColumns& shard = shards_[i];
    for (const ReplayEpisode& episode : shard.whole().first(chosen_[i])) {
      const std::int64_t begin = episode.begin + episode.padding;
      columns.actions.insert(columns.actions.end(), shard.actions.begin() + begin,
                             shard.actions.begin() + episode.end);
      columns.rewards.insert(columns.rewards.end(), shard.rewards.begin() + begin,
                             shard.rewards.begin() + episode.end);
      columns.episode_ends.push_back(static_cast<std::int64_t>(columns.rewards.size()));
    }
    columns.dropped += shard.dropped();
  }
  columns.terminated.assign(columns.episode_ends.size(), 1);
  return columns;
}

void ReplayReading::read_into(FrameStorage* storage) {
  std::vector<std::int64_t> first_rows;
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    first_rows.push_back(rows);
    for (const ReplayEpisode& episode : shards_[i].whole().first(chosen_[i])) {
      rows += episode.length();
    }
  }
  const auto job = [&](std::int64_t i, const JobControl& control) {
    const ReplayShard& shard = recording_.shards[i];
    std::int64_t read = 0;
    const auto on_read = [&](std::int64_t bytes) {
      read += bytes;
      done_ += bytes;
      control.check();
    };
    read_frames(shard, shards_[i], chosen_[i], on_read, storage->sink(first_rows[i]).get());
    done_ += size_of(shard.files[kObservation]) - read;  // the part that need not be read
  };
  run_jobs(static_cast<std::int64_t>(shards_.size()), job, [this] { tick(); });
}

FrameStore::Columns ReplayReading::outline() {
  for (const ReplayShard& shard : recording_.shards) total_ -= size_of(shard.files[kObservation]);
  plan();
  choose();
  return columns();
}

FrameStore::Columns ReplayReading::read(const MakeStorage& make_storage) {
  plan();
  // It does not see who catches.
  const std::int64_t planned = done_;  // NOLINT(clang-analyzer-deadcode.DeadStores)
  for (int attempt = 0;; ++attempt) {
    choose();
    FrameStore::Columns result = columns();
    try {
      read_into(make_storage(result).get());
      return result;
    } catch (const PaddingDiffers&) {
      if (attempt > 0) {
        throw DataError(recording_.folder +
                        ": the recording changed while it was read; open it again");
      }
    }
    scan();
    done_ = planned;
  }
}

}  // namespace dmamba::data
