// The threads of a cluster take turns; what they wait for, and what is done beside them.
#include "tests/emulation/grid.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>

#include "tests/emulation/fiber.h"

// All variables of __shared__, from the linker; null without any.
extern "C" unsigned char __start_dmamba_shared[] __attribute__((weak));
extern "C" unsigned char __stop_dmamba_shared[] __attribute__((weak));

namespace dmamba::emulation {
namespace {

constexpr size_t kMostShared = 227 * 1024;
constexpr int kMostThreads = 1024, kMostBlocks = 8, kWarp = 32, kNamedBarriers = 16;

/// What a barrier orders. The next wait's is another one: a thread may be there while others have
/// yet to leave this one.
struct Ordering {
  char keys[2] = {};
  int turn = 0;
  void* key() { return &keys[turn]; }
};

enum class State { kReady, kWaits, kReturned };

struct Thread {
  Fiber fiber;
  State state = State::kReturned;
  const void* waits_for = nullptr;
  Place place{};
  Queues queues;

  explicit Thread(void (*function)()) : fiber(function) {}
};

struct Barrier {
  int arrived = 0;
  int counted[3] = {};  // of this turn, the last one, and the next
  int turn = 0;
  Ordering ordering;
};

struct Warp {
  uint32_t arrived = 0;
  Place place{};
  Ordering ordering;
  std::array<Message, kWarp> messages[2];
};

struct Mbarrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  unsigned phase = 0;
  std::vector<Queue::Work> work;
};

struct Block {
  uint3 index{};
  int live = 0;
  Barrier barrier, named[kNamedBarriers];
  std::vector<Warp> warps;
};

/// The cluster that runs.
struct Cluster {
  std::deque<Thread> threads;  // which stay where they are
  std::vector<Block> blocks;
  Barrier barrier;
  std::unordered_map<void*, Mbarrier> mbarriers;
  int block_threads = 0;
  int live = 0, running = 0;
  size_t shared_bytes = 0;  // of a block
  const std::function<void()>* kernel = nullptr;
  bool late = true;
  char begin_key = 0, end_key = 0;

  int all_threads() const { return block_threads * static_cast<int>(blocks.size()); }
  Thread& thread() { return threads[running]; }
  Block& block() { return blocks[running / block_threads]; }
  Warp& warp() { return block().warps[running % block_threads / kWarp]; }
};

alignas(1024) unsigned char shared[kMostBlocks * kSharedStride];
Cluster cluster;

void resume(int number) {
  cluster.running = number;
  const auto n = static_cast<unsigned>(number % cluster.block_threads);
  threadIdx = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
  blockIdx = cluster.block().index;
  cluster.thread().fiber.resume();
}

/// The running thread waits for `what`, until somebody wakes those who do.
void wait_for(const void* what, Place place) {
  Thread& thread = cluster.thread();
  thread.state = State::kWaits;
  thread.waits_for = what;
  thread.place = place;
  thread.fiber.pause();
}

/// Those among `count` threads from `first` on.
void wake(const void* what, int first, int count) {
  for (int i = first; i < first + count; ++i) {
    Thread& thread = cluster.threads[i];
    if (thread.state == State::kWaits && thread.waits_for == what) thread.state = State::kReady;
  }
}

void open(Barrier& barrier) {
  barrier.arrived = 0;
  barrier.turn = (barrier.turn + 1) % 3;
  barrier.counted[(barrier.turn + 1) % 3] = 0;
  barrier.ordering.turn ^= 1;
  wake(&barrier, 0, cluster.all_threads());
}

/// Waits until `threads` have come.
int meet(Barrier& barrier, int threads, bool counted, Place place) {
  const int turn = barrier.turn;
  void* key = barrier.ordering.key();
  barrier.counted[turn] += counted ? 1 : 0;
  leave(key);
  if (++barrier.arrived == threads) {
    open(barrier);
  } else {
    wait_for(&barrier, place);
  }
  enter(key);
  return barrier.counted[turn];
}

void meet_in_warp(uint32_t mask, Place place) {
  Warp& warp = cluster.warp();
  const int number = cluster.running % cluster.block_threads;
  const int first = number / kWarp * kWarp, lanes = std::min(kWarp, cluster.block_threads - first);
  const uint32_t all = lanes == kWarp ? ~0U : (1U << lanes) - 1;
  if ((mask & all) != all) fail("%s:%d: only whole warps can be emulated", place.file, place.line);
  if (warp.arrived == 0) warp.place = place;
  if (warp.place.line != place.line || std::strcmp(warp.place.file, place.file) != 0) {
    fail("lanes of a warp wait at different places, %s:%d and %s:%d", warp.place.file,
         warp.place.line, place.file, place.line);
  }
  for (int i = 0; i < lanes; ++i) {
    if (cluster.threads[cluster.running - number + first + i].state != State::kReturned) continue;
    fail("%s:%d: thread %d waits for thread %d, which has returned", place.file, place.line, number,
         first + i);
  }
  warp.arrived |= 1U << number % kWarp;
  if (warp.arrived != all) return wait_for(&warp, place);
  warp.arrived = 0;
  warp.ordering.turn ^= 1;
  wake(&warp, cluster.running - number + first, lanes);
}

void run_thread() {
  enter(&cluster.begin_key);
  (*cluster.kernel)();
  cluster.thread().queues.stores.wait_for_all();
  leave(&cluster.end_key);
  const Warp& warp = cluster.warp();
  if (warp.arrived != 0) {
    fail("thread %d returns while lanes of its warp wait for it at %s:%d", thread_number(),
         warp.place.file, warp.place.line);
  }
  cluster.thread().state = State::kReturned;
  Block& block = cluster.block();
  --block.live;
  --cluster.live;
  if (block.live == 0 && cluster.live > 0) {  // from here on its memory is nobody's
    enter(&cluster.end_key);
    std::memset(shared_memory(block_rank()), 0xFF, cluster.shared_bytes);
    leave(&cluster.end_key);
  }
  if (block.live > 0 && block.barrier.arrived == block.live) open(block.barrier);
  if (cluster.live > 0 && cluster.barrier.arrived == cluster.live) open(cluster.barrier);
}

/// A fiber runs a thread of one block after the other.
void run_threads() {
  while (true) {
    run_thread();
    cluster.thread().fiber.pause();
  }
}

std::string setting(const char* name, const char* otherwise) {
  const char* given = std::getenv(name);
  return given == nullptr ? otherwise : given;
}

/// The order of a round, in which who is ready runs once. Where threads are shuffled, a warp rests
/// in every other round or so, so that some come far before others.
class Order {
 public:
  explicit Order(int threads) : threads_(threads), rests_((threads + kWarp - 1) / kWarp) {
    std::iota(threads_.begin(), threads_.end(), 0);
    const std::string order = setting("DMAMBA_EMULATION_ORDER", "1");
    if (order == "backward") std::reverse(threads_.begin(), threads_.end());
    if (order == "forward" || order == "backward") return;
    if (order.empty() || order.find_first_not_of("0123456789") != std::string::npos) {
      fail("DMAMBA_EMULATION_ORDER must be forward, backward or a number, got '%s'", order.c_str());
    }
    random_.seed(static_cast<unsigned>(std::strtoul(order.c_str(), nullptr, 10)));
    shuffles_ = true;
  }

