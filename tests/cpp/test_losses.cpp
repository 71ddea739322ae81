// The losses without Python: selection and sums that CPU and GPU share, and the C++ interface.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "dpt/loss/group.h"
#include "dpt/loss/scale_and_shift.h"
#include "dpt/loss/segmentation.h"
#include "dpt/loss/silog.h"

namespace {

using namespace dpt::loss;

template <class T>
class Select : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Select, Types);

// Against a sorted copy of what is included.
template <class T>
void check_select(const std::vector<T>& values, const std::vector<bool>& included) {
  std::vector<T> sorted;
  for (size_t i = 0; i < values.size(); ++i) {
    if (included[i]) sorted.push_back(values[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  const auto size = static_cast<int64_t>(sorted.size());
  for (const int64_t rank : {int64_t{0}, size / 3, (size - 1) / 2, size - 1}) {
    const auto got = Serial().select<T>(
        static_cast<int64_t>(values.size()), rank, [&](int64_t i) { return included[i]; },
        [&](int64_t i) { return values[i]; });
    const auto [first, last] = std::equal_range(sorted.begin(), sorted.end(), sorted[rank]);
    EXPECT_EQ(got.value, sorted[rank]) << "rank " << rank << " of " << size;
    EXPECT_EQ(got.num_below, first - sorted.begin());
    EXPECT_EQ(got.num_equal, last - first);
  }
}

TYPED_TEST(Select, FindsTheValueOfARank) {
  std::mt19937 random(0);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (const int size : {1, 2, 3, 31, 1000}) {
    for (const double scale : {1e-30, 1.0, 1e30}) {
      std::vector<TypeParam> values(size);
      std::vector<bool> included(size);
      for (int i = 0; i < size; ++i) {
        values[i] = static_cast<TypeParam>(scale * uniform(random));
        included[i] = i == 0 || uniform(random) < 0.5;
      }
      check_select(values, included);
    }
  }
}

TYPED_TEST(Select, CountsTiesAndTakesBothZerosForOne) {
  const std::vector<TypeParam> values = {0, -0.0, 1, 0, 1, -1, 1, 2, -0.0, 1};
  check_select(values, std::vector<bool>(values.size(), true));
}

TYPED_TEST(Select, OrdersExtremes) {
  using Limits = std::numeric_limits<TypeParam>;
  const std::vector<TypeParam> values = {Limits::max(),
                                         Limits::lowest(),
                                         Limits::min(),
                                         -Limits::denorm_min(),
                                         Limits::denorm_min(),
                                         1,
                                         -1,
                                         Limits::infinity()};
  check_select(values, std::vector<bool>(values.size(), true));
}

TEST(Serial, SumsRowsOfAnyLength) {
  for (const int64_t n : {0, 1, 31, 32, 33, 100}) {
    const auto sums =
        Serial().sum<2>(n, [](int64_t i) { return Sums<2>{static_cast<double>(i), 1.0}; });
    EXPECT_EQ(sums.at[0], static_cast<double>(n * (n - 1) / 2));
    EXPECT_EQ(sums.at[1], static_cast<double>(n));
  }
  const auto sums = Serial().sum<1>(
      3, 35, [](int64_t y, int64_t x) { return Sums<1>{static_cast<double>(100 * y + x)}; });
  EXPECT_EQ(sums.at[0], 100.0 * 35 * (0 + 1 + 2) + 3 * 34 * 35 / 2);
}

TEST(Losses, PredictionEqualToTheTargetButForScaleAndShiftHasNone) {
  torch::manual_seed(0);
  const auto target = torch::rand({2, 9, 11}, torch::kDouble);
  auto prediction = (3 * target + 7).set_requires_grad(true);
  const auto mask = torch::rand({2, 9, 11}) < 0.8;
  for (const auto alignment : {Alignment::kRobust, Alignment::kLeastSquares}) {
    const auto result =
        scale_and_shift_invariant(prediction, target, mask, {.alignment = alignment});
    EXPECT_LT(result.loss.item<double>(), 1e-13);
    EXPECT_TRUE(torch::allclose(result.scale, torch::full({2}, 1.0 / 3, torch::kDouble)));
    EXPECT_TRUE(torch::allclose(result.shift, torch::full({2}, -7.0 / 3, torch::kDouble)));
  }
}

TEST(Losses, TrainFromCpp) {
  torch::manual_seed(0);
  torch::nn::Conv2d conv(3, 1, 3);
  torch::optim::Adam optimizer(conv->parameters(), 0.05);
  const auto image = torch::rand({2, 3, 18, 18});
  const auto target = image.slice(1, 0, 1).squeeze(1).slice(1, 1, 17).slice(2, 1, 17).contiguous();
  const auto mask = torch::ones({2, 16, 16}, torch::kBool);
  std::vector<double> losses;
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    const auto loss = scale_and_shift_invariant(conv(image).squeeze(1), target, mask).loss;
    loss.backward();
    optimizer.step();
    losses.push_back(loss.item<double>());
  }
  EXPECT_LT(losses.back(), 0.3 * losses.front());
}

TEST(Losses, OtherLossesOfKnownMaps) {
  const auto ones = torch::ones({1, 2, 3});
  const auto mask = torch::ones({1, 2, 3}, torch::kBool);
  // d = log 2 everywhere.
  EXPECT_NEAR(silog(2 * ones, ones, mask).loss.item<double>(), 0.5 * std::pow(std::log(2), 2),
              1e-7);
  // A ramp: differences of 1 along x, 4 pairs among 6 pixels.
  const auto ramp = torch::arange(3, torch::kFloat).expand({1, 2, 3});
  EXPECT_NEAR(gradient_matching(ramp, 0 * ones, mask, {.scales = 1}).loss.item<double>(), 4.0 / 6,
              1e-7);
  // Even scores of 5 classes.
  const auto labels = torch::tensor({0, 1, 255, 4, 2, 3}, torch::kLong).view({1, 2, 3});
  const auto scores = torch::zeros({1, 5, 2, 3});
  EXPECT_NEAR(segmentation(scores, labels).item<double>(), std::log(5), 1e-6);
  EXPECT_NEAR(segmentation(scores, labels, torch::zeros({1, 5, 1, 1})).item<double>(),
              1.2 * std::log(5), 1e-6);
}

TEST(Losses, SayWhatIsWrongWithMaps) {
  const auto map = torch::ones({1, 2, 3});
  const auto mask = torch::ones({1, 2, 3}, torch::kBool);
  EXPECT_THROW(align(map, map, map), c10::ValueError);
  EXPECT_THROW(align(map.unsqueeze(1), map, mask), c10::ValueError);
  EXPECT_THROW(silog(map, map.clone().set_requires_grad(true), mask), c10::ValueError);
  EXPECT_THROW(scale_and_shift_invariant(map, map, mask, {.trim = 1.5}), c10::ValueError);
  EXPECT_THROW(gradient_matching(map, map, mask, {.scales = 17}), c10::ValueError);
}

}  // namespace
