// What the op tests share: guards, comparisons, tensors with awkward strides.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "dmamba/ops/ops.h"

namespace dmamba::ops::testing {

/// Restores the instruction set and the number of threads.
class SettingsGuard {
 public:
  SettingsGuard() : capability_(cpu_capability()), threads_(at::get_num_threads()) {}
  ~SettingsGuard() {
    set_cpu_capability(capability_);
    at::set_num_threads(threads_);
  }

 private:
  std::string capability_;
  int threads_;
};

/// Calls `body` once with each instruction set of this processor in use.
inline void for_each_capability(const std::function<void()>& body) {
  const SettingsGuard guard;
  for (const std::string& name : cpu_capabilities()) {
    SCOPED_TRACE(name);
    set_cpu_capability(name);
    body();
  }
}

/// max |actual - expected| / max |expected|, in fp64; NaN where either holds one.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_EQ(actual.sizes(), expected.sizes());
  if (expected.numel() == 0) return 0.0;
  const at::Tensor a = actual.to(at::kDouble), e = expected.to(at::kDouble);
  const double scale = e.abs().max().item<double>();
  return (a - e).abs().max().item<double>() / (scale > 0 ? scale : 1.0);
}

/// Negated, so that NaN fails.
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                         const char* what) {
  const double error = relative_error(actual, expected);
  EXPECT_TRUE(error <= tolerance) << what << ": " << error << " > " << tolerance;
}

/// The same results, to the bit, with 1, 2, 3 and 7 threads.
inline void expect_same_bits_for_any_threads(
    const std::function<std::vector<at::Tensor>()>& compute) {
  const SettingsGuard guard;
  at::set_num_threads(1);
  const std::vector<at::Tensor> expected = compute();
  for (const int threads : {2, 3, 7}) {
    at::set_num_threads(threads);
    const std::vector<at::Tensor> actual = compute();
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(at::equal(actual[i], expected[i])) << "result " << i << ", threads " << threads;
    }
  }
}

/// The same values, every axis strided: a view into a tensor twice as large on each side.
inline at::Tensor strided(const at::Tensor& t) {
  at::Tensor large = at::full({}, 7.0, t.options());
  std::vector<int64_t> sizes;
  for (const int64_t size : t.sizes()) sizes.push_back(2 * size);
  large = large.expand(sizes).contiguous();
  for (int64_t axis = 0; axis < t.dim(); ++axis) large = large.slice(axis, 0, large.size(axis), 2);
  large.copy_(t);
  return large;
}

/// The message of the c10::Error that `action` must throw.
inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  ADD_FAILURE() << "no c10::Error";
  return "";
}

}  // namespace dmamba::ops::testing
