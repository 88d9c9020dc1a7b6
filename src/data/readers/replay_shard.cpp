// Columns of any width that recordings have, narrowed as they are read.
#include "data/readers/replay_shard.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "data/validation.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::int64_t kMostPadding = kFrameStack - 1;
constexpr std::int64_t kBlockRows = 1 << 14;  // of a small column
constexpr std::int64_t kLastAction = 17;      // Atari has 18 joystick positions

// Calls take(row, value) for every row of a column whose items are of type T.
template <typename T, typename Take>
void for_each_item(NpyStream* stream, const Take& take) {
  std::vector<T> block(std::min(kBlockRows, stream->rows()));
  for (std::int64_t first = 0; first < stream->rows(); first += kBlockRows) {
    const std::int64_t count = std::min(kBlockRows, stream->rows() - first);
    stream->read(block.data(), count);
    for (std::int64_t i = 0; i < count; ++i) take(first + i, block[i]);
  }
  stream->finish();
}

[[noreturn]] void fail_row(const std::string& file, std::int64_t row, const std::string& what) {
  throw DataError(file + ": row " + std::to_string(row) + " is " + what);
}

std::vector<std::uint8_t> read_actions(const std::string& file, const GzipStream::OnRead& on_read) {
  NpyStream stream(file, {"<i4", "<i8", "|u1"}, {}, on_read);
  std::vector<std::uint8_t> actions;
  const auto take = [&](std::int64_t row, std::int64_t action) {
    if (action < 0 || action > kLastAction) {
      fail_row(file, row,
               std::to_string(action) + "; an action is 0 to " + std::to_string(kLastAction));
    }
    actions.push_back(static_cast<std::uint8_t>(action));
  };
  const std::string& dtype = stream.header().dtype;
  if (dtype == "<i4") {
    for_each_item<std::int32_t>(&stream, take);
  } else if (dtype == "<i8") {
    for_each_item<std::int64_t>(&stream, take);
  } else {
    for_each_item<std::uint8_t>(&stream, take);
  }
  return actions;
}

std::vector<float> read_rewards(const std::string& file, const GzipStream::OnRead& on_read) {
  NpyStream stream(file, {"<f4", "<f8"}, {}, on_read);
  std::vector<float> rewards;
  const auto take = [&](std::int64_t row, double value) {
    const auto reward = static_cast<float>(value);
    if (!std::isfinite(reward)) {
      fail_row(file, row, std::to_string(value) + "; rewards must be finite float32 numbers");
    }
    rewards.push_back(reward);
  };
  if (stream.header().dtype == "<f4") {
    for_each_item<float>(&stream, take);
  } else {
    for_each_item<double>(&stream, take);
  }
  return rewards;
}

std::vector<std::uint8_t> read_terminals(const std::string& file,
                                         const GzipStream::OnRead& on_read) {
  NpyStream stream(file, {"|u1", "|b1", "|i1"}, {}, on_read);
  std::vector<std::uint8_t> terminals;
  for_each_item<std::uint8_t>(&stream, [&](std::int64_t row, std::uint8_t flag) {
    if (flag > 1) fail_row(file, row, std::to_string(flag) + "; terminals are 0 or 1");
    terminals.push_back(flag);
  });
  return terminals;
}

NpyStream open_frames(const ReplayShard& shard, const GzipStream::OnRead& on_read) {
  return {shard.files[kObservation], {"|u1"}, {kFrameSide, kFrameSide}, on_read};
}

using Candidates = std::array<std::uint8_t, kMostPadding * kFrameBytes>;

// Reads the candidates of an episode; returns how many are zero, from the first on.
std::int64_t read_candidates(NpyStream* frames, std::int64_t count, Candidates* bytes) {
  frames->read(bytes->data(), count);
  const auto end = bytes->begin() + count * kFrameBytes;
  return (std::find_if(bytes->begin(), end, [](std::uint8_t grey) { return grey != 0; }) -
          bytes->begin()) /
         kFrameBytes;
}

void split_episodes(const std::vector<std::uint8_t>& terminals, ShardColumns* columns) {
  const auto rows = static_cast<std::int64_t>(terminals.size());
  const auto candidate = [&](std::int64_t row) {
    return columns->actions[row] == 0 && columns->rewards[row] == 0.0f && terminals[row] == 0;
  };
  ReplayEpisode episode;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (episode.candidates == row - episode.begin && episode.candidates < kMostPadding &&
        candidate(row)) {
      ++episode.candidates;
    }
    if (terminals[row] != 0) {
      episode.end = row + 1;
      columns->episodes.push_back(episode);
      episode = {.begin = row + 1};
    }
  }
  episode.end = rows;
  columns->episodes.push_back(episode);
}

