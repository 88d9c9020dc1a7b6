// How far results are from a reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

namespace dmamba::bench {

/// The larger of two errors; NaN, which stands for what is missing, is larger than all.
inline double worse(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

/// max|x - reference| / max|reference|; NaN where x has one, or another length.
inline double relative_error(const std::vector<float>& x, const std::vector<double>& reference) {
  if (x.size() != reference.size()) return NAN;
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < reference.size(); ++i) {
    worst = worse(worst, std::abs(x[i] - reference[i]));
    largest = std::max(largest, std::abs(reference[i]));
  }
  return worst / largest;
}

/// Errors that were beyond their limits.
inline int failures = 0;

/// Whether an error is within its limit; counts it where not.
inline bool within(double error, double limit) {
  const bool ok = error <= limit;
  if (!ok) ++failures;
  return ok;
}

/// Prints the error of one result on a line that others share.
inline void compare(const char* what, const std::vector<float>& x,
                    const std::vector<double>& reference, double limit) {
  const double error = relative_error(x, reference);
  std::printf(" %s %.1e%s", what, error, within(error, limit) ? "" : " FAILED");
}

}  // namespace dmamba::bench
