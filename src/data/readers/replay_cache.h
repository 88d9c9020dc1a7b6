// Converted recordings: one HDF5 file each, whose frames are mapped into memory.
//
//   frames        (N, 84, 84) uint8, contiguous      actions       (N,) int32
//   rewards       (N,) float32                       episode_ends  (episodes,) int64
//   terminated    (episodes,) uint8                  metadata/     game, shards
//   conversion/   version, dropped, fingerprint (of the recording and the selection)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "data/readers/replay_folder.h"
#include "data/readers/replay_reading.h"
#include "dmamba/data/frame_store.h"

namespace dmamba::data {

/// 32 hexadecimal digits that change with the recording (place, sizes, times of modification) and
/// with what is chosen from it.
std::string replay_fingerprint(const Recording& recording, const ReplaySelection& selection);

/// Where the conversion of that fingerprint is kept.
std::string converted_path(const std::string& folder, const Recording& recording,
                           const std::string& fingerprint);

/// Maps a converted file; the store is called `name`. Throws DataError where it is damaged, another
/// file, or (unless `fingerprint` is empty) not the conversion of that fingerprint.
std::shared_ptr<FrameStore> open_converted(const std::string& path, const std::string& name,
                                           const std::string& fingerprint = "");

/// The same without the check of file_check.h.
std::shared_ptr<FrameStore> open_converted_here(const std::string& path, const std::string& name,
                                                const std::string& fingerprint);

/// A converted file in the making, under a temporary name of its own; removed with the object
/// unless committed. Throws DataError, as its sinks, where it cannot be written.
class ConvertedFile final : public FrameStorage {
 public:
  ConvertedFile(std::string path, const FrameStore::Columns& columns, const Metadata& metadata,
                const std::string& fingerprint);
  ~ConvertedFile() override;
  ConvertedFile(const ConvertedFile&) = delete;
  ConvertedFile& operator=(const ConvertedFile&) = delete;

  std::unique_ptr<FrameSink> sink(std::int64_t first_row) override;

  /// Once all frames are there: brings the file onto the disk and to its path.
  void commit();

 private:
  explicit ConvertedFile(std::string path) : path_(std::move(path)) {}
  void reserve(std::int64_t offset, std::int64_t bytes);

  std::string path_;
  std::string temporary_;
  std::int64_t offset_ = 0;  // of the frames
  int fd_ = -1;
};

}  // namespace dmamba::data
