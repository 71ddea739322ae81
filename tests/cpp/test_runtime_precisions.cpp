// Matrix products of the CPU runtime with factors in bfloat16 and int8, for each instruction set of
// this machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "dpt/runtime/kernels.h"
#include "runtime_kernels.h"

namespace {

using namespace dpt::runtime;
using namespace dpt::runtime::test;

// Half to even, 8 significant bits.
double bfloat16(double x) {
  if (x == 0) return 0;
  int exponent;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(fraction * 256), exponent - 8);
}

// A 3x3 convolution with zero padding, or a linear layer.
struct Problem {
  int64_t height = 1, width = 1, run = 1, n = 1;
  bool window = false;
  Load load = Load::kPlain;
};

struct Data {
  std::vector<Tap> taps;
  std::vector<float> in, weights, bias, out;
  Convolution c;

  Data(const Problem& p, Precision precision, std::mt19937& random) {
    for (int i = 0; i < 9; ++i) {
      if (p.window) taps.push_back({i / 3 - 1, i % 3 - 1});
    }
    if (!p.window) taps.push_back({0, 0});
    in = normal_floats(random, p.height * p.width * p.run);
    weights = normal_floats(random, p.n * static_cast<int64_t>(taps.size()) * p.run);
    bias = normal_floats(random, p.n);
    out.assign(p.height * p.width * p.n + 16, kCanary);
    c.in = in.data();
    c.in_strides = {p.height * p.width * p.run, p.width * p.run, p.run};
    c.height = c.out_height = p.height;
    c.width = c.out_width = p.width;
    c.taps = taps.data();
    c.num_taps = static_cast<int64_t>(taps.size());
    c.run = p.run;
    c.load = p.load;
    c.eps = 1e-5f;
    c.weights = {precision, c.num_taps * p.run, p.n, nullptr};
    c.out = out.data();
    c.out_strides = {p.height * p.width * p.n, p.width * p.n, p.n};
    c.bias = bias.data();
  }

  // The rows of the left factor, [height * width, k].
  std::vector<std::vector<double>> rows() const {
    std::vector<std::vector<double>> all;
    for (int64_t pixel = 0; pixel < c.height * c.width; ++pixel) {
      std::vector<double> row;
      for (const Tap& tap : taps) {
        const int64_t y = pixel / c.width + tap.dy;
        const int64_t x = pixel % c.width + tap.dx;
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        for (int64_t i = 0; i < c.run; ++i) {
          const double value = inside ? in[(y * c.width + x) * c.run + i] : 0;
          row.push_back(c.load == Load::kRelu ? std::max(value, 0.0) : value);
        }
      }
      all.push_back(row);
    }
    return all;
  }
};

class RuntimePrecision : public ::testing::TestWithParam<Isa> {
 protected:
  void run(Data& d) {
    const Kernels& k = kernels(GetParam());
    const PackedMatrix& w = d.c.weights;
    const Buffer weights = packed(k.packed_bytes(w.precision, w.k, w.n), [&](void* data) {
      k.pack(w.precision, d.weights.data(), w.k, w.n, data);
    });
    d.c.weights.data = weights.data();
    run_all(k.convolution, d.c, {&d.out});
    for (size_t i = d.out.size() - 16; i < d.out.size(); ++i) ASSERT_EQ(d.out[i], kCanary);
  }
};

std::vector<Problem> problems() {
  std::vector<Problem> all;
  for (const int64_t rows : {1, 7, 29, 113}) {
    for (const auto& [k, n] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {24, 48}, {257, 16}, {515, 24}, {1030, 70}}) {
      all.push_back({.width = rows, .run = k, .n = n});
    }
  }
  all.push_back({.width = 5, .run = 2500, .n = 20});
  for (const int64_t channels : {3, 21, 64}) {
    all.push_back({.height = 4, .width = 6, .run = channels, .n = 33, .window = true});
    all.push_back(
        {.height = 5, .width = 1, .run = channels, .n = 8, .window = true, .load = Load::kRelu});
  }
  return all;
}

