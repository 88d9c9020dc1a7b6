// Graphs and streams over the CUDA runtime and torch's allocator. Not at::cuda::CUDAGraph: that
// lies in torch_cuda, which nothing else here needs, and brings the generator's state along, which
// no op of ours draws from.
#include "src/ops/graph.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <string>
#include <utility>

#include "dmamba/common/error.h"
#include "src/ops/cuda_only.h"

namespace dmamba::ops {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or torch's next check would find it
  throw Error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// An id that torch's own pools don't have: theirs count up from 1.
c10::MempoolId_t new_pool() {
  static std::atomic<uint64_t> count{uint64_t{1} << 40};
  return {0, ++count};
}

/// Factors of weights' gradients that wait for others are at most so large together, but for the
/// last one (docs/performance.md).
constexpr size_t kMostWaitingBytes = size_t{512} << 20;

class Event {
 public:
  explicit Event(at::Device device) {
    const c10::cuda::CUDAGuard guard(device);  // an event belongs to the device it is made on
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// `later` goes on after what `earlier` has been given until now.
  void order(cudaStream_t earlier, cudaStream_t later) {
    check(cudaEventRecord(event_, earlier), "cudaEventRecord");
    check(cudaStreamWaitEvent(later, event_, 0), "cudaStreamWaitEvent");
  }
  /// The same where it can be: not in a capture that has failed, whose work never runs.
  void try_to_order(cudaStream_t earlier, cudaStream_t later) noexcept {
    cudaError_t error = cudaEventRecord(event_, earlier);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(later, event_, 0);
    if (error != cudaSuccess) cudaGetLastError();
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Allocations of the streams that are being captured into one graph go to the graph's pool.
class PoolScope {
 public:
  PoolScope(c10::DeviceIndex device, c10::MempoolId_t pool, const unsigned long long* capture)
      : device_(device), pool_(pool) {
    allocator::beginAllocateToPool(device, pool, [capture](cudaStream_t stream) {
      cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
      unsigned long long id = 0;
      if (cudaStreamGetCaptureInfo(stream, &status, &id) != cudaSuccess) return false;
      return status == cudaStreamCaptureStatusActive && id == *capture;
    });
  }
  ~PoolScope() { allocator::endAllocateToPool(device_, pool_); }
  PoolScope(const PoolScope&) = delete;
  PoolScope& operator=(const PoolScope&) = delete;

 private:
  c10::DeviceIndex device_;
  c10::MempoolId_t pool_;
};

}  // namespace

int64_t free_memory(at::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

struct Graph::Impl {
  c10::DeviceIndex device = 0;
  c10::MempoolId_t pool = new_pool();
  bool has_pool = false;
  unsigned long long capture = 0;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  ~Impl() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (has_pool) allocator::releasePool(device, pool);
  }

  /// Ends the capture whatever happened in it; the graph, or null.
  cudaGraph_t end(cudaStream_t stream) {
    cudaGraph_t recorded = nullptr;
    if (cudaStreamEndCapture(stream, &recorded) != cudaSuccess) cudaGetLastError();
    return recorded;
  }
};

Graph::Graph() : impl_(std::make_unique<Impl>()) {}
Graph::~Graph() = default;

void Graph::capture(const std::function<void()>& work) {
  Impl& g = *impl_;
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  g.device = stream.device_index();
  const PoolScope scope(g.device, g.pool, &g.capture);
  g.has_pool = true;
  // Other threads may train on the same device meanwhile: only this graph's streams are held.
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &g.capture);
  try {
    check(error, "cudaStreamGetCaptureInfo");
    work();
  } catch (...) {
    if (cudaGraph_t recorded = g.end(stream); recorded != nullptr) cudaGraphDestroy(recorded);
    throw;
  }
  g.graph = g.end(stream);
  if (g.graph == nullptr) {
    throw Error("CUDA graph: some of the work cannot be recorded, such as a read from the device");
  }
  check(cudaGraphInstantiate(&g.executable, g.graph, 0), "cudaGraphInstantiate");
}

void Graph::replay() {
  check(cudaGraphLaunch(impl_->executable, c10::cuda::getCurrentCUDAStream()), "cudaGraphLaunch");
}

struct SideStream::Impl {
  /// One of the two streams, beside the current one.
  struct Branch {
    explicit Branch(at::Device device)
        : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
          event(device) {}

