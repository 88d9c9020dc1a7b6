// The arithmetic of a training step, for a scope: whatever the caller's torch is set to, a step is
// what `training.precision` says, and the caller's setting comes back.
#pragma once

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>

#include <optional>

namespace dmamba::train {

/// Autocast to bfloat16 on one type of device, or none. A parameter is cast once in the scope; no
/// cast outlives it, whatever region of the caller's it lies in: the parameters are about to
/// change.
class Autocast {
 public:
  Autocast(at::DeviceType device, bool enabled)
      : device_(device),
        was_enabled_(at::autocast::is_autocast_enabled(device)),
        was_dtype_(at::autocast::get_autocast_dtype(device)) {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, enabled);
    if (enabled) at::autocast::set_autocast_dtype(device, at::kBFloat16);
  }
  ~Autocast() {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, was_enabled_);
    at::autocast::set_autocast_dtype(device_, was_dtype_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  at::DeviceType device_;
  bool was_enabled_;
  at::ScalarType was_dtype_;
};

/// Whether cuBLAS may round the factors of float32 products to TF32. Torch keeps the answer twice,
/// for its older and its newer interface, and partly refuses to work where the two differ: here
/// they agree, and both come back as they were.
class Tf32Products {
 public:
  explicit Tf32Products(bool allowed) : was_(context().float32Precision(kBackend, kOp)) {
    if ((was_ == at::Float32Precision::TF32) == allowed) return;
    changed_ = true;
    older_ = older_answer();
    if (older_) context().setAllowTF32CuBLAS(allowed);
    context().setFloat32Precision(
        kBackend, kOp, allowed ? at::Float32Precision::TF32 : at::Float32Precision::IEEE);
  }
  ~Tf32Products() {
    if (!changed_) return;
    if (older_ == at::Float32MatmulPrecision::MEDIUM) {
      context().setFloat32MatmulPrecision("medium");
    } else if (older_) {
      context().setAllowTF32CuBLAS(older_ == at::Float32MatmulPrecision::HIGH);
    }
    context().setFloat32Precision(kBackend, kOp, was_);
  }
  Tf32Products(const Tf32Products&) = delete;
  Tf32Products& operator=(const Tf32Products&) = delete;

 private:
  static constexpr auto kBackend = at::Float32Backend::CUDA;
  static constexpr auto kOp = at::Float32Op::MATMUL;

  static at::Context& context() { return at::globalContext(); }

  /// Absent where the caller has set the newer one alone: the older is then what the newer is not,
  /// and torch does not tell. A change of the newer one makes them agree.
  static std::optional<at::Float32MatmulPrecision> older_answer() {
    try {
      return context().float32MatmulPrecision();
    } catch (const c10::Error&) {
      return std::nullopt;
    }
  }

  at::Float32Precision was_;
  std::optional<at::Float32MatmulPrecision> older_;
  bool changed_ = false;
};

}  // namespace dmamba::train