std::string to_string(const Problem& p) {
  return std::to_string(p.height * p.width) + " x " + std::to_string(p.run) + " x " +
         std::to_string(p.n);
}

TEST_P(RuntimePrecision, BFloat16SumsProductsOfRoundedFactors) {
  for (const Problem& p : problems()) {
    SCOPED_TRACE(to_string(p));
    std::mt19937 random(1);
    Data d(p, Precision::kBFloat16, random);
    run(d);
    const auto rows = d.rows();
    const auto k = static_cast<int64_t>(rows[0].size());
    for (size_t row = 0, at = 0; row < rows.size(); ++row) {
      for (int64_t column = 0; column < p.n; ++column, ++at) {
        double total = 0, absolute = 0;
        for (int64_t i = 0; i < k; ++i) {
          const double product = bfloat16(rows[row][i]) * bfloat16(d.weights[column * k + i]);
          total += product;
          absolute += std::abs(product);
        }
        const double expected = total + d.bias[column];
        // Products are exact in float32; k sums are rounded, some of them twice.
        const double bound =
            std::ldexp(1.0, -24) * (static_cast<double>(2 * k) * absolute + 2 * std::abs(expected));
        ASSERT_NEAR(d.out[at], expected, bound) << "row " << row << ", column " << column;
      }
    }
  }
}

TEST_P(RuntimePrecision, BFloat16RoundsHalfToEven) {
  // Halfway between neighbours of 8 bits: 1 + 1/256 goes down and 1 + 3/256 goes up.
  std::mt19937 random(1);
  Data d({.width = 4, .run = 1, .n = 1}, Precision::kBFloat16, random);
  d.in = {1 + 1 / 256.0f, 1 + 3 / 256.0f, -1 - 1 / 256.0f, std::numeric_limits<float>::quiet_NaN()};
  d.c.in = d.in.data();
  d.weights = {1};
  d.c.bias = nullptr;
  run(d);
  EXPECT_EQ(d.out[0], 1);
  EXPECT_EQ(d.out[1], 1 + 4 / 256.0f);
  EXPECT_EQ(d.out[2], -1);
  EXPECT_TRUE(std::isnan(d.out[3]));
}

TEST_P(RuntimePrecision, Int8IsExactWhereNothingIsRounded) {
  // Integers, with 127 in each column of weights, and 254 from the least value of a row (or 0) to
  // the greatest: the steps are 1. No sum reaches 2^24.
  for (const Problem& p : problems()) {
    if (p.window) continue;
    SCOPED_TRACE(to_string(p));
    std::mt19937 random(2);
    Data d(p, Precision::kInt8, random);
    std::uniform_int_distribution<int> small(-9, 9);
    for (float& v : d.in) v = static_cast<float>(small(random));
    for (float& v : d.weights) v = static_cast<float>(small(random));
    for (float& v : d.bias) v = static_cast<float>(small(random));
    for (int64_t row = 0; row < p.width; ++row) {
      float* const first = d.in.data() + row * p.run;
      const auto place = static_cast<int64_t>(random() % p.run);
      if (p.run > 1 && row % 3 == 0) {  // of both signs
        const int most = 10 + static_cast<int>(random() % 235);
        first[place] = static_cast<float>(most);
        first[(place + 1) % p.run] = static_cast<float>(most - 254);
      } else {
        const float sign = row % 3 == 1 ? 1 : -1;
        for (int64_t i = 0; i < p.run; ++i) first[i] = sign * std::abs(first[i]);
        first[place] = sign * 254;
      }
    }
    for (int64_t column = 0; column < p.n; ++column) {
      const int64_t at = column * p.run + static_cast<int64_t>(random() % p.run);
      d.weights[at] = column % 3 == 0 ? -127 : 127;
    }
    run(d);
    for (int64_t row = 0; row < p.width; ++row) {
      for (int64_t column = 0; column < p.n; ++column) {
        double expected = d.bias[column];
        for (int64_t i = 0; i < p.run; ++i) {
          expected += static_cast<double>(d.in[row * p.run + i]) * d.weights[column * p.run + i];
        }
        ASSERT_EQ(d.out[row * p.n + column], expected) << "row " << row << ", column " << column;
      }
    }
  }
}

