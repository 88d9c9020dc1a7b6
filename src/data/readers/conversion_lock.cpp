// See conversion_lock.h. The file goes with the lock: who gets one that has been removed meanwhile
// tries again. It says "PID HOST", as those of bindings/dmamba/common/locks.py.
#include "data/readers/conversion_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string_view>
#include <thread>

#include "data/readers/host_name.h"
#include "dmamba/common/log.h"

namespace dmamba::data {
namespace {

constexpr std::chrono::milliseconds kPoll{100};

// Who has signed the file: "process 123", with the machine's name if it is another; nothing where
// the holder has not got to it yet.
std::string holder_of(int fd) {
  std::array<char, 512> bytes{};
  const ssize_t size = ::pread(fd, bytes.data(), bytes.size(), 0);
  std::string_view text(bytes.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  text = text.substr(0, text.find('\n'));
  const std::string pid(text.substr(0, text.find(' ')));
  if (pid.empty()) return {};
  const std::string host(text.substr(std::min(text.size(), pid.size() + 1)));
  return "process " + pid + (host.empty() || host == host_name() ? "" : " on " + host);
}

bool is_still(int fd, const std::string& path) {
  struct stat held{}, named{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &named) == 0 &&
         held.st_ino == named.st_ino && held.st_dev == named.st_dev;
}

}  // namespace

ConversionLock::ConversionLock(const std::string& target,
                               const std::function<void()>& while_waiting)
    : path_(target + ".lock") {
  for (bool said = false;;) {
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
      if (is_still(fd, path_)) {
        fd_ = fd;
        break;
      }
      ::close(fd);
      continue;
    }
    const int code = errno;
    const std::string holder = holder_of(fd);
    ::close(fd);
    if (code != EWOULDBLOCK && code != EINTR) return;
    if (!said && !holder.empty()) {
      log_info(target + ": " + holder + " converts the recording; waiting");
      said = true;
    }
    waited_ = true;
    while_waiting();
    std::this_thread::sleep_for(kPoll);
  }
  const std::string text = std::to_string(::getpid()) + " " + host_name() + "\n";
  // For messages alone: a lock that cannot be signed holds as well.
  [[maybe_unused]] const bool signed_ =
      ::ftruncate(fd_, 0) == 0 && ::pwrite(fd_, text.data(), text.size(), 0) > 0;
}

void ConversionLock::remove_abandoned(const std::string& target) {
  const std::string path = target + ".lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && is_still(fd, path)) ::unlink(path.c_str());
  ::close(fd);
}

ConversionLock::~ConversionLock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace dmamba::data
