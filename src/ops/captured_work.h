// Work that is done again and again: op by op at first, then as a CUDA graph.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/ops/graph.h"

namespace dmamba::ops {

/// The first two calls run op by op, so that libraries allocate what they keep; the third records
/// the work, and from then on it is replayed. Not thread-safe.
class CapturedWork {
 public:
  enum class Mode {
    kAuto,    // op by op for good, with a line in the log, where the work cannot be recorded
    kAlways,  // an Error then
    kNever,
  };

  /// `what` names the work in messages.
  CapturedWork(Mode mode, std::string what) : mode_(mode), what_(std::move(what)) {}

  /// What the recorded work holds on to, such as the parameters' addresses: another identity than
  /// before begins anew.
  void expect(std::vector<int64_t> identity);

  /// Does the work on the current stream, which must not be the default one.
  void run(const std::function<void()>& work);

  /// Whether the last run was a replay.
  bool captured() const { return graph_ != nullptr; }

 private:
  bool try_capture(const std::function<void()>& work);

  Mode mode_;
  std::string what_;
  std::unique_ptr<Graph> graph_;
  std::vector<int64_t> identity_;
  int warm_ = 0;
};

}  // namespace dmamba::ops
