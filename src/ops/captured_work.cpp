// Warm-up, capture, replay.
#include "src/ops/captured_work.h"

#include <exception>

#include "dmamba/common/error.h"
#include "dmamba/common/log.h"

namespace dmamba::ops {
namespace {

constexpr int kWarmRuns = 2;

}  // namespace

void CapturedWork::expect(std::vector<int64_t> identity) {
  if (identity == identity_) return;
  identity_ = std::move(identity);
  graph_.reset();
  warm_ = 0;
}

bool CapturedWork::try_capture(const std::function<void()>& work) {
  auto graph = std::make_unique<Graph>();
  try {
    graph->capture(work);
  } catch (const std::exception& error) {
    const std::string message = what_ + " cannot be captured as a CUDA graph: " + error.what();
    if (mode_ == Mode::kAlways) throw Error(message);
    log_warning(message + "; it runs op by op");
    mode_ = Mode::kNever;
    return false;
  }
  graph_ = std::move(graph);
  return true;
}

void CapturedWork::run(const std::function<void()>& work) {
  if (graph_ || (mode_ != Mode::kNever && warm_ >= kWarmRuns && try_capture(work))) {
    graph_->replay();
    return;
  }
  work();
  ++warm_;
}

}  // namespace dmamba::ops