    void run(const std::function<void()>& work) {
      event.order(c10::cuda::getCurrentCUDAStream(), stream);
      busy = true;
      const c10::cuda::CUDAStreamGuard guard(stream);
      work();
    }
    void join() {
      if (busy) event.order(stream, c10::cuda::getCurrentCUDAStream());
      busy = false;
    }
    void abandon() noexcept {
      if (busy) event.try_to_order(stream, c10::cuda::getCurrentCUDAStream());
      busy = false;
    }

    c10::cuda::CUDAStream stream;
    Event event;
    bool busy = false;
  };

  explicit Impl(at::Device device) : sums(device), weights(device) {}

  /// Weights' gradients have a stream of their own: the last sums of a step need not wait for them.
  Branch sums, weights;
  std::vector<at::Tensor> kept;
  std::vector<cuda_only::WeightGradient> waiting;
  size_t waiting_bytes = 0;
  size_t asked = 0, asked_before = 0;  // for gradients of weights since the last join, before it

  void launch_waiting() {
    if (waiting.empty()) return;
    for (const cuda_only::WeightGradient& gradient : waiting) {
      kept.push_back(gradient.dy);
      kept.push_back(gradient.x);
    }
    weights.run([&] { cuda_only::weight_gradients(waiting); });
    waiting.clear();
    waiting_bytes = 0;
  }
};

SideStream::SideStream(at::Device device) : impl_(std::make_unique<Impl>(device)) {}
SideStream::~SideStream() = default;

void SideStream::run(const std::function<void()>& work, std::vector<at::Tensor> inputs) {
  for (at::Tensor& input : inputs) impl_->kept.push_back(std::move(input));
  impl_->sums.run(work);
}

at::Tensor SideStream::weight_gradient(const at::Tensor& dy, const at::Tensor& x) {
  if (!cuda_only::weight_gradient_fits(dy, x)) return {};
  const bool same_type =
      impl_->waiting.empty() || impl_->waiting[0].dy.scalar_type() == dy.scalar_type();
  if (!same_type) impl_->launch_waiting();
  const at::Tensor out = at::empty({dy.size(1), x.size(1)}, x.options().dtype(at::kFloat));
  // Not the tensor itself: autograd copies a gradient that somebody else holds, too early.
  impl_->waiting.push_back({dy, x, out.mutable_data_ptr<float>()});
  impl_->waiting_bytes += static_cast<size_t>(dy.numel() + x.numel()) * dy.element_size();
  // The last one, if this pass is like the one before: what is still to be done, such as the
  // embedding's part, leaves room beside it.
  const bool last = ++impl_->asked == impl_->asked_before;
  if (last || impl_->waiting_bytes > kMostWaitingBytes) impl_->launch_waiting();
  return out;
}

void SideStream::launch_weight_gradients() {
  impl_->launch_waiting();
  if (!impl_->weights.busy) return;
  impl_->weights.event.order(impl_->weights.stream, impl_->sums.stream);
  impl_->sums.busy = true;
}

void SideStream::abandon() noexcept {
  impl_->waiting.clear();
  impl_->waiting_bytes = 0;
  impl_->asked = 0;
  impl_->sums.abandon();
  impl_->weights.abandon();
  impl_->kept.clear();
}

void SideStream::expect_other_weights() { impl_->asked_before = 0; }

void SideStream::join() {
  impl_->launch_waiting();
  impl_->sums.join();
  impl_->weights.join();
  impl_->asked_before = std::exchange(impl_->asked, 0);
  impl_->kept.clear();
}

struct WorkStream::Impl {
  explicit Impl(at::Device device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index())),
        event(device) {}
  c10::cuda::CUDAStream stream;
  Event event;
};

WorkStream::WorkStream(at::Device device) : impl_(std::make_unique<Impl>(device)) {}
WorkStream::~WorkStream() = default;

struct WorkStream::Scope::Impl {
  explicit Impl(WorkStream::Impl& work)
      : work(work),
        outer(c10::cuda::getCurrentCUDAStream(work.stream.device_index())),
        guard(work.stream) {
    work.event.order(outer, work.stream);
  }
  WorkStream::Impl& work;
  c10::cuda::CUDAStream outer;
  c10::cuda::CUDAStreamGuard guard;
};

WorkStream::Scope::Scope(WorkStream& stream) : impl_(std::make_unique<Impl>(*stream.impl_)) {}
WorkStream::Scope::~Scope() {
  try {
    impl_->work.event.order(impl_->work.stream, impl_->outer);
  } catch (const Error&) {
    // The device has failed; the next call on it says so.
  }
}

}  // namespace dmamba::ops
