// A captured piece of work, and streams beside the first. CUDA alone; in a library built
// without CUDA the constructors throw dmamba::Error.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

namespace dmamba::ops {

/// Bytes of the device's memory that nobody has taken.
int64_t free_memory(at::Device device);

/// A CUDA graph of work on the current stream, with memory of its own: tensors that the work
/// allocates stay where they are as long as the graph lives. Not thread-safe.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Records what `work` launches on the current stream, which must not be the default one, and
  /// runs none of it. The work must have run before, so that libraries have allocated what they
  /// keep. Throws what `work` throws, or Error where the work cannot be recorded; the stream is as
  /// before then.
  void capture(const std::function<void()>& work);

  /// Launches the recorded work on the current stream.
  void replay();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Work that only the end of a step waits for, beside the work of the current stream.
class SideStream {
 public:
  explicit SideStream(at::Device device);
  ~SideStream();
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  /// Runs `work` on the side, after what the current stream has been given until now. `inputs` are
  /// kept until join(): the current stream may otherwise reuse their memory too early.
  void run(const std::function<void()>& work, std::vector<at::Tensor> inputs);

  /// The gradient dy^T x (n, m) of a weight, float32, for dy (rows, n) and x (rows, m): computed
  /// with the others of a pass, at the latest by join(), until when it must not be freed. Undefined
  /// where cuda_only::weight_gradient_fits() says no.
  at::Tensor weight_gradient(const at::Tensor& dy, const at::Tensor& x);

  /// Begins with those that still wait; later work of run() comes after all of them.
  void launch_weight_gradients();

  /// The current stream waits for the side's work.
  void join();

  /// After a step that failed, whose tensors are gone: forgets the gradients of weights that still
  /// wait, and lets the current stream wait for what has begun, before others use the memory.
  void abandon() noexcept;

  /// The next pass may ask for the gradients of other weights than the one before.
  void expect_other_weights();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// While it lives, the ops that this thread calls leave sums over tokens, which only parameters'
/// gradients need, to the side stream. Null: nothing changes.
class SumsBeside {
 public:
  explicit SumsBeside(SideStream* side);
  ~SumsBeside();
  SumsBeside(const SumsBeside&) = delete;
  SumsBeside& operator=(const SumsBeside&) = delete;

  static SideStream* current();

 private:
  SideStream* outer_;
};

/// A stream that is not the default one, from torch's pool of 32 a device, which come round again.
/// A scope makes it current: its work begins after that of the stream that was current, which goes
/// on after it.
class WorkStream {
 public:
  explicit WorkStream(at::Device device);
  ~WorkStream();
  WorkStream(const WorkStream&) = delete;
  WorkStream& operator=(const WorkStream&) = delete;

  class Scope {
   public:
    explicit Scope(WorkStream& stream);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dmamba::ops
