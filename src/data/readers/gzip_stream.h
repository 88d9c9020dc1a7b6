// A gzip file inflated as it is read. zlib's header stays out of this one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace dmamba::data {

/// Deflate cannot compress by more than this factor.
constexpr std::int64_t kMostDeflate = 1032;

/// Several members, one after another, read as one stream.
class GzipStream {
 public:
  /// Told the bytes of every block of the file that was read; may throw, which read() passes on.
  using OnRead = std::function<void(std::int64_t bytes)>;

  /// Throws DataError where the file is missing, not a file, empty, or not in gzip format.
  explicit GzipStream(std::string path, OnRead on_read = {});
  ~GzipStream();
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  const std::string& path() const;
  std::int64_t file_size() const;  ///< bytes, compressed

  /// Inflates the next `bytes` into `out` and returns how many there were: fewer only where the
  /// stream ends or is damaged; see problem(). Throws DataError where the file cannot be read.
  std::int64_t read(void* out, std::int64_t bytes);

  /// Why the stream has ended before its whole end; empty where it has not.
  const std::string& problem() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dmamba::data
