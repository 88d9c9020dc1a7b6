// Jobs on threads, watched by the thread that waits for them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace dmamba::data {

/// What a job is told while it runs.
class JobControl {
 public:
  JobControl(const std::atomic<std::int64_t>* last, std::int64_t index)
      : last_(last), index_(index) {}

  /// To be called now and then: ends the job, by an exception of its own, where its result is no
  /// longer wanted.
  void check() const;

 private:
  const std::atomic<std::int64_t>* last_;  // jobs above this one are not wanted
  std::int64_t index_;
};

using Job = std::function<void(std::int64_t index, const JobControl& control)>;

/// Runs job(0) to job(count - 1) on at most as many threads as the machine has, and meanwhile
/// tick() on this one, about twenty times a second and once when all are done. Where jobs throw,
/// those of higher index are ended, and the exception of the lowest is thrown here: the same
/// whatever the threads do. Where tick throws, all are ended and its exception is thrown.
void run_jobs(std::int64_t count, const Job& job, const std::function<void()>& tick);

}  // namespace dmamba::data
