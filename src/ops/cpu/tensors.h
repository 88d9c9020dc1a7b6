// From tensors to the plain parameters of the kernels, and the loop over units that threads share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "src/ops/tensors.h"

namespace dmamba::ops::cpu {

/// Holds the contiguous copies that a call makes of its inputs, for as long as the call.
class Inputs {
 public:
  kernels::Sequence rows(const std::optional<at::Tensor>& t) {
    return present(t) ? sequence(keep(with_contiguous_rows(*t))) : kernels::Sequence{};
  }
  const void* vector(const std::optional<at::Tensor>& t) {
    return present(t) ? keep(t->contiguous()).const_data_ptr() : nullptr;
  }
  const void* transposed(const at::Tensor& t) { return keep(t.t().contiguous()).const_data_ptr(); }
  kernels::Flags flags(const std::optional<at::Tensor>& t) {
    return {present(t) ? keep(t->contiguous()).const_data_ptr<bool>() : nullptr};
  }
  kernels::StateView state(const std::optional<at::Tensor>& t) {
    return present(t) ? state_view(keep(*t)) : kernels::StateView{};
  }

 private:
  const at::Tensor& keep(at::Tensor t) {
    kept_[count_] = std::move(t);
    return kept_[count_++];
  }
  at::Tensor kept_[16];
  int count_ = 0;
};

/// 64-byte aligned memory of the calling thread, kept for its next call.
inline void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = (bytes + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, size));
    TORCH_CHECK(memory != nullptr, "out of memory: ", size, " bytes of scratch");
  }
  return memory.get();
}

/// Calls f(begin, end, scratch) over all units. `unit_work` is a unit's rough cost in vector steps:
/// units are handed out in pieces worth the start of a thread.
template <class F>
void for_units(int64_t units, int64_t unit_work, size_t scratch_bytes, const F& f) {
  constexpr int64_t kWorthAThread = 4096;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, unit_work));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    f(begin, end, thread_scratch(scratch_bytes));
  });
}

/// The sum over the first axis of (parts, ...) in order, whatever the number of threads.
at::Tensor sum_parts(const at::Tensor& parts);

}  // namespace dmamba::ops::cpu
