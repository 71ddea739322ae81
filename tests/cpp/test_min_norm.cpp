// tests/cpp/test_min_norm.cpp -- dpt::min_norm on closed forms, by its optimality conditions, and
// on what must be refused.
#include "dpt/optim/min_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Vector = std::vector<double>;

// The inner products of gradients, one in each row.
Vector gram_of(const std::vector<Vector>& gradients) {
  Vector gram;
  for (const auto& g : gradients) {
    for (const auto& h : gradients) {
      double product = 0;
      for (size_t k = 0; k < g.size(); ++k) product += g[k] * h[k];
      gram.push_back(product);
    }
  }
  return gram;
}

Vector min_norm(const std::vector<Vector>& gradients) {
  return dpt::min_norm(gram_of(gradients), gradients.size());
}

std::vector<Vector> random_gradients(size_t num_tasks, size_t size, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<Vector> gradients(num_tasks, Vector(size));
  for (auto& gradient : gradients) {
    for (double& value : gradient) value = normal(random);
  }
  return gradients;
}

void expect_near(const Vector& got, const Vector& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << i;
}

// With x = sum a_t g_t: <x, g_t> >= |x|^2, with equality where a_t > 0. The tolerance is relative
// to what is summed up in x.
void expect_optimal(const std::vector<Vector>& gradients, const Vector& weights) {
  const size_t T = gradients.size();
  const Vector gram = gram_of(gradients);
  double total = 0, size = 0, square = 0;
  for (size_t t = 0; t < T; ++t) {
    EXPECT_GE(weights[t], 0);
    total += weights[t];
    size += weights[t] * std::sqrt(gram[t * T + t]);
    for (size_t u = 0; u < T; ++u) square += weights[t] * weights[u] * gram[t * T + u];
  }
  EXPECT_NEAR(total, 1, 1e-14);
  for (size_t t = 0; t < T; ++t) {
    double product = 0;
    for (size_t u = 0; u < T; ++u) product += weights[u] * gram[t * T + u];
    const double norm = std::sqrt(gram[t * T + t]), tolerance = 1e-13 * size * (norm + size);
    EXPECT_GE(product, square - tolerance) << t;
    EXPECT_TRUE(weights[t] == 0 || product <= square + tolerance) << t;
  }
}

TEST(MinNorm, OneTaskGetsAllWeight) {
  expect_near(min_norm({{3, 4}}), {1}, 0);
  expect_near(min_norm({{0, 0}}), {1}, 0);
}

TEST(MinNorm, TwoTasksEqualClosedForm) {
  std::mt19937 random(0);
  for (int i = 0; i < 1000; ++i) {
    const auto g = random_gradients(2, 3, random);
    const Vector gram = gram_of(g);
    const double first =
        std::clamp((gram[3] - gram[1]) / (gram[0] + gram[3] - 2 * gram[1]), 0., 1.);
    expect_near(min_norm(g), {first, 1 - first}, 1e-12);
  }
}

TEST(MinNorm, OrthogonalTasksWeighInverseToSquaredNorms) {
  for (const size_t T : {3, 10, 60}) {
    Vector gram(T * T), want(T);
    double total = 0;
    for (size_t t = 0; t < T; ++t) {
      gram[t * T + t] = static_cast<double>(1 + t);
      total += want[t] = 1 / gram[t * T + t];
    }
    for (double& weight : want) weight /= total;
    expect_near(dpt::min_norm(gram, T), want, 1e-15);
  }
}

TEST(MinNorm, SatisfiesOptimalityConditions) {
  std::mt19937 random(0);
  for (const size_t T : {2, 3, 5, 10, 20, 60}) {
    for (const size_t size : {size_t{1}, T / 2 + 1, 2 * T}) {  // fewer dimensions: many solutions
      for (int i = 0; i < 20; ++i) {
        auto gradients = random_gradients(T, size, random);
        expect_optimal(gradients, min_norm(gradients));
        for (auto& g : gradients) g[0] += 2;  // few tasks are active
        expect_optimal(gradients, min_norm(gradients));
      }
    }
  }
}

TEST(MinNorm, TakesAnyScale) {
  std::mt19937 random(0);
  std::uniform_real_distribution<double> exponent(-20, 20);
  for (int i = 0; i < 200; ++i) {
    const auto gradients = random_gradients(6, 8, random);
    const Vector want = min_norm(gradients);
    for (const double scale : {1e-140, 1e-20, 1e20, 1e140}) {
      auto scaled = gradients;
      for (auto& g : scaled) {
        for (double& value : g) value *= scale;
      }
      expect_near(min_norm(scaled), want, 1e-12);
    }
    auto scaled = gradients;
    for (auto& g : scaled) {
      const double scale = std::pow(10, exponent(random));
      for (double& value : g) value *= scale;
    }
    expect_optimal(scaled, min_norm(scaled));
  }
}

TEST(MinNorm, TasksWithOneGradientShareItsWeight) {
  // Without the copies: 4 / 5 and 1 / 5.
  expect_near(min_norm({{1, 0}, {0, 2}, {1, 0}, {0, 2}, {1, 0}}),
              {4. / 15, 1. / 10, 4. / 15, 1. / 10, 4. / 15}, 1e-10);
}