TEST_P(RuntimePrecision, Int8ErrorIsThatOfHalfSteps) {
  for (const Problem& p : problems()) {
    SCOPED_TRACE(to_string(p));
    std::mt19937 random(3);
    Data d(p, Precision::kInt8, random);
    // Rows and columns of different sizes: each has a step of its own.
    for (size_t i = 0; i < d.in.size(); ++i) {
      d.in[i] *= std::pow(10.0f, static_cast<float>(i / p.run % 7) - 3);
    }
    run(d);
    const auto rows = d.rows();
    const auto k = static_cast<int64_t>(rows[0].size());
    const auto largest = [](auto begin, auto end) {
      double most = 0;
      for (; begin != end; ++begin) most = std::max(most, std::abs(static_cast<double>(*begin)));
      return most;
    };
    for (size_t row = 0, at = 0; row < rows.size(); ++row) {
      // A little more than half a step: the quotients are rounded, too.
      const auto [least, most] = std::ranges::minmax(rows[row]);
      const double half = 0.5001 * (std::max(most, 0.0) - std::min(least, 0.0)) / 254;
      for (int64_t column = 0; column < p.n; ++column, ++at) {
        const float* w = d.weights.data() + column * k;
        const double half_weight = 0.5001 * largest(w, w + k) / 127;
        double total = 0, bound = 0;
        for (int64_t i = 0; i < k; ++i) {
          total += rows[row][i] * w[i];
          bound +=
              std::abs(rows[row][i]) * half_weight + std::abs(w[i]) * half + half * half_weight;
        }
        const double expected = total + d.bias[column];
        bound += std::ldexp(4 * std::abs(total) + 2 * std::abs(expected), -24);
        ASSERT_NEAR(d.out[at], expected, bound) << "row " << row << ", column " << column;
      }
    }
  }
}

TEST_P(RuntimePrecision, Int8OfZerosIsZero) {
  std::mt19937 random(4);
  Data d({.width = 9, .run = 40, .n = 5}, Precision::kInt8, random);
  std::fill_n(d.in.begin() + 40, 40, 0.0f);
  d.in[40 + 7] = 1e-40f;  // of which the step has no inverse
  std::fill_n(d.weights.begin() + 80, 40, 0.0f);
  run(d);
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(d.out[5 + i], d.bias[i]);
  for (int64_t i = 0; i < 9; ++i) EXPECT_EQ(d.out[5 * i + 2], d.bias[2]);
}

TEST_P(RuntimePrecision, Int8OfNumbersThatAreNotFiniteIsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(5);
  Data d({.width = 9, .run = 40, .n = 5}, Precision::kInt8, random);
  run(d);
  const std::vector<float> before = d.out;
  d.in[3 * 40 + 7] = std::numeric_limits<float>::quiet_NaN();
  d.in[5 * 40 + 39] = kInfinity;
  d.in[6 * 40] = -kInfinity;
  run(d);
  for (int64_t i = 0; i < 45; ++i) {
    const int64_t row = i / 5;
    if (row == 3 || row == 5 || row == 6) {
      EXPECT_TRUE(std::isnan(d.out[i])) << "row " << row;
    } else {
      EXPECT_EQ(d.out[i], before[i]) << "row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, RuntimePrecision, ::testing::ValuesIn(supported()),
                         [](const auto& info) { return std::string(to_string(info.param)); });

}  // namespace
