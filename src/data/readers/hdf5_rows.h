// A dataset of an HDF5 file, read some rows at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/readers/hdf5_file.h"

namespace dmamba::data {

/// Any thread may call; the file has to live as long.
class Hdf5Rows {
 public:
  /// Throws DataError as Hdf5File::info() does.
  Hdf5Rows(const Hdf5File& file, std::string name);
  ~Hdf5Rows();
  Hdf5Rows(const Hdf5Rows&) = delete;
  Hdf5Rows& operator=(const Hdf5Rows&) = delete;

  const DatasetInfo& info() const { return info_; }

  /// Rows of a chunk, 1 where there are none: reading whole chunks inflates each of them once.
  std::int64_t chunk_rows() const { return chunk_rows_; }

  /// Where in the file the values lie side by side as this machine has them, if they do so. Throws
  /// DataError where the type is neither float32 nor float64.
  std::optional<std::uint64_t> float_offset() const;

  /// Rows [first, first + count), as read_floats() and read_flags() of Hdf5File give all.
  void floats(std::int64_t first, std::int64_t count, float* out) const;
  std::vector<std::uint8_t> flags(std::int64_t first, std::int64_t count) const;

 private:
  void read(std::int64_t first, std::int64_t count, std::int64_t type, void* out) const;

  const Hdf5File& file_;
  std::string name_;
  Hdf5Handle dataset_;
  DatasetInfo info_;
  std::int64_t chunk_rows_ = 1;
};

}  // namespace dmamba::data
