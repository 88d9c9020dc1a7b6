// The processes that train one model together ("ranks"), seen from one of them.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "dmamba/common/error.h"

namespace dmamba::train {

/// A rank does not answer: it was killed, its machine has failed, or it has stopped with an error.
class LostRankError : public Error {
 public:
  using Error::Error;
};

/// Over a process group of torch's: NCCL between GPUs, gloo between CPUs. Every rank has to call
/// the same members in the same order. Not thread-safe.
class Ranks {
 public:
  /// Gradients are summed in buckets of about this size.
  static constexpr int64_t kBucketBytes = int64_t{4} << 20;

  explicit Ranks(c10::intrusive_ptr<c10d::ProcessGroup> group, int64_t bucket_bytes = kBucketBytes);

  int64_t rank() const { return group_->getRank(); }
  int64_t world() const { return group_->getSize(); }
  int64_t bucket_bytes() const { return bucket_bytes_; }

  using Pending = c10::intrusive_ptr<c10d::Work>;

  /// Begins to replace a contiguous tensor by its sum over the ranks, the same bits on each of
  /// them and from run to run; on CUDA in the order of the current stream. Throws LostRankError.
  Pending begin_sum(const at::Tensor& tensor);

  /// Ends what begin_sum() began: on CUDA the current stream waits, elsewhere the host. Throws
  /// LostRankError.
  void end_sum(const Pending& pending);

  /// Replaces the tensors, which must be contiguous, by those of rank 0. Throws LostRankError.
  void take_from_first(std::vector<at::Tensor> tensors);

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  int64_t bucket_bytes_;
};

}  // namespace dmamba::train
