// A file in memory that readers open by its path: one for each name, filled anew for each input.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace dmamba::fuzz {

class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(::memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0) std::abort();
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void fill(const void* data, std::size_t size) {
    if (::ftruncate(fd_, 0) != 0) std::abort();
    if (::pwrite(fd_, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  }

  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

/// Ends the program, as a finding, where a reader has accepted what it should not have.
inline void require(bool good) {
  if (!good) std::abort();
}

}  // namespace dmamba::fuzz
