// Jobs are taken in order, so that whoever fails, all before it have been started and will end.
#include "data/readers/jobs.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace dmamba::data {
namespace {

constexpr std::chrono::milliseconds kTick{50};

struct JobEnded {};

class Pool {
 public:
  Pool(std::int64_t count, const Job& job) : job_(job), last_(count - 1), errors_(count) {}

  void start(std::int64_t threads) {
    running_ = threads;
    for (std::int64_t i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { work(); });
    }
  }

  // True once all threads have done their work; waits for that, but no longer than a tick.
  bool wait() {
    std::unique_lock lock(mutex_);
    return done_.wait_for(lock, kTick, [this] { return running_ == 0; });
  }

  void cancel() {
    const std::lock_guard lock(mutex_);
    last_ = -1;
  }

  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void rethrow_first() const {
    for (const std::exception_ptr& error : errors_) {
      if (error) std::rethrow_exception(error);
    }
  }

  ~Pool() {
    cancel();
    join();
  }

 private:
  void work() {
    for (std::int64_t index = next_++; index <= last_; index = next_++) {
      try {
        job_(index, JobControl(&last_, index));
      } catch (const JobEnded&) {
      } catch (...) {
        const std::lock_guard lock(mutex_);
        errors_[index] = std::current_exception();
        last_ = std::min(last_.load(), index);
      }
    }
    const std::lock_guard lock(mutex_);
    --running_;
    done_.notify_one();
  }

  const Job& job_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<std::int64_t> last_;
  std::mutex mutex_;
  std::condition_variable done_;
  std::int64_t running_ = 0;                // under mutex_
  std::vector<std::exception_ptr> errors_;  // under mutex_ while threads run
  std::vector<std::thread> threads_;
};

}  // namespace

void JobControl::check() const {
  if (index_ > *last_) throw JobEnded{};
}

void run_jobs(std::int64_t count, const Job& job, const std::function<void()>& tick) {
  const auto most = static_cast<std::int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  Pool pool(count, job);
  pool.start(std::min(count, most));
  while (!pool.wait()) tick();
  pool.join();
  pool.rethrow_first();
  tick();
}

}  // namespace dmamba::data
