// The residual stream forward, against double precision; backward in
// kernels/bench/embedding_bench.cu.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/bench/embedding_reference.h"
#include "kernels/elementwise/launch.h"
#include "kernels/normalization/launch.h"
#include "tests/emulation/arrays.h"

namespace {

using namespace dmamba::emulation;
using namespace dmamba::kernels;

constexpr float kEpsilon = 1e-5F;
template <class T>
constexpr double kStored = sizeof(T) == 2 ? 4e-3 : 2e-6;  // half a bfloat16's last bit

struct Shape {
  int64_t rows, width;
  size_t count() const { return static_cast<size_t>(rows * width); }
};
// Widths of one, two, four and eight turns; rows beside a block's, and beside so many that a warp
// takes two.
constexpr Shape kShapes[] = {{1, 64},  {9, 128},  {31, 192},  {17, 256},  {3, 512},
                             {2, 640}, {5, 1024}, {8448, 64}, {8449, 192}};

struct Given {
  bool branch, bias, dropout;
};
constexpr Given kGiven[] = {
    {false, false, false}, {true, false, false}, {true, true, false}, {true, true, true}};

Doubles doubles(const Floats& x) { return {x.begin(), x.end()}; }

template <class T>
Floats rounded(const Floats& x) {
  return Placed<T>(x).floats();
}

/// The dropout of `x` by the elementwise kernel.
Floats dropped(const Floats& x, uint64_t key) {
  Placed<float> in(x), out(x.size());
  EXPECT_EQ(launch_dropout({static_cast<int64_t>(x.size()), Storage::kFloat32, key,
                            dropout_threshold(0.25), 1 / 0.75, in.data(), out.data(), 0},
                           nullptr, nullptr),
            cudaSuccess);
  return out.floats();
}

template <class T>
struct Problem {
  Shape n;
  Given given;
  int64_t key = 77;
  Floats residual, branch, bias, weight, norm_bias;
  Floats sums;  // wanted

  Problem(Shape shape, Given given_) : n(shape), given(given_) {
    std::mt19937 random(static_cast<unsigned>(shape.count()));
    const auto width = static_cast<size_t>(n.width);
    residual = random_floats(random, n.count(), -2, 2);
    branch = rounded<T>(random_floats(random, n.count(), -2, 2));
    bias = random_floats(random, width), weight = random_floats(random, width);
    norm_bias = random_floats(random, width);
    Floats added = branch;
    for (size_t i = 0; i < added.size(); ++i) added[i] += given.bias ? bias[i % width] : 0.0F;
    if (given.dropout) added = dropped(added, static_cast<uint64_t>(key));
    sums = residual;
    for (size_t i = 0; given.branch && i < sums.size(); ++i) sums[i] += added[i];
  }
  DropoutMask mask() const {
    return {given.dropout ? &key : nullptr, dropout_threshold(0.25), static_cast<float>(1 / 0.75),
            0};
  }
};

template <class T>
class AddNorm : public testing::Test {};
using Stored = testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(AddNorm, Stored);

template <class T>
void check_forward(const Shape& n, const Given& given) {
  SCOPED_TRACE(testing::Message() << n.rows << ", " << n.width << ": " << given.branch << given.bias
                                  << given.dropout);
  Problem<T> p(n, given);
  Placed<float> residual(p.residual), bias(p.bias), weight(p.weight), norm_bias(p.norm_bias);
  Placed<T> branch(p.branch), normed(n.count());
  Placed<float> sum(n.count()), statistics(static_cast<size_t>(2 * n.rows));
  ASSERT_EQ(
      launch_add_norm(
          {n.rows, n.width, kStorageOf<T>, residual.data(), given.branch ? branch.data() : nullptr,
           given.bias ? bias.data() : nullptr, p.mask(), weight.data(), norm_bias.data(), kEpsilon,
           sum.data(), normed.data(), statistics.data()},
          nullptr),
      cudaSuccess);
  if (given.branch) {
    EXPECT_EQ(sum.floats(), p.sums);
  } else {
    EXPECT_TRUE(sum.untouched());
  }
  dmamba::bench::NormReference norm{n.width, doubles(p.weight), doubles(p.norm_bias), {}, {}, {},
                                    {}};
  const Doubles sums = doubles(p.sums), wanted = norm.forward(sums);
  Doubles wanted_statistics;
  for (int64_t r = 0; r < n.rows; ++r) {
    const auto first = sums.begin() + r * n.width;
    const double mean = std::accumulate(first, first + n.width, 0.0) / static_cast<double>(n.width);
    wanted_statistics.insert(wanted_statistics.end(), {mean, norm.rstd[static_cast<size_t>(r)]});
  }
  EXPECT_LE(relative_error(normed.floats(), wanted), kStored<T>);
  EXPECT_LE(relative_error(statistics.floats(), wanted_statistics), kStored<float>);
  EXPECT_TRUE(sum.alone() && normed.alone() && statistics.alone());
}

TYPED_TEST(AddNorm, SumAndNorm) {
  for (const Shape& n : kShapes) {
    for (const Given& given : kGiven) check_forward<TypeParam>(n, given);
  }
}

}  // namespace
