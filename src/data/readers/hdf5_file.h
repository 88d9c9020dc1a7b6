// An HDF5 file opened for reading, in the terms a dataset reader needs. Everything that the file
// claims is checked against its size before memory is allocated for it. Any thread may call; calls
// are serialised (see hdf5_session.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/readers/hdf5_session.h"

namespace dmamba::data {

/// Shape and type of a dataset.
struct DatasetInfo {
  std::vector<std::uint64_t> shape;
  std::string dtype;  ///< "float32", "uint8", "bool", "string", ...

  std::string shape_text() const;  ///< such as "(199876, 11)"
};

/// A dataset's values, row-major, with its shape and the type that they had in the file.
struct Numbers {
  DatasetInfo info;
  std::vector<float> values;
};

/// Throws DataError where the type of a dataset is neither float32 nor float64.
void require_float_type(const std::string& path, const std::string& name, const DatasetInfo& info);

/// Throws DataError where the type of a dataset is not bool, uint8 or int8.
void require_flag_type(const std::string& path, const std::string& name, const DatasetInfo& info);

/// A dataset's rows from `first_row` on as flags. Throws DataError where one is neither 0 nor 1.
std::vector<std::uint8_t> as_flags(const std::string& path, const std::string& name,
                                   const std::vector<std::int16_t>& values, std::int64_t first_row);

class Hdf5File {
 public:
  /// Opens `path`. Throws DataError where it is missing, unreadable, no HDF5 file, or truncated;
  /// the last names the datasets that are short and by how many bytes.
  explicit Hdf5File(std::string path);
  ~Hdf5File();
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;

  const std::string& path() const { return path_; }

  /// The names in `group` ("/" for the root), sorted; empty where there is no such group.
  std::vector<std::string> names(const std::string& group) const;

  /// How many names there are in `group`; 0 where there is no such group.
  std::uint64_t count(const std::string& group) const;

  /// Shape and type of the dataset `name`. Throws DataError where it cannot be opened, is a group,
  /// keeps its data outside this file, was not written to its end, or claims more data than the
  /// file can hold.
  DatasetInfo info(const std::string& name) const;

  /// The whole dataset, row-major, converted to float32. Throws DataError as info() does, where the
  /// type is neither float32 nor float64, and where the stored data are damaged.
  std::vector<float> read_floats(const std::string& name) const;

  /// As read_floats(), with the shape; integers of at most 64 bits and floats of any size are
  /// converted, too.
  Numbers read_numbers(const std::string& name) const;

  /// The whole dataset as 0 and 1. Throws DataError as info() does, where the type is not bool,
  /// uint8 or int8, where a value is neither 0 nor 1 (first row named), and where the data are
  /// damaged.
  std::vector<std::uint8_t> read_flags(const std::string& name) const;

  /// The whole dataset as integers. Throws DataError as info() does, where the type is no integer
  /// of at most 64 bits, and where the data are damaged.
  std::vector<std::int64_t> read_integers(const std::string& name) const;

  /// Where in the file the bytes of the dataset lie, in one piece and as they are. Throws DataError
  /// as info() does, and where the dataset is chunked or reaches beyond the file.
  std::uint64_t contiguous_offset(const std::string& name) const;

  /// The scalar strings and numbers directly in `group` as text; other members are passed over.
  std::map<std::string, std::string> read_scalars(const std::string& group) const;

 private:
  friend class Hdf5Rows;

  Hdf5Handle open_dataset(const std::string& name) const;
  DatasetInfo describe(const std::string& name, std::int64_t dataset) const;
  void check_storage(const std::string& name, std::int64_t dataset, const DatasetInfo& info) const;
  void read_all(const std::string& name, std::int64_t dataset, std::int64_t type, void* out) const;

  std::string path_;
  std::uint64_t file_size_ = 0;
  Hdf5Handle file_;
};

}  // namespace dmamba::data
