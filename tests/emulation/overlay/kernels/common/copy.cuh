// In the place of kernels/common/copy.cuh: copies that arrive when they are waited for, and until
// then leave NaN where they go.
#pragma once

#include <cuda_runtime.h>

namespace dmamba::kernels {

/// By distance from the first block's dynamic memory, so that blocks of a cluster have different
/// ones; static variables lie less than 2 GB from it.
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - emulation::shared_memory(0));
}
inline unsigned char* at_shared_address(uint32_t address) {
  return emulation::shared_memory(0) + static_cast<int32_t>(address);
}

inline void send_copy(void* to, const void* from, int bytes, int size) {
  if (reinterpret_cast<uintptr_t>(to) % size != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(from) % size != 0)) {
    emulation::fail("a copy of %d bytes that is not aligned", size);
  }
  std::memset(to, 0xFF, size);
  emulation::queues().copies.add([=] {
    std::memset(to, 0, size);
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
}

inline void copy_async(void* to, const void* from, int bytes) { send_copy(to, from, bytes, 16); }
inline void copy_async(uint32_t at, const void* from, int bytes) {
  copy_async(at_shared_address(at), from, bytes);
}
template <int kBytes>
void copy_async(void* shared, const void* global, bool valid) {
  send_copy(shared, global, valid ? kBytes : 0, kBytes);
}
inline void wait_for_copies() { emulation::queues().copies.wait_for_all(); }
inline void commit_copies() { emulation::queues().copies.commit(); }
template <int kLeft>
void wait_for_copies() {
  emulation::queues().copies.wait(kLeft);
}

}  // namespace dmamba::kernels
