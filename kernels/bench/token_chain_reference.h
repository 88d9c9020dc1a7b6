// The token chain in double precision, on the host; nothing is rounded on the way.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "include/dmamba/common/philox.h"

namespace dmamba::bench {

struct ChainReference {
  int64_t rows, width, inner, hidden_width, next;
  double p;  // of the dropout
  std::vector<float> out_proj, first, second, in_proj, first_bias, second_bias;
  std::vector<float> norm_weight[2], norm_bias[2];
  uint64_t key = 0;
  uint32_t threshold = 0;
  std::vector<double> sum[2], normed[2], hidden, slope, out;
  std::vector<double> dbranch[2], dhidden, dresidual, dy, parameter_sums;

  /// x (rows, in) times matrix (out, in) transposed, or (by_term) x (rows, out) times the matrix.
  std::vector<double> product(const std::vector<double>& x, const std::vector<float>& matrix,
                              int64_t in, int64_t out_width, bool by_term = false) const {
    std::vector<double> y(static_cast<size_t>(rows * (by_term ? in : out_width)));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < out_width; ++o) {
        for (int64_t i = 0; i < in; ++i) {
          const double w = matrix[o * in + i];
          if (by_term) {
            y[r * in + i] += x[r * out_width + o] * w;
          } else {
            y[r * out_width + o] += x[r * in + i] * w;
          }
        }
      }
    }
    return y;
  }

  double keep(int64_t element) const {
    if (p == 0.0) return 1.0;
    const uint64_t counter = element / 64 * 16 + element % 16;
    const uint32_t counters[4] = {static_cast<uint32_t>(counter),
                                  static_cast<uint32_t>(counter >> 32), 0, 0};
    const uint32_t keys[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
    const uint32_t word = common::philox4x32(counters, keys).word[element % 64 / 16];
    return word >= threshold ? 1.0 / (1.0 - p) : 0.0;
  }

  void statistics(const std::vector<double>& x, int64_t row, double& mean, double& rstd) const {
    mean = 0;
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) mean += x[row * width + i] / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) squares += std::pow(x[row * width + i] - mean, 2);
    rstd = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
  }

  void norm(int which) {
    normed[which].resize(static_cast<size_t>(rows * width));
    for (int64_t r = 0; r < rows; ++r) {
      double mean, rstd;
      statistics(sum[which], r, mean, rstd);
      for (int64_t i = 0; i < width; ++i) {
        normed[which][r * width + i] =
            (sum[which][r * width + i] - mean) * rstd * norm_weight[which][i] + norm_bias[which][i];
      }
    }
  }

  void forward(const std::vector<float>& y, const std::vector<float>& residual) {
    sum[0] = product({y.begin(), y.end()}, out_proj, inner, width);
    for (size_t i = 0; i < sum[0].size(); ++i) sum[0][i] += residual[i];
    norm(0);
    hidden = product(normed[0], first, width, hidden_width);
    slope.resize(hidden.size());
    for (size_t i = 0; i < hidden.size(); ++i) {
      const double x = hidden[i] + first_bias[i % hidden_width];
      const double phi = 0.5 * std::erfc(-x / std::sqrt(2.0));
      hidden[i] = x * phi;
      slope[i] = phi + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * 3.14159265358979323846);
    }
    sum[1] = product(hidden, second, hidden_width, width);
    for (size_t i = 0; i < sum[1].size(); ++i) {
      sum[1][i] = sum[0][i] + keep(static_cast<int64_t>(i)) * (sum[1][i] + second_bias[i % width]);
    }
    norm(1);
    out = next > 0 ? product(normed[1], in_proj, width, next) : normed[1];
  }

  /// Adds to `gradient` that of the sum before a norm, and to the parameters' sums.
  void norm_backward(int which, const std::vector<double>& dnormed, std::vector<double>& gradient,
                     double* dweight, double* dbias) {
    for (int64_t r = 0; r < rows; ++r) {
      double mean, rstd, mean_scaled = 0, mean_product = 0;
      statistics(sum[which], r, mean, rstd);
      for (int64_t i = 0; i < width; ++i) {
        const double x = (sum[which][r * width + i] - mean) * rstd, dy = dnormed[r * width + i];
        dweight[i] += dy * x;
        dbias[i] += dy;
        mean_scaled += dy * norm_weight[which][i] / static_cast<double>(width);
        mean_product += dy * norm_weight[which][i] * x / static_cast<double>(width);
      }
      for (int64_t i = 0; i < width; ++i) {
        const double x = (sum[which][r * width + i] - mean) * rstd;
        gradient[r * width + i] += rstd * (dnormed[r * width + i] * norm_weight[which][i] -
                                           mean_scaled - x * mean_product);
      }
    }
  }

  void backward(const std::vector<float>& dnext, const std::vector<float>& dsum) {
    parameter_sums.assign(static_cast<size_t>(5 * width + hidden_width), 0.0);
    double* sums = parameter_sums.data();
    std::vector<double> dout(dnext.begin(), dnext.end());
    if (next > 0) dout = product(dout, in_proj, width, next, true);
    dresidual.assign(dsum.begin(), dsum.end());
    norm_backward(1, dout, dresidual, sums, sums + width);
    dbranch[1] = dresidual;
    for (size_t i = 0; i < dresidual.size(); ++i) {
      dbranch[1][i] *= keep(static_cast<int64_t>(i));
      sums[2 * width + static_cast<int64_t>(i) % width] += dbranch[1][i];
    }
    dhidden = product(dbranch[1], second, hidden_width, width, true);
    for (size_t i = 0; i < dhidden.size(); ++i) {
      dhidden[i] *= slope[i];
      sums[5 * width + static_cast<int64_t>(i) % hidden_width] += dhidden[i];
    }
    norm_backward(0, product(dhidden, first, width, hidden_width, true), dresidual,
                  sums + 3 * width, sums + 4 * width);
    dy = product(dresidual, out_proj, inner, width, true);
  }
};

}  // namespace dmamba::bench
