// What tests of kernels share: random numbers, bfloat16, distances from a reference, settings.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/bench/errors.h"
#include "kernels/common/types.h"

namespace dmamba::emulation {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using BFloats = std::vector<__nv_bfloat16>;

/// A variable of the environment while it lives.
class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) {
    const char* before = std::getenv(name);
    if (before != nullptr) before_ = before;
    setenv(name, value, 1);
  }
  ~Setting() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

inline Floats random_floats(std::mt19937& random, size_t count, float low = -1, float high = 1) {
  Floats x(count);
  for (float& value : x) {
    value = low + (high - low) * static_cast<float>(random() >> 8) * 0x1p-24F;
  }
  return x;
}

inline BFloats to_bfloat16(const Floats& x) { return {x.begin(), x.end()}; }
inline Floats to_floats(const BFloats& x) { return {x.begin(), x.end()}; }

using bench::relative_error;

template <class T>
constexpr kernels::Storage kStorageOf =
    std::is_same_v<T, float> ? kernels::Storage::kFloat32 : kernels::Storage::kBFloat16;

/// Numbers of T whose first lies `offset` of them behind a multiple of 64 bytes, between others
/// that nobody may write. All are NaN, of one bit pattern, until they are set.
template <class T>
class Placed {
 public:
  explicit Placed(size_t count, size_t offset = 0)
      : memory_(count + offset + 3 * kAround), count_(count) {
    std::memset(memory_.data(), 0xFF, memory_.size() * sizeof(T));
    const auto address = reinterpret_cast<uintptr_t>(memory_.data() + kAround);
    first_ = kAround + (64 - address % 64) % 64 / sizeof(T) + offset;
  }
  explicit Placed(const Floats& x, size_t offset = 0) : Placed(x.size(), offset) {
    std::copy(x.begin(), x.end(), data());
  }
  Placed(Placed&&) = default;  // a copy would lie elsewhere

  T* data() { return memory_.data() + first_; }
  Floats floats() const {
    const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(first_);
    return {begin, begin + static_cast<std::ptrdiff_t>(count_)};
  }
  /// Whether what lies around is as it was.
  bool alone() const { return poisoned(0, first_) && poisoned(first_ + count_, memory_.size()); }
  bool untouched() const { return poisoned(0, memory_.size()); }

 private:
  static constexpr size_t kAround = 64 / sizeof(T) * 2;

  bool poisoned(size_t begin, size_t end) const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(memory_.data());
    return std::all_of(bytes + begin * sizeof(T), bytes + end * sizeof(T),
                       [](unsigned char byte) { return byte == 0xFF; });
  }

  std::vector<T> memory_;
  size_t count_, first_;
};

}  // namespace dmamba::emulation
