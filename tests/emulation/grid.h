// Grids of threads on a processor, lane by lane.
//
// A thread is a fiber: it runs until it waits for others, at a barrier or at an exchange within its
// warp, and then another runs. The order is not that of their numbers, so that what depends on it
// shows. Blocks run one after the other, those of a cluster at the same time. What a device does
// beside its threads (copies, products of tensor cores, stores of the copy engine) is done as late
// as it may: when somebody waits for it.
//
// A kernel that a device would run wrongly, or not at all, ends the program with a message: a lane
// that waits for one that has returned, lanes of a warp that wait at different places, threads that
// all wait, more threads or shared memory than a device has. Compiled with ThreadSanitizer, lanes
// are its threads, and only barriers order them: races on memory are reported. Compiled with
// AddressSanitizer, accesses beyond an array are.
//
// The environment: DMAMBA_EMULATION_ORDER is "forward", "backward", or a number by which threads
// are shuffled (default: 1); DMAMBA_EMULATION_ASYNC "late" or "early" (at once).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "tests/emulation/cuda/vectors.h"

namespace dmamba::emulation {

/// Runs `kernel` once for each thread of all blocks, of which `cluster` neighbours along x run at
/// the same time.
void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes,
              const std::function<void()>& kernel);

/// Where in the sources a thread waits.
struct Place {
  const char* file;
  int line;
};

/// __syncthreads(): waits for all threads of the block that have not returned. Returns how many of
/// them `counted`.
int wait_for_block(Place place, bool counted = false);

/// bar.sync: waits for `threads` of the block at one of 16 barriers.
void wait_for_some(int barrier, int threads, Place place);

/// Waits for all threads of the cluster that have not returned.
void wait_for_cluster(Place place);

/// __syncwarp(): waits for all lanes of the warp.
void wait_for_warp(uint32_t mask, Place place);

/// What a lane hands to the others of its warp.
struct alignas(16) Message {
  std::array<uint64_t, 4> words{};
};

/// Waits for all lanes of the warp, and returns what each has handed in. As on a device, this
/// orders no other memory.
const std::array<Message, 32>& exchange(uint32_t mask, const Message& message, Place place);

/// The running thread's number in its block and in its warp, and its block's in the cluster.
int thread_number();
inline int lane_number() { return thread_number() % 32; }
int block_rank();

/// The dynamic shared memory of a block of the cluster; NaN at first.
unsigned char* shared_memory(int rank);
inline unsigned char* shared_memory() { return shared_memory(block_rank()); }
/// From one block's to the next one's.
constexpr size_t kSharedStride = 256 * 1024;
/// The place that `here` has in this block, in block `rank`.
template <class T>
T* place_in_block(int rank, T* here) {
  auto* bytes = reinterpret_cast<const unsigned char*>(here);
  return reinterpret_cast<T*>(shared_memory(rank) + (bytes - shared_memory()));
}

/// What is done beside a thread, in groups.
class Queue {
 public:
  using Work = std::function<void()>;
  void add(Work work);
  void commit();
  /// Until at most so many of the groups that were ended are left.
  void wait(size_t left);
  void wait_for_all();

 private:
  std::vector<std::vector<Work>> groups_ = std::vector<std::vector<Work>>(1);
};

/// The running thread's copies to shared memory, products, and stores from shared memory. At its
/// end it waits for the last.
struct Queues {
  Queue copies, products, stores;
};
Queues& queues();

// Barriers in shared memory (mbarrier) that count arrivals and bytes.

void make_mbarrier(void* barrier, int arrivals);
/// The bytes are expected before the arrival counts.
void arrive_at(void* barrier, int64_t expected_bytes);
/// So many bytes come by `work`, late: when a thread waits for the barrier.
void bring_bytes(void* barrier, int64_t bytes, Queue::Work work);
/// Until the phase of that parity has ended.
void wait_for_phase_of(void* barrier, unsigned parity, Place place);

/// Adds to a digest of all results, which is printed as the program ends.
void note_result(const void* memory, size_t bytes);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace dmamba::emulation
