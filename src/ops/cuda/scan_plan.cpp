// Which plan the scan's kernels run with: the measured rule, or what a test forces.
#include <atomic>
#include <string>

#include "dmamba/common/error.h"
#include "dmamba/ops/ops.h"
#include "src/ops/cuda/scan.h"

namespace dmamba::ops {
namespace {

std::atomic<int64_t> forced_chunk_length = 0;

}  // namespace

void set_cuda_scan_plan(int64_t chunk_length) {
  constexpr int64_t kEvery = kernels::kScanChunkMultiple;
  if (chunk_length < 0 || chunk_length % kEvery != 0) {
    throw Error("set_cuda_scan_plan: chunk_length must be a multiple of " + std::to_string(kEvery) +
                ", or 0 for the rule, got " + std::to_string(chunk_length));
  }
  forced_chunk_length = chunk_length;
}

namespace cuda {

kernels::SelectiveScanPlan scan_plan(const kernels::SelectiveScanParams& p, int multiprocessors) {
  const int64_t chunk = forced_chunk_length.load(std::memory_order_relaxed);
  if (chunk > 0) return {chunk};
  return kernels::plan_selective_scan(p, multiprocessors);
}

}  // namespace cuda
}  // namespace dmamba::ops
