// A file from a stranger is read by another process first: the HDF5 library falls over some damaged
// files, and then it is not the user's process that dies.
//
// The other process is the program dmamba-check-file (src/check_file), which lies beside libdmamba,
// runs the same reader over the whole file under limits of memory and time, and says how it went. A
// file that was read so is remembered in ~/.cache/dmamba/checked-files, by device, inode, size and
// both times of change, and is not checked again. DMAMBA_TRUST_FILES=1 leaves the check out.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

#include "dmamba/common/error.h"
#include "dmamba/data/reader.h"

namespace dmamba::data {

constexpr const char* kFileWasRead = "read\n";  ///< what dmamba-check-file prints; else its error

/// What tells one state of a file from another.
struct FileState {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;

  bool operator==(const FileState&) const = default;
};

/// The file is no longer the one that was checked.
struct FileChangedError : DataError {
  using DataError::DataError;
};

/// The check of one file, which lives as long as the file is read.
class FileCheck {
 public:
  /// `reader` is a dataset format of open_dataset, or "converted"; the other process keeps what it
  /// reads as `storage` says, so that it has room where this process has. Throws DataError with the
  /// other process's message where it could not read the file, and one that says how it ended where
  /// it died; also where the program is missing.
  FileCheck(std::string path, const std::string& reader, const Storage& storage = {});

  /// After the reading: throws FileChangedError where the file is no longer the one that was
  /// checked.
  void require_unchanged() const;

 private:
  std::string path_;
  FileState state_;
};

/// What `read` returns, after a check. A file that others replace meanwhile is checked again, ten
/// times at most, later and later.
template <class Read>
auto read_checked(const std::string& path, const std::string& reader, const Storage& storage,
                  Read read) {
  for (int again = 1;; ++again) {
    try {
      const FileCheck check(path, reader, storage);
      auto result = read();
      check.require_unchanged();
      return result;
    } catch (const FileChangedError&) {
      if (again > 10) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(10 * again));
    }
  }
}

}  // namespace dmamba::data