TEST(MinNorm, PrefersLeastPartsAmongMany) {
  // All weights that balance each pair give zero; |a_t g_t| are equal in the best.
  expect_near(min_norm({{1, 0}, {-1, 0}, {0, 1}, {0, -1}}), {.25, .25, .25, .25}, 1e-10);
  // a_0 = 2 a_1 from each other's sum; parts of length 2 / 3.
  expect_near(min_norm({{1}, {-2}}), {2. / 3, 1. / 3}, 1e-14);
}

TEST(MinNorm, FindsZeroBehindAMuchShorterGradient) {
  // The two long ones cancel; float64 shows it up to half its digits of their length.
  for (const double length : {1e2, 1e4, 1e6}) {
    for (const double tilt : {0., 1e-4}) {
      const Vector weights = min_norm({{1, 0}, {0, length}, {-tilt, -length}});
      expect_near(weights, {0, .5, .5}, tilt + 1e-8 * length);
    }
  }
}

TEST(MinNorm, ResolvesGradientsThatAreAlmostEqual) {
  for (const double gap : {1e-2, 1e-5, 1e-7}) {
    // The shorter one alone is best: <g_0, g_1> = 1 + gap.
    expect_near(min_norm({{1, 0}, {1 + gap, 0}}), {1, 0}, 1e-6);
    // Their middle is best.
    expect_near(min_norm({{1, gap}, {1, -gap}}), {.5, .5}, 1e-6);
  }
}

TEST(MinNorm, ZeroGradientsGetNoWeight) {
  expect_near(min_norm({{0, 0}, {1, 0}, {0, 0}, {0, 2}}), {0, .8, 0, .2}, 1e-14);
  expect_near(min_norm({{0}, {0}, {0}, {0}}), {.25, .25, .25, .25}, 0);
  // The norm of the first has underflown.
  expect_near(dpt::min_norm(Vector{0, 1e-170, 1e-170, 1}, 2), {0, 1}, 0);
}

TEST(MinNorm, TakesRoundingForWhatItIs) {
  // Cosines above one, a small negative eigenvalue, products not quite symmetric.
  expect_near(dpt::min_norm(Vector{1, 1 + 1e-7, 1 + 1e-7, 1}, 2), {.5, .5}, 1e-6);
  expect_near(dpt::min_norm(Vector{1, 1e-7, 0, 1}, 2), {.5, .5}, 1e-6);
  expect_near(dpt::min_norm(Vector{1, -.5001, -.5001, -.5001, 1, -.5001, -.5001, -.5001, 1}, 3),
              {1. / 3, 1. / 3, 1. / 3}, 1e-6);
}

void expect_invalid(const Vector& gram, size_t num_tasks, const std::string& message) {
  try {
    dpt::min_norm(gram, num_tasks);
    ADD_FAILURE() << "expected: " << message;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(MinNorm, NamesTasksThatAreNotFinite) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  expect_invalid({nan}, 1, "task(s) 0:");
  // What a NaN in one gradient leaves of the products, and an overflow in another.
  expect_invalid({1, 0, nan, 0, 0, 2, nan, 0, nan, nan, nan, nan, 0, 0, nan, inf}, 4,
                 "NaN or Inf in the inner products of task(s) 2, 3:");
  expect_invalid({1, -inf, 0, -inf, 1, 0, 0, 0, 1}, 3, "task(s) 0, 1:");
  expect_invalid({1, 0, nan, 1}, 2, "task(s) 0, 1:");
}

TEST(MinNorm, RefusesWhatAreNotInnerProducts) {
  expect_invalid({}, 0, "at least one task, got 0 values for T = 0");
  expect_invalid({1, 0, 0, 1, 0, 0}, 2, "must be [T, T]");
  expect_invalid({1, 0, 0, -2}, 2, "cannot be negative, got gram[1][1] = -2");
  expect_invalid({1, .5, -.5, 1}, 2, "symmetric, got gram[1][0] = -0.5 and gram[0][1] = 0.5");
  expect_invalid({1, 2, 2, 1}, 2, "gram[1][0] = 2 exceeds the product of the norms, 1");
  expect_invalid({0, 1, 1, 1}, 2, "gram[1][0] = 1 exceeds the product of the norms, 0");
  expect_invalid({1, -.9, -.9, -.9, 1, -.9, -.9, -.9, 1}, 3, "must be positive semidefinite");
}

TEST(MinNorm, OperatorKeepsDtypeAndTakesStrides) {
  const at::Tensor g = at::randn({5, 4}, at::kDouble), gram = g.mm(g.t());
  const at::Tensor want = dpt::min_norm(gram);
  EXPECT_EQ(want.sizes(), at::IntArrayRef({5}));
  EXPECT_TRUE(at::equal(dpt::min_norm(at::stack({gram, gram}, 2).select(2, 0)), want));
  for (const auto type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const at::Tensor rounded = gram.to(type), got = dpt::min_norm(rounded);
    EXPECT_EQ(got.scalar_type(), type);
    EXPECT_TRUE(at::equal(got, dpt::min_norm(rounded.to(at::kDouble)).to(type)));
  }
  EXPECT_FALSE(dpt::min_norm(gram.requires_grad_()).requires_grad());
}

}  // namespace
