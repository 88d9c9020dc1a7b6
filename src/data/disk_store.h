// A TrajectoryStore whose transitions stay on disk: for recordings that do not fit into memory.
//
// A segment is K rows side by side, so reading it is one pread() of each column. Rows are read
// where the dataset's file has them as float32, else from a scratch file that they were copied to.
// Returns-to-go always lie in a scratch file. In memory are the episodes alone, 40 bytes each.
//
// pread() rather than mmap(): pages of the file never count as this process's memory, and a file
// that is cut off meanwhile is an exception rather than SIGBUS.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/episode_finder.h"
#include "dmamba/data/reader.h"
#include "dmamba/data/trajectory_store.h"

namespace dmamba::data {

/// A file that is read at any place, by any number of threads; closed with the object.
class RandomFile {
 public:
  /// Opens a file that is there. Throws DataError.
  static std::shared_ptr<RandomFile> open(const std::string& path);

  /// An empty file without a name in `folder` (empty: the system's temporary one): it is gone with
  /// the process, however that ends. Throws DataError.
  static std::shared_ptr<RandomFile> scratch(const std::string& folder);

  ~RandomFile();
  RandomFile(const RandomFile&) = delete;
  RandomFile& operator=(const RandomFile&) = delete;

  /// Fills `values` with the floats that lie from byte `offset` on. Throws DataError where the file
  /// ends before, or cannot be read.
  void read(std::uint64_t offset, std::span<float> values) const;

  /// Throws DataError where the disk is full, or cannot be written.
  void write(std::uint64_t offset, std::span<const float> values) const;

 private:
  RandomFile(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}

  int fd_;
  std::string name_;  // path, or the folder of a scratch file
};

/// Rows of float32 side by side in a file.
struct DiskColumn {
  std::shared_ptr<const RandomFile> file;
  std::uint64_t offset = 0;  ///< bytes before the first row
  std::int64_t width = 1;    ///< values of a row

  /// Copies rows [first, first + count).
  void read(std::int64_t first, std::int64_t count, float* out) const;
};

/// A column that is written from its first row to its last, to a scratch file.
class ScratchColumn {
 public:
  explicit ScratchColumn(const std::string& folder) : file_(RandomFile::scratch(folder)) {}

  void append(std::span<const float> values);
  DiskColumn finish(std::int64_t width) const { return {file_, 0, width}; }

 private:
  std::shared_ptr<RandomFile> file_;
  std::uint64_t bytes_ = 0;
};

class DiskStore final : public TrajectoryStore {
 public:
  struct Columns {
    DiskColumn observations, actions, rewards;
  };

  /// Reads the columns once from end to end, to find what MemoryStore::create() refuses, with the
  /// same messages, and to sum the returns. `ends` has seen the flags of all rows.
  static std::shared_ptr<DiskStore> create(Columns columns, EpisodeFinder ends, std::string name,
                                           Metadata metadata, const Storage& storage);

  std::int64_t state_dim() const override { return columns_.observations.width; }
  std::int64_t act_dim() const override { return columns_.actions.width; }
  std::int64_t num_transitions() const override { return rows_; }
  std::int64_t num_episodes() const override { return static_cast<std::int64_t>(episodes_.size()); }
  std::int64_t dropped_transitions() const override { return dropped_; }
  Episode episode(std::int64_t i) const override;
  void read(std::int64_t first, std::int64_t count, float* states, float* actions, float* rewards,
            float* rtg) const override;
  const std::string& name() const override { return name_; }
  const Metadata& metadata() const override { return metadata_; }

 private:
  DiskStore(Columns columns, std::string name, Metadata metadata);
  void check_values(std::int64_t rows, const Storage& storage) const;
  void sum_all_returns(const std::string& scratch_folder);

  Columns columns_;
  DiskColumn rtg_;
  std::vector<Episode> episodes_;
  std::int64_t rows_ = 0;
  std::int64_t dropped_ = 0;
  std::string name_;
  Metadata metadata_;
};

/// Rows of so many values that are read at a time where all are read; at least 1.
std::int64_t rows_of_block(std::int64_t width);

/// Bytes that so many transitions take in a MemoryStore.
std::uint64_t bytes_in_memory(std::int64_t rows, std::int64_t state_dim, std::int64_t act_dim);

/// Bytes of memory that this process may still take: what the machine has left, at most what its
/// control group allows. The largest number where neither is known.
std::uint64_t free_memory();

/// Throws ConfigError for an unknown kind of storage.
void require_kind(const Storage& storage);

/// Bytes of transitions that may go to memory; beyond them they stay on disk.
std::uint64_t memory_limit(const Storage& storage);

}  // namespace dmamba::data
