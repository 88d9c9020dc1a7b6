// The token embedding, LayerNorm and dropout in double precision, on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "include/dmamba/common/philox.h"

namespace dmamba::bench {

using Doubles = std::vector<double>;

/// What a dropout of 0.1 makes of this element: kernels/elementwise/params.h.
inline double kept(uint64_t key, int64_t element) {
  const uint64_t counter = element / 64 * 16 + element % 16;
  const uint32_t counters[4] = {static_cast<uint32_t>(counter),
                                static_cast<uint32_t>(counter >> 32), 0, 0};
  const uint32_t keys[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  return common::philox4x32(counters, keys).word[element % 64 / 16] >= 429496730U ? 1.0 / 0.9 : 0.0;
}

inline void apply_dropout(Doubles& x, uint64_t key) {
  for (size_t i = 0; i < x.size(); ++i) x[i] *= kept(key, static_cast<int64_t>(i));
}

/// LayerNorm of rows, and its way back.
struct NormReference {
  int64_t width;
  Doubles weight, bias;
  Doubles normalised, rstd;  // of the rows that forward() saw
  Doubles dweight, dbias;    // column sums of backward()

  Doubles forward(const Doubles& x) {
    const int64_t rows = static_cast<int64_t>(x.size()) / width;
    Doubles y(x.size());
    normalised.resize(x.size());
    rstd.resize(rows);
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0, squares = 0;
      for (int64_t c = 0; c < width; ++c) mean += x[r * width + c] / static_cast<double>(width);
      for (int64_t c = 0; c < width; ++c) squares += std::pow(x[r * width + c] - mean, 2);
      rstd[r] = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (int64_t c = 0; c < width; ++c) {
        const int64_t i = r * width + c;
        normalised[i] = (x[i] - mean) * rstd[r];
        y[i] = normalised[i] * weight[c] + bias[c];
      }
    }
    return y;
  }

  Doubles backward(const Doubles& dy) {
    Doubles dx(dy.size());
    dweight.assign(width, 0);
    dbias.assign(width, 0);
    for (size_t r = 0; r < rstd.size(); ++r) {
      double sum = 0, product = 0;
      for (int64_t c = 0; c < width; ++c) {
        const size_t i = r * width + c;
        sum += dy[i] * weight[c] / static_cast<double>(width);
        product += dy[i] * weight[c] * normalised[i] / static_cast<double>(width);
        dweight[c] += dy[i] * normalised[i];
        dbias[c] += dy[i];
      }
      for (int64_t c = 0; c < width; ++c) {
        const size_t i = r * width + c;
        dx[i] = rstd[r] * (dy[i] * weight[c] - sum - normalised[i] * product);
      }
    }
    return dx;
  }
};

/// What a kind of token is made of.
struct KindReference {
  std::vector<float> values, weight, bias;  // (steps, features), (width, features), (width,)
  int64_t features;
};

struct EmbeddingReference {
  int64_t steps, width, max_timestep;
  std::vector<KindReference> kinds;
  std::vector<int64_t> timesteps;
  std::vector<float> time;
  Doubles dlinear, dtime;

  Doubles tokens() const {
    Doubles x(static_cast<size_t>(steps * 3 * width));
    for (int64_t i = 0; i < steps * 3 * width; ++i) {
      const int64_t c = i % width, step = i / width / 3;
      const KindReference& kind = kinds[i / width % 3];
      x[i] = static_cast<double>(kind.bias[c]) + time[row(step) * width + c];
      for (int64_t f = 0; f < kind.features; ++f) {
        x[i] += static_cast<double>(kind.values[step * kind.features + f]) *
                kind.weight[c * kind.features + f];
      }
    }
    return x;
  }

  void backward(const Doubles& dtokens) {
    int64_t columns = 0;
    for (const KindReference& kind : kinds) columns += kind.features + 1;
    dlinear.assign(columns * width, 0);
    dtime.assign(max_timestep * width, 0);
    for (int64_t i = 0; i < steps * 3 * width; ++i) {
      dtime[row(i / width / 3) * width + i % width] += dtokens[i];
    }
    int64_t at = 0;
    for (int64_t k = 0; k < 3; ++k) {
      const int64_t features = kinds[k].features;
      for (int64_t step = 0; step < steps; ++step) {
        for (int64_t c = 0; c < width; ++c) {
          const double d = dtokens[(step * 3 + k) * width + c];
          for (int64_t f = 0; f < features; ++f) {
            dlinear[at + c * features + f] += d * kinds[k].values[step * features + f];
          }
          dlinear[at + features * width + c] += d;
        }
      }
      at += (features + 1) * width;
    }
  }

 private:
  int64_t row(int64_t step) const {
    return std::clamp<int64_t>(timesteps[step], 0, max_timestep - 1);
  }
};

}  // namespace dmamba::bench