  const std::vector<int>& round() {
    if (shuffles_) {
      std::shuffle(threads_.begin(), threads_.end(), random_);
      for (size_t i = 0; i < rests_.size(); ++i) rests_[i] = random_() % 2 == 0;
    }
    return threads_;
  }
  bool rests(int thread) const { return rests_[thread / kWarp]; }

 private:
  std::vector<int> threads_;
  std::vector<bool> rests_;  // by warp
  std::minstd_rand random_;
  bool shuffles_ = false;
};

void prepare_blocks(uint3 first, unsigned count) {
  cluster.blocks.clear();
  for (unsigned rank = 0; rank < count; ++rank) {
    Block& block = cluster.blocks.emplace_back();
    block.index = {first.x + rank, first.y, first.z};
    block.live = cluster.block_threads;
    block.warps.resize((cluster.block_threads + kWarp - 1) / kWarp);
    unsigned char* memory = shared_memory(static_cast<int>(rank));
    allow(memory, kSharedStride);
    std::memset(memory, 0xFF, cluster.shared_bytes);
    forbid(memory + cluster.shared_bytes, kSharedStride - cluster.shared_bytes);
  }
  std::fill(__start_dmamba_shared, __stop_dmamba_shared, 0xFF);
  cluster.barrier = {};
  cluster.mbarriers.clear();
  cluster.live = cluster.all_threads();
  for (int i = 0; i < cluster.live; ++i) {
    cluster.threads[i].state = State::kReady;
    cluster.threads[i].queues = {};
  }
}

void run_blocks(Order& order) {
  leave(&cluster.begin_key);
  while (cluster.live > 0) {
    bool ready = false;
    for (const int i : order.round()) {
      if (cluster.threads[i].state != State::kReady) continue;
      ready = true;
      if (!order.rests(i)) resume(i);
    }
    if (ready) continue;
    const auto waiting =
        std::find_if(cluster.threads.begin(), cluster.threads.end(),
                     [](const Thread& thread) { return thread.state == State::kWaits; });
    fail("block %u: all threads wait, one of them at %s:%d", cluster.blocks[0].index.x,
         waiting->place.file, waiting->place.line);
  }
  enter(&cluster.end_key);
  const auto written = [](unsigned char byte) { return byte != 0xFF; };
  if (cluster.blocks.size() > 1 &&
      std::any_of(__start_dmamba_shared, __stop_dmamba_shared, written)) {
    fail("a __shared__ variable in a cluster, whose blocks would share it here");
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 threads, unsigned blocks, size_t shared_bytes,
              const std::function<void()>& kernel) {
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kMostThreads) fail("a block of %lu threads", count);
  if (shared_bytes > kMostShared) fail("a block with %zu bytes of shared memory", shared_bytes);
  if (blocks == 0 || blocks > kMostBlocks || grid.x % blocks != 0) {
    fail("clusters of %u blocks in a grid of %u", blocks, grid.x);
  }
  const std::string async = setting("DMAMBA_EMULATION_ASYNC", "late");
  if (async != "late" && async != "early") {
    fail("DMAMBA_EMULATION_ASYNC must be late or early, got '%s'", async.c_str());
  }
  cluster.late = async == "late";
  cluster.block_threads = static_cast<int>(count);
  cluster.kernel = &kernel;
  cluster.shared_bytes = shared_bytes;
  const int all = cluster.block_threads * static_cast<int>(blocks);
  while (static_cast<int>(cluster.threads.size()) < all) cluster.threads.emplace_back(run_threads);
  Order order(all);
  gridDim = grid;
  blockDim = threads;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += blocks) {
        prepare_blocks({x, y, z}, blocks);
        run_blocks(order);
      }
    }
  }
}

