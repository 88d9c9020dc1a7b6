// Collectives over torch's process group, with errors in our own words.
#include "dmamba/train/ranks.h"

#include <string>
#include <utility>

namespace dmamba::train {
namespace {

/// What `work` returns; whatever it throws says that the ranks have lost touch.
template <class F>
auto together(const c10d::ProcessGroup& group, const F& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    throw LostRankError("rank " + std::to_string(group.getRank()) + " of " +
                        std::to_string(group.getSize()) +
                        " has lost touch with another: " + error.what());
  }
}

}  // namespace

Ranks::Ranks(c10::intrusive_ptr<c10d::ProcessGroup> group, int64_t bucket_bytes)
    : group_(std::move(group)), bucket_bytes_(bucket_bytes) {
  if (bucket_bytes < 1) {
    throw ConfigError("Ranks: bucket_bytes must be at least 1, got " +
                      std::to_string(bucket_bytes));
  }
}

Ranks::Pending Ranks::begin_sum(const at::Tensor& tensor) {
  return together(*group_, [&] {
    std::vector<at::Tensor> tensors{tensor};
    return group_->allreduce(tensors);
  });
}

void Ranks::end_sum(const Pending& pending) {
  together(*group_, [&] { pending->wait(); });
}

void Ranks::take_from_first(std::vector<at::Tensor> tensors) {
  together(*group_, [&] {
    std::vector<Pending> pending;
    for (const at::Tensor& tensor : tensors) {
      std::vector<at::Tensor> one{tensor};
      pending.push_back(group_->broadcast(one));
    }
    for (const Pending& work : pending) work->wait();
  });
}

}  // namespace dmamba::train
