// Layer norm of a few tokens, mean and variance in two passes.
#pragma once

#include <cmath>

#include "src/ops/cpu/simd/access.h"
#include "src/ops/cpu/simd/params.h"

namespace dmamba::ops::cpu {
namespace {

/// The sum over the lanes, by halves.
template <class V>
typename V::Real sum_of_lanes(V v) {
  typename V::Real lanes[V::kLanes];
  v.store(lanes, V::kLanes);
  for (int half = V::kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class V>
void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  using R = typename V::Real;
  const auto lanes_from = [&](int64_t c) {
    return static_cast<int>(p.channels - c < V::kLanes ? p.channels - c : V::kLanes);
  };
  const R count = static_cast<R>(p.channels);
  for (int64_t token = begin; token < end; ++token) {
    const R* x = static_cast<const R*>(p.x) + token * p.channels;
    R* out = static_cast<R*>(p.out) + token * p.channels;
    V sum = V::set1(0);
    for (int64_t c = 0; c < p.channels; c += V::kLanes) sum = sum + V::load(x + c, lanes_from(c));
    R means[V::kLanes];
    const V mean = V::set1(sum_of_lanes(sum) / count);
    mean.store(means, V::kLanes);
    V squares = V::set1(0);
    for (int64_t c = 0; c < p.channels; c += V::kLanes) {
      const int n = lanes_from(c);
      const V apart = V::load(x + c, n) - V::load(means, n);  // zero beyond the last channel
      squares = fma(apart, apart, squares);
    }
    const R variance = sum_of_lanes(squares) / count;
    const V scale = V::set1(1 / std::sqrt(variance + static_cast<R>(p.epsilon)));
    for (int64_t c = 0; c < p.channels; c += V::kLanes) {
      const int n = lanes_from(c);
      const V normal = (V::load(x + c, n) - mean) * scale;
      fma(normal, load_channel<V>(p.weight, c, n), load_channel<V>(p.bias, c, n)).store(out + c, n);
    }
  }
}

}  // namespace
}  // namespace dmamba::ops::cpu
