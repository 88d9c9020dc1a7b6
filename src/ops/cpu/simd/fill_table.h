// Fills a KernelTable from the templates; included once by each kernels_<set>.cpp.
#pragma once

#include "src/ops/cpu/simd/conv.h"
#include "src/ops/cpu/simd/elementwise.h"
#include "src/ops/cpu/simd/layer_norm.h"
#include "src/ops/cpu/simd/product.h"
#include "src/ops/cpu/simd/scan_backward.h"
#include "src/ops/cpu/simd/table.h"

namespace dmamba::ops::cpu {
namespace {

/// Calls f(storage tag) for the storage type of a problem. fp64 goes with double lanes alone, and
/// double lanes with fp64 alone.
template <class V, class F>
void with_storage(kernels::Storage storage, F&& f) {
  if constexpr (sizeof(typename V::Real) == sizeof(double)) {
    f(double{});
  } else if (storage == kernels::Storage::kBFloat16) {
    f(BFloat16{});
  } else {
    f(float{});
  }
}

/// constexpr: a table must need no start-up code, which would run instructions of its set anywhere.
template <class V>
constexpr KernelTable make_table(const char* name) {
  KernelTable t{};
  t.name = name;
  t.lanes = V::kLanes;
  t.scan_forward = [](const kernels::SelectiveScanForwardParams& p, int64_t begin, int64_t end,
                      void* scratch) {
    with_storage<V>(p.storage, [&](auto tag) {
      scan_forward_typed<V, decltype(tag)>(p, begin, end, static_cast<V*>(scratch));
    });
  };
  t.scan_backward = [](const kernels::SelectiveScanBackwardParams& p, int64_t begin, int64_t end,
                       void* scratch) {
    with_storage<V>(p.storage, [&](auto tag) {
      scan_backward_typed<V, decltype(tag)>(p, begin, end, static_cast<V*>(scratch));
    });
  };
  t.scan_forward_scratch = scan_forward_scratch<V>;
  t.scan_backward_scratch = BackwardScratch<V>::bytes;
  t.conv_forward = [](const kernels::CausalConv1dForwardParams& p, int64_t begin, int64_t end,
                      void* scratch) {
    with_storage<V>(p.storage, [&](auto tag) {
      conv_forward_typed<V, decltype(tag)>(p, begin, end, static_cast<V*>(scratch));
    });
  };
  t.conv_backward = [](const kernels::CausalConv1dBackwardParams& p, int64_t begin, int64_t end,
                       void* scratch) {
    with_storage<V>(p.storage, [&](auto tag) {
      conv_backward_typed<V, decltype(tag)>(p, begin, end, static_cast<V*>(scratch));
    });
  };
  t.conv_scratch = conv_scratch<V>;
  t.gelu_forward = [](const GeluParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.storage,
                    [&](auto tag) { gelu_forward_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.gelu_backward = [](const GeluParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.storage,
                    [&](auto tag) { gelu_backward_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.dropout = [](const DropoutParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.storage, [&](auto tag) { dropout_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.bias_gelu = [](const BiasGeluParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.storage, [&](auto tag) { bias_gelu_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.multiply_sum = [](const MultiplySumParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.storage,
                    [&](auto tag) { multiply_sum_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.product = [](const ProductParams& p, int64_t begin, int64_t end) {
    with_storage<V>(p.weights, [&](auto tag) { product_typed<V, decltype(tag)>(p, begin, end); });
  };
  t.layer_norm = layer_norm<V>;
  return t;
}

}  // namespace
}  // namespace dmamba::ops::cpu
