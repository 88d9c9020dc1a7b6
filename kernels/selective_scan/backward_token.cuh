// One token of the backward scan's walk, forward and back: a lane's channels and states.
#pragma once

#include "kernels/selective_scan/tile.cuh"

namespace dmamba::kernels {

/// What the walk reads of a token.
template <class Shape>
struct ScanToken {
  float dt_dtu[2 * Shape::kPerLane], dy[Shape::kPerLane];
  float B[kStatesPerLane], C[kStatesPerLane];  // C where it is asked for
};

template <class Shape>
using ScanLane = float[Shape::kPerLane][kStatesPerLane];

/// exp(dt A), for log2(e) A.
template <bool kPlain, class Shape>
__device__ __forceinline__ void find_decays(const ScanToken<Shape>& now, const ScanLane<Shape>& A,
                                            float forget, ScanLane<Shape>& decays) {
#pragma unroll
  for (int c = 0; c < Shape::kPerLane; ++c) {
    const float dt = now.dt_dtu[2 * c];
#pragma unroll
    for (int s = 0; s < kStatesPerLane; ++s) {
      decays[c][s] = exp2_fast(fmaf(dt, A[c][s], kPlain ? kExp2Shift : forget));
    }
  }
}

/// Forward: from h `before` to h `after`, and the lane's part of dC.
template <class Shape>
__device__ __forceinline__ void forth(const ScanToken<Shape>& now, const ScanLane<Shape>& decays,
                                      const ScanLane<Shape>& before, ScanLane<Shape>& after,
                                      float (&dC)[kStatesPerLane]) {
#pragma unroll
  for (int c = 0; c < Shape::kPerLane; ++c) {
    const float dtu = now.dt_dtu[2 * c + 1], dy = now.dy[c];
#pragma unroll
    for (int s = 0; s < kStatesPerLane; ++s) {
      const float h = fmaf(decays[c][s], before[c][s], dtu * now.B[s]);
      after[c][s] = h;
      dC[s] = c == 0 ? dy * h : fmaf(dy, h, dC[s]);
    }
  }
}

/// Back, from ag = a_{t+1} g_{t+1} to a_t g_t, with h `before` the token: adds to dA, and leaves
/// the lane's parts of dB and, by channel, of ddt and of the sum of B g.
template <class Shape>
__device__ __forceinline__ void back(const ScanToken<Shape>& now, const ScanLane<Shape>& decays,
                                     const ScanLane<Shape>& before, const ScanLane<Shape>& A,
                                     ScanLane<Shape>& ag, ScanLane<Shape>& dA,
                                     float (&dB)[kStatesPerLane],
                                     float (&ddt_Bg)[2 * Shape::kPerLane]) {
#pragma unroll
  for (int c = 0; c < Shape::kPerLane; ++c) {
    const float dt = now.dt_dtu[2 * c], dtu = now.dt_dtu[2 * c + 1];
    float &ddt = ddt_Bg[c], &Bg = ddt_Bg[Shape::kPerLane + c];
#pragma unroll
    for (int s = 0; s < kStatesPerLane; ++s) {
      const float g = fmaf(now.dy[c], now.C[s], ag[c][s]);
      dB[s] = c == 0 ? dtu * g : fmaf(dtu, g, dB[s]);
      Bg = s == 0 ? now.B[0] * g : fmaf(now.B[s], g, Bg);
      ag[c][s] = decays[c][s] * g;
      const float ahg = ag[c][s] * before[c][s];
      dA[c][s] = fmaf(dt, ahg, dA[c][s]);
      ddt = s == 0 ? A[c][0] * ahg : fmaf(A[c][s], ahg, ddt);
    }
  }
}

}  // namespace dmamba::kernels
