// Products with packed matrices and layer norm, every instruction set, against torch in double
// precision; what lies between the rows must neither be read nor written.
#include <cmath>
#include <limits>

#include "src/ops/cpu/packed_matrix.h"
#include "tests/cpp/ops/test_support.h"

namespace dmamba::ops::testing {
namespace {

using at::Tensor;
using kernels::Storage;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kCanary = 12345.0f;
constexpr int64_t kGap = 3;  // numbers between two rows

/// t (rows, width) with a gap of `fill` behind each row.
Tensor with_gaps(const Tensor& t, float fill) { return at::constant_pad_nd(t, {0, kGap}, fill); }

struct Sizes {
  int64_t rows, columns, tokens;
};

Tensor product(const Sizes& s, const Tensor& weight, const Tensor& bias, const Tensor& x,
               Storage storage, bool add) {
  const cpu::KernelTable& table = cpu::kernels_for(Storage::kFloat32);
  const cpu::PackedMatrix matrix(weight, bias, storage, table);
  const Tensor gapped = with_gaps(x, kNaN);
  const Tensor out = at::full({s.tokens, s.rows + kGap}, kCanary);
  out.slice(1, 0, s.rows).fill_(add ? 2.0 : kNaN);
  cpu::ProductParams p = matrix.params();
  p.add = add;
  p.x = gapped.const_data_ptr();
  p.x_stride = s.columns + kGap;
  p.out = out.mutable_data_ptr();
  p.out_stride = s.rows + kGap;
  table.product(p, 0, s.tokens);
  EXPECT_TRUE((out.slice(1, s.rows) == kCanary).all().item<bool>());
  return out.slice(1, 0, s.rows);
}

TEST(PackedProduct, AgreesWithTorchAtAwkwardSizes) {
  at::manual_seed(3);
  for_each_capability([] {
    for (const int64_t rows : {1, 7, 16, 17, 40, 64, 129}) {
      for (const int64_t columns : {1, 2, 31}) {
        for (const int64_t tokens : {1, 2, 3, 4, 6, 13}) {
          const Sizes s{rows, columns, tokens};
          const Tensor weight = at::randn({rows, columns}), x = at::randn({tokens, columns});
          const Tensor bias = rows % 2 == 0 ? at::randn({rows}) : Tensor();
          for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
            const bool rounds = storage == Storage::kBFloat16, add = tokens % 2 == 0;
            const Tensor w = rounds ? weight.to(at::kBFloat16) : weight;
            Tensor expected = x.to(at::kDouble).mm(w.to(at::kDouble).t());
            if (bias.defined()) expected += bias;
            if (add) expected += 2.0;
            const Tensor got = product(s, weight, bias, x, storage, add);
            const std::string what = std::to_string(rows) + " x " + std::to_string(columns) + ", " +
                                     std::to_string(tokens) + (rounds ? " bf16" : " fp32");
            expect_close(got, expected, 2e-6, what.c_str());
          }
        }
      }
    }
  });
}

TEST(PackedProduct, ATokensSumsDoNotDependOnItsCompany) {
  const Tensor weight = at::randn({70, 33}), x = at::randn({11, 33});
  for_each_capability([&] {
    for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
      const Tensor together = product({70, 33, 11}, weight, {}, x, storage, false);
      for (int64_t t = 0; t < 11; ++t) {
        const Tensor alone = product({70, 33, 1}, weight, {}, x.slice(0, t, t + 1), storage, false);
        EXPECT_TRUE(at::equal(alone[0], together[t])) << "token " << t;
      }
    }
  });
}

TEST(LayerNormKernel, AgreesWithTorchAtAwkwardSizes) {
  at::manual_seed(4);
  for_each_capability([] {
    for (const int64_t channels : {1, 2, 15, 31, 128, 129}) {
      Tensor x = at::randn({3, channels}) * 3.0 + 20.0;  // far from zero: two passes matter
      const Tensor weight = at::randn({channels}), bias = at::randn({channels});
      const Tensor expected = at::layer_norm(x.to(at::kDouble), {channels}, weight.to(at::kDouble),
                                             bias.to(at::kDouble), 1e-5);
      const cpu::LayerNormParams p{channels,
                                   1e-5,
                                   weight.const_data_ptr(),
                                   bias.const_data_ptr(),
                                   x.const_data_ptr(),
                                   x.mutable_data_ptr()};
      cpu::kernels_for(Storage::kFloat32).layer_norm(p, 0, 3);
      expect_close(x, expected, 1e-5, std::to_string(channels).c_str());
    }
  });
}

}  // namespace
}  // namespace dmamba::ops::testing
