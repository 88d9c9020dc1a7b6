// Jobs on threads: each is done once, errors are the same whatever the threads do, and a watcher
// that throws ends them all in the middle. Under the thread sanitizer: the stress that finds races.
#include "data/readers/jobs.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace dmamba::data {
namespace {

// Nobody is told: the work goes on until somebody no longer wants it.
[[noreturn]] void work_for_ever(const JobControl& control) {
  for (;;) {
    control.check();
    std::this_thread::yield();
  }
}

TEST(Jobs, EachIsDoneOnceAndItsResultIsSeenHere) {
  for (const std::int64_t count : {0, 1, 2, 7, 300}) {
    std::vector<std::int64_t> results(count, 0);  // of plain numbers: the end of a job is a fence
    int ticks = 0;
    run_jobs(
        count, [&](std::int64_t i, const JobControl&) { results[i] += i + 1; }, [&] { ++ticks; });
    for (std::int64_t i = 0; i < count; ++i) EXPECT_EQ(results[i], i + 1);
    EXPECT_GE(ticks, 1);
  }
}

TEST(Jobs, TheLowestErrorIsThrownAndTheJobsAboveEnd) {
  for (int round = 0; round < 200; ++round) {
    const std::int64_t first = round % 9;
    std::atomic<std::int64_t> lower = 0;
    const auto job = [&](std::int64_t i, const JobControl& control) {
      if (i < first) {
        ++lower;
      } else if (i % 3 == first % 3) {
        throw std::runtime_error(std::to_string(i));
      } else {
        work_for_ever(control);
      }
    };
    try {
      run_jobs(12, job, [] {});
      FAIL() << "no job has thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), std::to_string(first));
    }
    EXPECT_EQ(lower, first);
  }
}

TEST(Jobs, AWatcherThatThrowsEndsThemInTheMiddle) {
  struct Stop {};
  for (int round = 0; round < 8; ++round) {
    std::atomic<int> working = 0;
    int most = 0;
    const auto job = [&](std::int64_t, const JobControl& control) {
      struct Counted {
        explicit Counted(std::atomic<int>* count) : count(count) { ++*count; }
        ~Counted() { --*count; }
        std::atomic<int>* count;
      };
      const Counted counted(&working);
      work_for_ever(control);
    };
    const auto tick = [&] {
      most = working;
      if (most > 0) throw Stop{};
    };
    EXPECT_THROW(run_jobs(1000, job, tick), Stop);
    EXPECT_GT(most, 0);
    EXPECT_EQ(working, 0);  // before what they work on goes away
  }
}

TEST(Jobs, PoolsBesideEachOther) {
  std::vector<std::thread> threads;
  std::vector<std::int64_t> sums(4, 0);
  for (std::int64_t& sum : sums) {
    threads.emplace_back([&sum] {
      for (int round = 0; round < 20; ++round) {
        std::atomic<std::int64_t> done = 0;
        run_jobs(50, [&](std::int64_t i, const JobControl&) { done += i; }, [] {});
        sum += done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sums, std::vector<std::int64_t>(4, 20 * 50 * 49 / 2));
}

}  // namespace
}  // namespace dmamba::data
