// Causal depthwise convolution with SiLU, forward and backward: a vector of channels walks along L
// with its window of inputs in scratch. Equations: kernels/causal_conv1d/params.h.
#pragma once

#include "kernels/causal_conv1d/params.h"
#include "src/ops/cpu/simd/access.h"
#include "src/ops/cpu/simd/math.h"

namespace dmamba::ops::cpu {
namespace {

using kernels::CausalConv1dBackwardParams;
using kernels::CausalConv1dForwardParams;
using kernels::CausalConv1dParams;

/// The weights and the window of one block; slot width - 1 of the window is the present token.
/// kWidth > 0: the width known at compile time, so that all of it stays in registers; 0: any width,
/// in `memory`.
template <class V, int kWidth>
struct Window {
  int64_t any_width;
  V in_place[kWidth > 0 ? 4 * kWidth : 1];
  V* memory;

  Window(const CausalConv1dParams& p, V* scratch)
      : any_width(p.width), memory(kWidth > 0 ? in_place : scratch) {}
  Window(const Window&) = delete;

  int64_t width() const { return kWidth > 0 ? kWidth : any_width; }
  V& weight(int64_t j) { return memory[j]; }
  V& x(int64_t j) { return memory[width() + j]; }
  V& dx(int64_t j) { return memory[2 * width() + j]; }
  V& dweight(int64_t j) { return memory[3 * width() + j]; }

