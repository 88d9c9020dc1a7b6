// What every use of the HDF5 C library here goes through: one lock, silenced error printing,
// handles that close themselves. The library's own header stays out of this one (it belongs in .cpp
// files), so an id is a plain 64-bit integer here.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace dmamba::data {

/// Holds the process-wide HDF5 lock while it lives (the library need not be built thread-safe) and
/// keeps HDF5 from printing its error stack and from loading plugins, which a file can ask for. Not
/// recursive: one per public function.
class Hdf5Session {
 public:
  Hdf5Session();
  ~Hdf5Session();
  Hdf5Session(const Hdf5Session&) = delete;
  Hdf5Session& operator=(const Hdf5Session&) = delete;

 private:
  std::unique_lock<std::mutex> lock_;
  int (*saved_printer_)(std::int64_t, void*) = nullptr;
  void* saved_printer_data_ = nullptr;
  unsigned saved_plugins_ = 0;
};

/// An HDF5 id (hid_t) that is closed on destruction; needs a live Hdf5Session throughout.
class Hdf5Handle {
 public:
  using Close = int (*)(std::int64_t);

  Hdf5Handle() = default;
  Hdf5Handle(std::int64_t id, Close close) : id_(id), close_(close) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept
      : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Hdf5Handle() {
    if (id_ >= 0) {
      close_(id_);
    }
  }

  std::int64_t id() const { return id_; }
  bool valid() const { return id_ >= 0; }

  /// Closes now. False where that fails: HDF5 writes some of what it was given only then.
  bool close() {
    const std::int64_t id = std::exchange(id_, -1);
    return id < 0 || close_(id) >= 0;
  }

 private:
  std::int64_t id_ = -1;
  Close close_ = nullptr;
};

/// Access properties (a link's, a group's) with which no link leads into another file.
Hdf5Handle within_file();

/// The names of a group's links, in order; false where there are more than `most`, or the list
/// cannot be walked.
bool list_names(std::int64_t group, std::uint64_t most, std::vector<std::string>* names);

/// The innermost message of HDF5's error stack: what really went wrong in the call that has just
/// failed. Ask at once: the next HDF5 call, a closing handle's too, clears the stack.
std::string hdf5_error();

/// Where a file that is shorter than its header says ends, and where it should.
struct Truncation {
  std::uint64_t actual_bytes;
  std::uint64_t expected_bytes;
  std::uint64_t base_address;  ///< where the HDF5 part of the file begins
};

/// Reads the numbers out of HDF5's message "truncated file: ..."; false if it is another message.
bool parse_truncation(const std::string& message, Truncation* truncation);

/// Opens the truncated file `path` all the same and names the datasets whose header or stored
/// bytes lie beyond the end, and by how much; empty if that cannot be told.
std::string describe_incomplete_datasets(const std::string& path, const Truncation& truncation);

}  // namespace dmamba::data
