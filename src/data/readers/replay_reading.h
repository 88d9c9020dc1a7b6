// A recording on its way from the shards to where its frames stay.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "data/readers/replay_folder.h"
#include "data/readers/replay_shard.h"
#include "dmamba/data/frame_store.h"

namespace dmamba::data {

/// Where the frames of a store are written, by several threads.
class FrameStorage {
 public:
  virtual ~FrameStorage() = default;

  /// Takes rows from `first_row` on.
  virtual std::unique_ptr<FrameSink> sink(std::int64_t first_row) = 0;
};

class ReplayReading {
 public:
  ReplayReading(const Recording& recording, const ReplaySelection& selection,
                const ReadProgress& progress);

  /// Makes the storage for these columns.
  using MakeStorage =
      std::function<std::shared_ptr<FrameStorage>(const FrameStore::Columns& columns)>;

  /// Reads everything. `make_storage` may be called twice: where the frames contradict the plan,
  /// all begins anew. Throws DataError; what `progress` throws.
  FrameStore::Columns read(const MakeStorage& make_storage);

  /// Reads all but the frames; what they would contradict stays.
  FrameStore::Columns outline();

 private:
  void plan();
  void scan();
  void choose();
  FrameStore::Columns columns() const;
  void read_into(FrameStorage* storage);
  void tick() const;

  const Recording& recording_;
  const ReplaySelection& selection_;
  const ReadProgress& progress_;
  std::vector<ShardColumns> shards_;  // as recording_.shards
  std::vector<std::int64_t> chosen_;  // episodes of each
  std::atomic<std::int64_t> done_{0};
  std::int64_t total_ = 0;
};

}  // namespace dmamba::data
