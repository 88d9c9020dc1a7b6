// One process at a time converts a recording: others wait for its file instead of writing their
// own.
#pragma once

#include <functional>
#include <string>

namespace dmamba::data {

/// Holds `TARGET.lock`, beside the file that a conversion makes, with flock(): the kernel lets go
/// of it with the process. Where the file system keeps no locks, or the folder cannot be written
/// to, nothing is held: each process then converts, and the last one's file stays.
class ConversionLock {
 public:
  /// Waits for the process that has the lock, and says once which one that is. `while_waiting` is
  /// called some ten times a second, and may throw.
  ConversionLock(const std::string& target, const std::function<void()>& while_waiting);
  ~ConversionLock();
  ConversionLock(const ConversionLock&) = delete;
  ConversionLock& operator=(const ConversionLock&) = delete;

  bool waited() const { return waited_; }

  /// Removes `TARGET.lock` where nobody holds it: who made the target was killed before the end.
  static void remove_abandoned(const std::string& target);

 private:
  std::string path_;
  int fd_ = -1;
  bool waited_ = false;
};

}  // namespace dmamba::data
