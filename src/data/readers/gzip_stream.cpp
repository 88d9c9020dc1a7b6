// zlib's streaming inflate over a file descriptor: no more is held than one block of input.
#include "data/readers/gzip_stream.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "data/readers/readers.h"
#include "dmamba/common/error.h"

namespace dmamba::data {
namespace {

constexpr std::size_t kInputBlock = std::size_t{1} << 17;
constexpr std::int64_t kMostOutput = 1 << 30;  // zlib counts in 32 bits
constexpr int kGzipOnly = 15 + 16;             // window bits of inflateInit2

}  // namespace

struct GzipStream::State {
  std::string path;
  OnRead on_read;
  std::int64_t file_size = 0;
  int fd = -1;
  z_stream zlib{};
  bool initialised = false;
  std::vector<std::uint8_t> input = std::vector<std::uint8_t>(kInputBlock);
  bool in_member = false;  // false: between members, or at the end
  bool any_member = false;
  bool ended = false;
  std::string problem;

  ~State() {
    if (initialised) inflateEnd(&zlib);
    if (fd >= 0) ::close(fd);
  }

  // False at the file's end.
  bool fill() {
    ssize_t count = 0;
    do {
      count = ::read(fd, input.data(), input.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
      throw DataError(path + ": cannot be read: " + std::generic_category().message(errno));
    }
    zlib.next_in = input.data();
    zlib.avail_in = static_cast<uInt>(count);
    if (count > 0 && on_read) on_read(count);
    return count > 0;
  }

  void end(std::string why) {
    ended = true;
    problem = std::move(why);
  }

  // At a member's beginning, with input at hand.
  void begin_member() {
    // Programs that copy whole blocks leave zeros behind the end; gzip skips them, too.
    while (any_member && zlib.avail_in > 0 && *zlib.next_in == 0) {
      ++zlib.next_in;
      --zlib.avail_in;
    }
    if (zlib.avail_in == 0) return;
    // Only what follows the first member can be garbage; the first was checked at opening.
    if (any_member && *zlib.next_in != 0x1f) {
      end("something that is not gzip follows the end of the gzip stream");
      return;
    }
    inflateReset(&zlib);
    in_member = any_member = true;
  }

  void inflate_some() {
    const int status = ::inflate(&zlib, Z_NO_FLUSH);
    if (status == Z_STREAM_END) {
      in_member = false;
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
      end(std::string("the gzip stream is damaged (") +
          (zlib.msg != nullptr ? zlib.msg : zError(status)) + ")");
    }
  }
};

GzipStream::GzipStream(std::string path, OnRead on_read) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.path = std::move(path);
  s.on_read = std::move(on_read);
  s.file_size = static_cast<std::int64_t>(require_readable_file(s.path));
  s.fd = ::open(s.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (s.fd < 0) {
    throw DataError(s.path +
                    ": cannot be opened for reading: " + std::generic_category().message(errno));
  }
  if (inflateInit2(&s.zlib, kGzipOnly) != Z_OK) throw std::bad_alloc();
  s.initialised = true;
  if (!s.fill() || s.zlib.avail_in < 2 || s.input[0] != 0x1f || s.input[1] != 0x8b) {
    throw DataError(s.path + ": not a gzip file: it begins with " + file_beginning(s.path));
  }
}

GzipStream::~GzipStream() = default;

const std::string& GzipStream::path() const { return state_->path; }
std::int64_t GzipStream::file_size() const { return state_->file_size; }
const std::string& GzipStream::problem() const { return state_->problem; }

std::int64_t GzipStream::read(void* out, std::int64_t bytes) {
  State& s = *state_;
  std::int64_t done = 0;
  while (done < bytes && !s.ended) {
    if (s.zlib.avail_in == 0 && !s.fill()) {
      s.end(s.in_member ? "the gzip stream is cut off" : "");
    } else if (!s.in_member) {
      s.begin_member();
    } else {
      const std::int64_t room = std::min(bytes - done, kMostOutput);
      s.zlib.next_out = static_cast<Bytef*>(out) + done;
      s.zlib.avail_out = static_cast<uInt>(room);
      s.inflate_some();
      done += room - s.zlib.avail_out;
    }
  }
  return done;
}

}  // namespace dmamba::data