int wait_for_block(Place place, bool counted) {
  Block& block = cluster.block();
  return meet(block.barrier, block.live, counted, place);
}

void wait_for_some(int barrier, int threads, Place place) {
  meet(cluster.block().named[barrier], threads, false, place);
}

void wait_for_cluster(Place place) { meet(cluster.barrier, cluster.live, false, place); }

void wait_for_warp(uint32_t mask, Place place) {
  void* key = cluster.warp().ordering.key();
  leave(key);
  meet_in_warp(mask, place);
  enter(key);
}

const std::array<Message, 32>& exchange(uint32_t mask, const Message& message, Place place) {
  Warp& warp = cluster.warp();
  auto& messages = warp.messages[warp.ordering.turn];
  messages[thread_number() % kWarp] = message;
  meet_in_warp(mask, place);
  return messages;
}

int thread_number() { return cluster.running % cluster.block_threads; }
int block_rank() { return cluster.running / cluster.block_threads; }
unsigned char* shared_memory(int rank) { return shared + rank * kSharedStride; }
Queues& queues() { return cluster.thread().queues; }

void Queue::add(Work work) {
  if (!cluster.late) return work();
  groups_.back().push_back(std::move(work));
}

void Queue::commit() { groups_.emplace_back(); }

void Queue::wait(size_t left) {
  while (groups_.size() > left + 1) {
    for (const Work& work : groups_.front()) work();
    groups_.erase(groups_.begin());
  }
}

void Queue::wait_for_all() {
  commit();
  wait(0);
}

// Barriers in shared memory

namespace {

Mbarrier& find(void* barrier) {
  const auto found = cluster.mbarriers.find(barrier);
  if (found == cluster.mbarriers.end()) fail("a barrier that nobody has made");
  return found->second;
}

void end_phase_of(void* at, Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  wake(at, 0, cluster.all_threads());
}

void do_work_of(void* at, Mbarrier& barrier) {
  enter(at);
  std::vector<Queue::Work> now = std::exchange(barrier.work, {});
  for (const Queue::Work& each : now) each();
  const Unseen unseen;
  now = {};
}

}  // namespace

void make_mbarrier(void* barrier, int arrivals) {
  const Unseen unseen;
  cluster.mbarriers[barrier] = {arrivals, arrivals, 0, 0, {}};
  leave(barrier);
}

void arrive_at(void* at, int64_t expected_bytes) {
  Mbarrier& barrier = find(at);
  leave(at);
  barrier.bytes += expected_bytes;
  if (--barrier.pending < 0) fail("more threads arrive at a barrier than it was made for");
  end_phase_of(at, barrier);
}

void bring_bytes(void* at, int64_t bytes, Queue::Work work) {
  Mbarrier& barrier = find(at);
  leave(at);
  {
    const Unseen unseen;
    barrier.work.push_back([at, bytes, work = std::move(work)] {
      work();
      leave(at);
      Mbarrier& reached = find(at);
      reached.bytes -= bytes;
      end_phase_of(at, reached);
    });
  }
  if (cluster.late) return wake(at, 0, cluster.all_threads());
  do_work_of(at, barrier);
}

void wait_for_phase_of(void* at, unsigned parity, Place place) {
  Mbarrier& barrier = find(at);
  while (barrier.phase % 2 == parity) {
    do_work_of(at, barrier);
    if (barrier.phase % 2 == parity) wait_for(at, place);
  }
  enter(at);
}

void note_result(const void* memory, size_t bytes) {
  static uint64_t digest = [] {  // FNV-1a
    std::atexit([] { std::printf("digest of the results: %016lx\n", digest); });
    return 0xCBF29CE484222325U;
  }();
  const auto* begin = static_cast<const unsigned char*>(memory);
  for (size_t i = 0; i < bytes; ++i) digest = (digest ^ begin[i]) * 0x100000001B3U;
}

void fail(const char* format, ...) {
  std::fflush(stdout);
  std::fputs("emulation: ", stderr);
  va_list words;
  va_start(words, format);
  std::vfprintf(stderr, format, words);
  va_end(words);
  std::fputc('\n', stderr);
  std::abort();
}

}  // namespace dmamba::emulation
