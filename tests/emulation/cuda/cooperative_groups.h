// Cooperative groups: clusters.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  void sync(EmulationPlace here = DMAMBA_HERE) const { dmamba::emulation::wait_for_cluster(here); }

  template <class T>
  T* map_shared_rank(T* here, int rank) const {
    auto* bytes = reinterpret_cast<unsigned char*>(here);
    return reinterpret_cast<T*>(dmamba::emulation::shared_memory(rank) +
                                (bytes - dmamba::emulation::shared_memory()));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
