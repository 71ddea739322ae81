// The scalar code of upsample_gather's CUDA kernels, on the host: V channels at once give the bits
// of V single ones. Their numbers: tests/python/test_upsample_gather.py.
#include <c10/util/BFloat16.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "dpt/ops/upsample_gather_math.h"

namespace {

namespace upsample = dpt::upsample;

template <class T>
std::vector<T> random_values(int64_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw;
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(draw(engine));
  return values;
}

template <class T, int V, class Index>
void expect_packs_are_single_ones(const upsample::Gathering& g) {
  using A = upsample::Acc<T>;
  const auto in = random_values<T>(g.B * g.h * g.w * 9 * g.n, 0);
  const auto bias = random_values<A>(g.n, 1), border = random_values<A>(16 * g.n, 2);
  const auto dot = random_values<A>(g.n, 3), dot_bias = random_values<A>(1, 4);
  const upsample::GatherBias<A> biases{bias.data(), border.data()};
  const upsample::GatherDot<A> to{dot.data(), dot_bias.data(), false, 1, 0};
  const int64_t size = g.B * g.H * g.W * g.n;
  alignas(16) T at_once[4096];
  std::vector<T> single(size);
  ASSERT_LE(size, 4096);
  for (const bool relu : {false, true}) {
    for (int64_t i = 0; i < size; ++i) {
      upsample::gather_item<1>(g, in.data(), biases, relu, single.data(), static_cast<Index>(i));
    }
    for (int64_t i = 0; i < size / V; ++i) {
      upsample::gather_item<V>(g, in.data(), biases, relu, at_once, static_cast<Index>(i));
    }
    for (int64_t i = 0; i < size; ++i) ASSERT_EQ(at_once[i], single[i]) << i;
  }
  for (int64_t i = 0; i < size / V; ++i) {
    A sum = 0;
    for (int v = 0; v < V; ++v) {
      sum += upsample::dot_item<1>(g, in.data(), biases, to, static_cast<Index>(i * V + v));
    }
    const A share = upsample::dot_item<V>(g, in.data(), biases, to, static_cast<Index>(i));
    EXPECT_NEAR(share, sum, 1e-5);  // the compiler may contract one and not the other
  }
}

TEST(UpsampleGather, PacksAreSingleOnes) {
  for (const bool align_corners : {false, true}) {
    const upsample::Gathering g{2, 3, 5, 16, 6, 10, align_corners};
    expect_packs_are_single_ones<float, 4, uint32_t>(g);
    expect_packs_are_single_ones<double, 2, uint64_t>(g);
    expect_packs_are_single_ones<c10::BFloat16, 8, uint32_t>(g);
  }
}

TEST(UpsampleGather, PositionsLieInside) {
  for (const bool align_corners : {false, true}) {
    for (int64_t in = 1; in < 200; ++in) {
      for (const int64_t out : {int64_t{1}, in, 2 * in, 3 * in + 1, in / 2 + 1}) {
        for (int64_t i = 0; i < out; ++i) {
          const auto from = upsample::source_of<float>(i, in, out, align_corners);
          ASSERT_GE(from.lo, 0);
          ASSERT_LE(from.lo, from.hi);
          ASSERT_LT(from.hi, in);
          ASSERT_GE(from.fraction, 0);
          ASSERT_LE(from.fraction, 1);
        }
      }
    }
  }
}

TEST(UpsampleGather, HalfPixelCentresByHand) {
  // 2 to 4: centres at 0.25 (below the first), 0.25, 0.75 and 1.25 (above the last).
  const auto at = [](int64_t i) { return upsample::source_of<float>(i, 2, 4, false); };
  EXPECT_EQ(at(0).lo + at(0).fraction, 0);
  EXPECT_EQ(at(1).lo + at(1).fraction, 0.25F);
  EXPECT_EQ(at(2).lo + at(2).fraction, 0.75F);
  EXPECT_EQ(at(3).lo, 1);
  EXPECT_EQ(at(3).hi, 1);
}

}  // namespace
