// Allocator settings; see memory.h.
#include "src/train/memory.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace dmamba::train {

void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int kMiB = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, 32 * kMiB);  // the most that glibc allows
  mallopt(M_TRIM_THRESHOLD, 2047 * kMiB);
#endif
}

}  // namespace dmamba::train
