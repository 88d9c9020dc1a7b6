// One shard of a DQN-replay recording: its small columns, and where its episodes begin and end.
//
// Before an episode stand up to three rows of zeros (frame, action, reward, terminal): padding.
// Whether a row's frame is zero is known only once the observations are inflated, gigabytes a
// shard. So the episodes are planned from the small columns and the shard's first frames, by the
// rule that a recording pads all episodes or none; reading the observations proves the plan or
// throws PaddingDiffers. Then scan_padding() finds out, for the price of inflating the shard twice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/readers/npy_stream.h"
#include "data/readers/replay_folder.h"

namespace dmamba::data {

/// Rows between two terminals: [begin, end), the last one terminal.
struct ReplayEpisode {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t candidates = 0;  ///< rows at its beginning that may be padding: 0 to 3
  std::int64_t padding = 0;     ///< those taken for it

  std::int64_t length() const { return end - begin - padding; }
};

struct ShardColumns {
  std::vector<std::uint8_t> actions;  ///< all of 0 to 17
  std::vector<float> rewards;
  /// By the terminals; the last is what follows the last of them, without an end and maybe empty.
  std::vector<ReplayEpisode> episodes;
  bool begins_midway = false;  ///< the first episode has no beginning

  /// Those with beginning and end.
  std::span<const ReplayEpisode> whole() const;
  /// Transitions of the others.
  std::int64_t dropped() const;
};

/// The padding of an episode that is read is not what was planned.
struct PaddingDiffers {};

/// Reads the small columns and the first frames, and plans the episodes. Throws DataError.
ShardColumns read_columns(const ReplayShard& shard, const GzipStream::OnRead& on_read);

/// Finds the padding of every episode in the frames. Throws DataError.
void scan_padding(const ReplayShard& shard, const GzipStream::OnRead& on_read,
                  ShardColumns* columns);

/// Takes rows of frames, in order.
class FrameSink {
 public:
  virtual ~FrameSink() = default;

  /// Where the next `count` rows may be written, at least 1 of them; `count` is lowered to what
  /// there is room for.
  virtual std::uint8_t* room(std::int64_t* count) = 0;

  /// Called when `count` rows have been written there.
  virtual void take(std::int64_t count) = 0;
};

/// Inflates the frames of the first `chosen` of columns.whole() into `sink`. Stops after the last
/// of them; where they are all of the shard's, reads to the end for the checksum's sake. Throws
/// DataError, PaddingDiffers.
void read_frames(const ReplayShard& shard, const ShardColumns& columns, std::int64_t chosen,
                 const GzipStream::OnRead& on_read, FrameSink* sink);

}  // namespace dmamba::data
