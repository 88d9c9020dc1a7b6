// Parameters of the selective scan (Gu and Dao, arXiv 2312.00752, section 3), one struct a
// direction.
//
//   dt_t = mask_t ? softplus(delta_t + delta_bias) : 0          (softplus optional)
//   h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t                   (h_{t-1} = 0 at a segment's start)
//   y_t  = (C_t h_t + D u_t) SiLU(z_t)                          (D, z optional)
//
// Free of torch and of CUDA: the CPU version shares it. An absent optional tensor is a null
// pointer.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::kernels {

struct SelectiveScanParams {
  int64_t batch, length, d_inner, d_state;
  Storage storage;
  bool delta_softplus;

  Sequence u, delta, z;  // (batch, L, d_inner), storage type
  Sequence B, C;         // (batch, L, d_state), storage type, d_state contiguous
  const void* A;         // (d_inner, d_state), any strides; the CPU wants contiguous channels
  int64_t A_channel_stride, A_state_stride;
  const void* D;           // (d_inner,)
  const void* delta_bias;  // (d_inner,)
  Flags mask;              // false: dt = 0
  Flags segment_starts;    // true: the state restarts from zero before this token
  StateView initial_state;

  /// h after every `checkpoint_every` tokens, batch x n_checkpoints x d_state x d_inner numbers in
  /// the backend's own type and order, where n_checkpoints = (L - 1) / checkpoint_every; 0 keeps
  /// none.
  int64_t checkpoint_every;
  void* checkpoints;
};

struct SelectiveScanForwardParams : SelectiveScanParams {
  Sequence out;          // (batch, L, d_inner), storage type
  StateView last_state;  // data may equal initial_state's: the update is in place
};

struct SelectiveScanBackwardParams : SelectiveScanParams {
  Sequence dout;          // (batch, L, d_inner), storage type
  Sequence out;           // the forward pass's, where there is z; the CPU does not read it
  StateView dlast_state;  // optional

  Sequence du, ddelta, dz;   // (batch, L, d_inner), storage type
  StateView dinitial_state;  // optional

  /// The CPU's. Channels are walked in groups of `group_channels`; each (sequence, group) leaves
  /// its own sums, which are added in a fixed order afterwards, so that threads don't change the
  /// bits.
  int64_t group_channels, n_groups;
  void* dA_partial;           // (batch, d_state, d_inner)
  void* dD_partial;           // (batch, d_inner), null without D
  void* ddelta_bias_partial;  // (batch, d_inner), null without delta_bias
  void* dB_partial;           // (n_groups, batch, L, d_state)
  void* dC_partial;           // (n_groups, batch, L, d_state)
};

}  // namespace dmamba::kernels
