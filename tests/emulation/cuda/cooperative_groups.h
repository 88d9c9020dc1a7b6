// Cooperative groups: clusters.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  void sync(EmulationPlace here = DMAMBA_HERE) const { dmamba::emulation::wait_for_cluster(here); }

  template <class T>
  T* map_shared_rank(T* here, int rank) const {
    return dmamba::emulation::place_in_block(rank, here);
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