// A shard begins midway if others of its episodes are padded, but not the first.
void find_midway(ShardColumns* columns) {
  const auto& episodes = columns->episodes;
  columns->begins_midway =
      episodes.front().padding == 0 &&
      std::any_of(episodes.begin() + 1, episodes.end(),
                  [](const ReplayEpisode& episode) { return episode.padding > 0; });
}

void assume_padding(std::int64_t at_start, ShardColumns* columns) {
  const std::span<ReplayEpisode> rest = std::span(columns->episodes).subspan(1);
  columns->episodes.front().padding = at_start;
  const bool all_may_be =
      !rest.empty() && rest.front().begin < rest.back().end &&
      std::all_of(
          rest.begin(), rest.end(),
          [](const ReplayEpisode& episode) {
            return episode.candidates == std::min(kMostPadding, episode.end - episode.begin);
          });
  if (at_start > 0 || all_may_be) {
    for (ReplayEpisode& episode : rest) episode.padding = episode.candidates;
  }
  find_midway(columns);
}

void write_rows(NpyStream* frames, std::int64_t count, FrameSink* sink) {
  while (count > 0) {
    std::int64_t rows = count;
    std::uint8_t* out = sink->room(&rows);
    frames->read(out, rows);
    sink->take(rows);
    count -= rows;
  }
}

}  // namespace

std::span<const ReplayEpisode> ShardColumns::whole() const {
  const std::size_t first = begins_midway ? 1 : 0;
  return std::span(episodes).subspan(first, episodes.size() - 1 - first);
}

std::int64_t ShardColumns::dropped() const {
  return episodes.back().length() + (begins_midway ? episodes.front().length() : 0);
}

ShardColumns read_columns(const ReplayShard& shard, const GzipStream::OnRead& on_read) {
  ShardColumns columns;
  columns.actions = read_actions(shard.files[kAction], on_read);
  columns.rewards = read_rewards(shard.files[kReward], on_read);
  const auto terminals = read_terminals(shard.files[kTerminal], on_read);
  NpyStream frames = open_frames(shard, {});
  require_equal_lengths(
      std::filesystem::path(shard.files[kObservation]).parent_path().string() + ": shard " +
          std::to_string(shard.number),
      {{kReplayFields[kObservation], frames.rows()},
       {kReplayFields[kAction], static_cast<std::int64_t>(columns.actions.size())},
       {kReplayFields[kReward], static_cast<std::int64_t>(columns.rewards.size())},
       {kReplayFields[kTerminal], static_cast<std::int64_t>(terminals.size())}});
  split_episodes(terminals, &columns);
  Candidates bytes;
  assume_padding(read_candidates(&frames, columns.episodes.front().candidates, &bytes), &columns);
  return columns;
}

void scan_padding(const ReplayShard& shard, const GzipStream::OnRead& on_read,
                  ShardColumns* columns) {
  NpyStream frames = open_frames(shard, on_read);
  Candidates bytes;
  std::int64_t row = 0;
  for (ReplayEpisode& episode : columns->episodes) {
    if (episode.candidates == 0) continue;
    frames.skip(episode.begin - row);
    episode.padding = read_candidates(&frames, episode.candidates, &bytes);
    row = episode.begin + episode.candidates;
  }
  find_midway(columns);
}

void read_frames(const ReplayShard& shard, const ShardColumns& columns, std::int64_t chosen,
                 const GzipStream::OnRead& on_read, FrameSink* sink) {
  if (chosen == 0) return;
  NpyStream frames = open_frames(shard, on_read);
  Candidates bytes;
  std::int64_t row = 0;
  for (const ReplayEpisode& episode : columns.whole().first(chosen)) {
    frames.skip(episode.begin - row);
    if (read_candidates(&frames, episode.candidates, &bytes) != episode.padding) {
      throw PaddingDiffers{};
    }
    for (std::int64_t i = episode.padding; i < episode.candidates; ++i) {
      std::int64_t one = 1;
      std::memcpy(sink->room(&one), bytes.data() + i * kFrameBytes, kFrameBytes);
      sink->take(1);
    }
    write_rows(&frames, episode.end - episode.begin - episode.candidates, sink);
    row = episode.end;
  }
  if (chosen == static_cast<std::int64_t>(columns.whole().size())) {
    frames.skip(frames.rows() - row);
    frames.finish();
  }
}

}  // namespace dmamba::data
