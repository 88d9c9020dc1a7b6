// An array in NumPy's .npy format inside gzip, read row by row.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/readers/gzip_stream.h"

namespace dmamba::data {

/// What a .npy header says: a dtype such as "<f4", C order, shape (rows, ...).
struct NpyHeader {
  std::string dtype;
  std::vector<std::int64_t> shape;

  std::string shape_text() const;  ///< such as "(199876, 84, 84)"
};

class NpyStream {
 public:
  /// Reads the header. Throws DataError, as all members, which names file, numbers and what to do:
  /// here where the file is no gzip of .npy (versions 1 to 3), the dtype is none of `dtypes`, the
  /// array is in Fortran order, a row's shape differs from `row_shape`, or the file is too small
  /// for what it claims to hold.
  NpyStream(const std::string& path, const std::vector<std::string>& dtypes,
            const std::vector<std::int64_t>& row_shape, GzipStream::OnRead on_read = {});

  const NpyHeader& header() const { return header_; }
  std::int64_t rows() const { return header_.shape.front(); }
  std::int64_t row_bytes() const { return row_bytes_; }

  /// The next `count` rows, as bytes. Throws where fewer are left or the stream is damaged; tells
  /// how many rows there were.
  void read(void* out, std::int64_t count);
  void skip(std::int64_t count);

  /// After the last row: throws where more data follow or a checksum fails.
  void finish();

 private:
  NpyHeader read_header();
  void require_bytes(void* out, std::int64_t bytes, const char* what);
  void check_claim(const std::vector<std::string>& dtypes,
                   const std::vector<std::int64_t>& row_shape);

  GzipStream stream_;
  NpyHeader header_;
  std::int64_t row_bytes_ = 0;
  std::int64_t rows_read_ = 0;
};

}  // namespace dmamba::data