  void enter(const CausalConv1dParams& p, const Block<V>& k) {
    using R = typename V::Real;
    for (int64_t j = 0; j < width(); ++j) {
      weight(j) = V::load(static_cast<const R*>(p.weight) + j * p.d_inner + k.c, k.n);
      dx(j) = dweight(j) = V::set1(0);
      x(j) = j > 0 && p.initial_state.data ? load_state<V>(p.initial_state, k.b, k.c, j - 1, k.n)
                                           : V::set1(0);
    }
  }
  /// Takes the next input in; older ones move one slot down.
  void push(V next) {
    for (int64_t j = 0; j + 1 < width(); ++j) x(j) = x(j + 1);
    x(width() - 1) = next;
  }
  void clear() {
    for (int64_t j = 0; j < width(); ++j) x(j) = V::set1(0);
  }
  V dot(V bias) {
    V sum = bias;
    for (int64_t j = 0; j < width(); ++j) sum = fma(weight(j), x(j), sum);
    return sum;
  }
};

template <class V>
size_t conv_scratch(const CausalConv1dParams& p) {
  return 4 * static_cast<size_t>(p.width) * sizeof(V);
}

/// The input of token t after the mask.
template <class V, class T>
V masked_input(const CausalConv1dParams& p, const Block<V>& k, int64_t t) {
  return flag(p.mask, k.b, p.length, t, true) ? V::load(row<const T>(p.x, k.b, t) + k.c, k.n)
                                              : V::set1(0);
}

template <class V, class T, int kWidth>
void conv_forward_units(const CausalConv1dForwardParams& p, int64_t begin, int64_t end, V* work) {
  Window<V, kWidth> w(p, work);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block<V> k(unit, p.d_inner);
    w.enter(p, k);
    const V bias = load_channel<V>(p.bias, k.c, k.n);
    for (int64_t t = 0; t < p.length; ++t) {
      prefetch_row<T>(p.x, k.b, t + kAhead, p.length, k.c);
      prefetch_row<T>(p.out, k.b, t + kAhead, p.length, k.c);
      if (flag(p.segment_starts, k.b, p.length, t, false)) w.clear();
      w.push(masked_input<V, T>(p, k, t));
      const V sum = w.dot(bias);
      (p.silu ? silu(sum) : sum).store(row<T>(p.out, k.b, t) + k.c, k.n);
    }
    if (!p.last_state.data) continue;
    for (int64_t j = 1; j < p.width; ++j) {
      store_state<V>(p.last_state, k.b, k.c, j - 1, k.n, w.x(j));
    }
  }
}

/// Stores the finished gradient of the input of token t: into dx, or before it into the initial
/// state.
template <class V, class T>
void finish_input(const CausalConv1dBackwardParams& p, const Block<V>& k, int64_t t, V value) {
  if (t >= 0) {
    const bool live = flag(p.mask, k.b, p.length, t, true);
    (live ? value : V::set1(0)).store(row<T>(p.dx, k.b, t) + k.c, k.n);
  } else if (p.dinitial_state.data && t + p.width - 1 >= 0) {
    store_state<V>(p.dinitial_state, k.b, k.c, t + p.width - 1, k.n, value);
  }
}

/// Adds the gradient of the last state, then finishes the inputs that are still in the window.
template <class V, class T, int kWidth>
void finish_window(const CausalConv1dBackwardParams& p, const Block<V>& k, int64_t oldest,
                   Window<V, kWidth>& w) {
  for (int64_t j = 0; j < w.width(); ++j) {
    if (p.dlast_state.data && j > 0 && j >= oldest) {
      w.dx(j) = w.dx(j) + load_state<V>(p.dlast_state, k.b, k.c, j - 1, k.n);
    }
    finish_input<V, T>(p, k, p.length - w.width() + j, w.dx(j));
  }
}

/// One pass forward: the pre-activation is recomputed, and the gradient of an input is finished
/// when the input leaves the window. Slots older than the segment's start take no gradient.
template <class V, class T, int kWidth>
void conv_backward_units(const CausalConv1dBackwardParams& p, int64_t begin, int64_t end, V* work) {
  using R = typename V::Real;
  Window<V, kWidth> w(p, work);
  const int64_t width = w.width();
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block<V> k(unit, p.d_inner);
    w.enter(p, k);
    const V bias = load_channel<V>(p.bias, k.c, k.n);
    V dbias = V::set1(0);
    int64_t oldest = 0;  // the oldest slot that belongs to the present segment
    for (int64_t t = 0; t < p.length; ++t) {
      prefetch_row<T>(p.x, k.b, t + kAhead, p.length, k.c);
      prefetch_row<T>(p.dout, k.b, t + kAhead, p.length, k.c);
      prefetch_row<T>(p.dx, k.b, t + kAhead, p.length, k.c);
      finish_input<V, T>(p, k, t - width, w.dx(0));
      for (int64_t j = 0; j + 1 < width; ++j) w.dx(j) = w.dx(j + 1);
      w.dx(width - 1) = V::set1(0);
      oldest = oldest > 0 ? oldest - 1 : 0;
      if (flag(p.segment_starts, k.b, p.length, t, false)) {
        w.clear();
        oldest = width - 1;
      }
      w.push(masked_input<V, T>(p, k, t));
      V d = V::load(row<const T>(p.dout, k.b, t) + k.c, k.n);
      if (p.silu) {
        const V sum = w.dot(bias);
        d = d * silu_derivative(sum, sigmoid(sum));
      }
      for (int64_t j = 0; j < width; ++j) {
        if (j < oldest) continue;
        w.dx(j) = fma(d, w.weight(j), w.dx(j));
        w.dweight(j) = fma(d, w.x(j), w.dweight(j));
      }
      dbias = dbias + d;
    }
    finish_window<V, T>(p, k, oldest, w);
    for (int64_t j = 0; j < width; ++j) {
      R* out = static_cast<R*>(p.dweight_partial) + (k.b * width + j) * p.d_inner + k.c;
      w.dweight(j).store(out, k.n);
    }
    if (p.dbias_partial) {
      dbias.store(static_cast<R*>(p.dbias_partial) + k.b * p.d_inner + k.c, k.n);
    }
  }
}

template <class V, class T>
void conv_forward_typed(const CausalConv1dForwardParams& p, int64_t begin, int64_t end, V* work) {
  if (p.width == 4) return conv_forward_units<V, T, 4>(p, begin, end, work);
  conv_forward_units<V, T, 0>(p, begin, end, work);
}

template <class V, class T>
void conv_backward_typed(const CausalConv1dBackwardParams& p, int64_t begin, int64_t end, V* work) {
  if (p.width == 4) return conv_backward_units<V, T, 4>(p, begin, end, work);
  conv_backward_units<V, T, 0>(p, begin, end, work);
}

}  // namespace
}  // namespace dmamba::ops::cpu
