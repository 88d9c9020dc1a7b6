// How the vector kernels reach into the tensors that their parameters describe.
#pragma once

#include "kernels/common/types.h"

namespace dmamba::ops::cpu {
namespace {

using kernels::BFloat16;
using kernels::Flags;
using kernels::Sequence;
using kernels::StateView;

/// The row of token t of sequence b.
template <class T>
T* row(const Sequence& s, int64_t b, int64_t t) {
  return static_cast<T*>(s.data) + b * s.batch_stride + t * s.step_stride;
}

/// Tokens between a row's prefetch and its use. Few, because rows of 256 floats fall into four sets
/// of the first-level cache: further ahead they push each other out.
constexpr int64_t kAhead = 4;

/// Asks for the row of token t, if there is one: rows lie d_inner apart, too far for the processor
/// to foresee.
template <class T>
void prefetch_row(const Sequence& s, int64_t b, int64_t t, int64_t length, int64_t c) {
  if (s.data != nullptr && t >= 0 && t < length) __builtin_prefetch(row<const T>(s, b, t) + c);
}

inline bool flag(const Flags& f, int64_t b, int64_t length, int64_t t, bool absent) {
  return f.data == nullptr ? absent : f.data[b * length + t];
}

/// Column `k` of `n` channels from `c` on of a state; gathers where channels are not contiguous.
template <class V>
V load_state(const StateView& s, int64_t b, int64_t c, int64_t k, int n) {
  using R = typename V::Real;
  const R* p = static_cast<const R*>(s.data) + b * s.batch_stride + c * s.channel_stride +
               k * s.width_stride;
  if (s.channel_stride == 1) return V::load(p, n);
  R lanes[V::kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i * s.channel_stride];
  return V::load(lanes, V::kLanes);
}

template <class V>
void store_state(const StateView& s, int64_t b, int64_t c, int64_t k, int n, V value) {
  using R = typename V::Real;
  R* p = static_cast<R*>(s.data) + b * s.batch_stride + c * s.channel_stride + k * s.width_stride;
  if (s.channel_stride == 1) {
    value.store(p, n);
    return;
  }
  R lanes[V::kLanes];
  value.store(lanes, V::kLanes);
  for (int i = 0; i < n; ++i) p[i * s.channel_stride] = lanes[i];
}

/// The `index`-th channel block of a problem: which sequence, first channel, lanes in use.
template <class V>
struct Block {
  int64_t b, c;
  int n;
  Block(int64_t index, int64_t d_inner) {
    const int64_t blocks = (d_inner + V::kLanes - 1) / V::kLanes;
    b = index / blocks;
    c = (index % blocks) * V::kLanes;
    n = static_cast<int>(d_inner - c < V::kLanes ? d_inner - c : V::kLanes);
  }
};

/// One element in every lane.
template <class V>
V broadcast(const float* p) {
  return V::set1(*p);
}
template <class V>
V broadcast(const double* p) {
  return V::set1(*p);
}
template <class V>
V broadcast(const BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return V::set1(x);
}

/// One vector of a per-channel parameter, or zero where it is absent.
template <class V>
V load_channel(const void* p, int64_t c, int n) {
  return p == nullptr ? V::set1(0) : V::load(static_cast<const typename V::Real*>(p) + c, n);
}

}  // namespace
}  // namespace dmamba::ops::cpu
