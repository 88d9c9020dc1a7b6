// POSIX calls rather than streams: a stream tells neither why a write failed nor that it reached
// the disk.
#include "dmamba/common/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "dmamba/common/error.h"

namespace dmamba {
namespace {

// Linux moves at most 2 GiB in one call.
constexpr std::size_t kLargestTransfer = std::size_t{1} << 30;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& step, int code) {
  throw Error("'" + path.string() + "': " + step + ": " + std::generic_category().message(code));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  int get() const { return fd_; }

  /// Closes now; some file systems report a failed write only here.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

/// A new file in the folder of `target`, removed again unless it was renamed to `target`.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target)
      : target_(target), descriptor_(create()) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!renamed_) ::unlink(path_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written =
          ::write(descriptor_.get(), bytes.data(), std::min(bytes.size(), kLargestTransfer));
      if (written < 0) {
        if (errno == EINTR) continue;
        fail(target_, "cannot write", errno);
      }
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  void commit() {
    if (::fsync(descriptor_.get()) != 0) fail(target_, "cannot flush to disk", errno);
    if (descriptor_.close() != 0) fail(target_, "cannot close", errno);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail(target_, "cannot replace", errno);
    renamed_ = true;
  }

 private:
  // The name does not contain the target's, which may already be as long as names can be. It may be
  // taken: by a file that a killed process with the same id has left.
  int create() {
    static std::atomic<std::uint64_t> counter{0};
    for (;;) {
      path_ = target_.parent_path() / (".dmamba-" + std::to_string(::getpid()) + "-" +
                                       std::to_string(counter.fetch_add(1)) + ".tmp");
      const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0) return fd;
      if (errno != EEXIST && errno != EINTR) {
        fail(target_, "cannot create a temporary file beside it", errno);
      }
    }
  }

  std::filesystem::path target_;
  std::filesystem::path path_;
  bool renamed_ = false;
  Descriptor descriptor_;
};

void flush_folder(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) fail(path, "replaced, but cannot open its folder to flush it", errno);
  // EINVAL: a file system (some network ones) that has no such thing as flushing a folder.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) {
    fail(path, "replaced, but cannot flush its folder to disk", errno);
  }
}

void move(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail(to, "cannot replace", errno);
}

/// Removes what was replaced. It is out of the way: a failure must not make a good write look bad,
/// and the next write to the same place tries again.
void remove_replaced(const std::filesystem::path& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

/// False where the file system has no such operation.
bool exchange(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  fail(b, "cannot replace", errno);
}

}  // namespace

void replace_file_atomically(const std::filesystem::path& fresh,
                             const std::filesystem::path& path) {
  {
    const Descriptor descriptor(::open(fresh.c_str(), O_RDONLY | O_CLOEXEC));
    if (descriptor.get() < 0) fail(fresh, "cannot open", errno);
    if (::fsync(descriptor.get()) != 0) fail(fresh, "cannot flush to disk", errno);
  }
  move(fresh, path);
  flush_folder(path);
}

void replace_folder_atomically(const std::filesystem::path& fresh,
                               const std::filesystem::path& path, bool can_exchange) {
  const std::filesystem::path old = path.parent_path() / ("." + path.filename().string() + ".old");
  if (!std::filesystem::exists(std::filesystem::symlink_status(path))) {
    move(fresh, path);
    flush_folder(path);
  } else if (can_exchange && exchange(fresh, path)) {
    flush_folder(path);
    remove_replaced(fresh);
  } else {
    remove_replaced(old);  // `path` stands, so what an earlier write has left is the older one
    move(path, old);
    if (::rename(fresh.c_str(), path.c_str()) != 0) {
      const int code = errno;
      move(old, path);
      fail(path, "cannot replace", code);
    }
    flush_folder(path);
  }
  remove_replaced(old);
}

void write_file_atomically(const std::filesystem::path& path,
                           std::span<const std::string_view> pieces) {
  {
    TemporaryFile temporary(path);
    for (const std::string_view piece : pieces) temporary.write(piece);
    temporary.commit();
  }
  flush_folder(path);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  write_file_atomically(path, std::span<const std::string_view>(&bytes, 1));
}

std::string read_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) fail(path, "cannot open", errno);
  struct stat status{};
  if (::fstat(descriptor.get(), &status) != 0) fail(path, "cannot read", errno);
  std::string content;
  std::size_t length = 0;
  // The size is a first guess only: the file may be a pipe, or grow.
  content.resize(std::min(max_bytes, static_cast<std::size_t>(std::max<off_t>(status.st_size, 0))));
  for (;;) {
    if (length == content.size()) content.resize(length + std::max<std::size_t>(length, 4096));
    const ssize_t count = ::read(descriptor.get(), content.data() + length,
                                 std::min(content.size() - length, kLargestTransfer));
    if (count < 0) {
      if (errno == EINTR) continue;
      fail(path, "cannot read", errno);
    }
    if (count == 0) break;
    length += static_cast<std::size_t>(count);
    if (length > max_bytes) {
      throw Error("'" + path.string() + "': longer than " + std::to_string(max_bytes) + " bytes");
    }
  }
  content.resize(length);
  return content;
}

}  // namespace dmamba
