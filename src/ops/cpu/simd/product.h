// Products of a packed matrix with a few tokens: a panel's sums for several tokens stay in
// registers while its weights stream by, so that each weight is read once for all of them.
//
// For one environment (three tokens) of a 0.72 million weights model the stream bounds fp32 (2.9 MB
// from the third cache), the multiply-adds bound bf16.
#pragma once

#include "src/ops/cpu/simd/access.h"
#include "src/ops/cpu/simd/params.h"

namespace dmamba::ops::cpu {
namespace {

/// Columns whose weights lie side by side.
template <class T>
constexpr int64_t kColumnsTogether = sizeof(T) == sizeof(BFloat16) ? 2 : 1;

/// The sums of kVectors vectors of rows for kTokens tokens.
template <class V, int kVectors, int kTokens>
struct ProductTile {
  using R = typename V::Real;
  V sum[kVectors][kTokens];

  /// sum += weight_r x_k for the vectors r of a panel and all tokens.
  __attribute__((always_inline)) void add(int r, V weight, const R* x, int64_t x_stride) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[r][t] = fma(weight, V::set1(x[t * x_stride]), sum[r][t]);
  }

  template <class T>
  void run(const ProductParams& p, const T* weight, int64_t row, int64_t token) {
    constexpr int64_t kTogether = kColumnsTogether<T>, kStep = V::kLanes * kTogether;
#pragma GCC unroll 8
    for (int r = 0; r < kVectors; ++r) {
      const V bias = load_channel<V>(p.bias, row + r * V::kLanes, lanes(p, row, r));
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sum[r][t] = bias;
    }
    const R* x = static_cast<const R*>(p.x) + token * p.x_stride;
    int64_t k = 0;
    for (; k + kTogether <= p.columns; k += kTogether) {
#pragma GCC unroll 8
      for (int r = 0; r < kVectors; ++r, weight += kStep) {
        if constexpr (kTogether == 2) {
          V even, odd;
          V::load_pairs(weight, even, odd);
          add(r, even, x + k, p.x_stride);
          add(r, odd, x + k + 1, p.x_stride);
        } else {
          add(r, V::load(weight, V::kLanes), x + k, p.x_stride);
        }
      }
    }
    if constexpr (kTogether == 2) {
      for (int r = 0; r < kVectors && k < p.columns; ++r, weight += kStep) {
        V even, beside;
        V::load_pairs(weight, even, beside);
        add(r, even, x + k, p.x_stride);
      }
    }
    store(p, row, token);
  }

 private:
  /// Lanes of vector r that hold rows.
  static int lanes(const ProductParams& p, int64_t row, int r) {
    const int64_t left = p.rows - row - r * V::kLanes;
    return static_cast<int>(left < V::kLanes ? left : V::kLanes);
  }

  void store(const ProductParams& p, int64_t row, int64_t token) const {
#pragma GCC unroll 8
    for (int r = 0; r < kVectors; ++r) {
      const int n = lanes(p, row, r);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        R* out = static_cast<R*>(p.out) + (token + t) * p.out_stride + row + int64_t{r} * V::kLanes;
        (p.add ? V::load(out, n) + sum[r][t] : sum[r][t]).store(out, n);
      }
    }
  }
};

/// As many tokens at a time as the registers hold. A token's sum is the same in any tile.
template <class V, class T, int kVectors>
void product_panel(const ProductParams& p, const T* weight, int64_t row, int64_t begin,
                   int64_t end) {
  constexpr int kMost = V::kLanes >= 16 ? 6 : 3;
  int64_t t = begin;
  for (; t + kMost <= end; t += kMost) ProductTile<V, kVectors, kMost>().run(p, weight, row, t);
  if constexpr (kMost > 3) {
    if (t + 3 <= end) {
      ProductTile<V, kVectors, 3>().run(p, weight, row, t);
      t += 3;
    }
  }
  if (t + 2 <= end) {
    ProductTile<V, kVectors, 2>().run(p, weight, row, t);
    t += 2;
  }
  if (t < end) ProductTile<V, kVectors, 1>().run(p, weight, row, t);
}

template <class V, class T>
void product_typed(const ProductParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kTogether = kColumnsTogether<T>;
  const int64_t columns = (p.columns + kTogether - 1) / kTogether * kTogether;
  const T* weight = static_cast<const T*>(p.weight);
  constexpr int64_t kPanel = kPanelVectors * V::kLanes;
  for (int64_t row = 0; row < p.rows; row += kPanel, weight += kPanel * columns) {
    switch ((p.rows - row + V::kLanes - 1) / V::kLanes) {
      case 1:
        product_panel<V, T, 1>(p, weight, row, begin, end);
        break;
      case 2:
        product_panel<V, T, 2>(p, weight, row, begin, end);
        break;
      case 3:
        product_panel<V, T, 3>(p, weight, row, begin, end);
        break;
      default:
        product_panel<V, T, kPanelVectors>(p, weight, row, begin, end);
    }
  }
}

}  // namespace
}  // namespace dmamba::ops::cpu
