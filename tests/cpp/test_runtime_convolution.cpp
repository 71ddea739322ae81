// Matrix products of the CPU runtime against sums in double, for each instruction set of this
// machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "dpt/runtime/kernels.h"
#include "runtime_kernels.h"

namespace {

using namespace dpt::runtime;
using namespace dpt::runtime::test;

// A convolution with all that it points to.
struct Problem {
  int64_t batch = 1, height = 1, width = 1, run = 1, n = 1, stride = 1;
  std::vector<Tap> taps = {{0, 0}};
  Load load = Load::kPlain;
  Precision precision = Precision::kFloat32;
  Activation activation = Activation::kNone;
  bool bias = false, border = false, add = false, add_relu = false, in_place = false;
  int64_t in_gap = 0;      // floats between pixels and more between rows and images
  int64_t out_spread = 1;  // the output is every so many-th pixel of a larger map
  float in_scale = 1, in_mean = 0;
  int64_t out_height = 0, out_width = 0;  // of the input if 0
};

struct Data {
  std::vector<float> in, scale, shift, weights, bias, border, add, out;
  std::vector<char> written;  // which floats of `out` are outputs
  Convolution c;
};

Data make_data(const Problem& p, std::mt19937& random) {
  Data d;
  Convolution& c = d.c;
  c.batch = p.batch;
  c.height = p.height;
  c.width = p.width;
  c.stride = p.stride;
  c.taps = p.taps.data();
  c.num_taps = static_cast<int64_t>(p.taps.size());
  c.run = p.run;
  c.load = p.load;
  c.eps = 1e-5f;
  c.activation = p.activation;
  c.add_relu = p.add_relu;
  c.out_height = p.out_height > 0 ? p.out_height : p.height;
  c.out_width = p.out_width > 0 ? p.out_width : p.width;

  c.in_strides.pixel = p.run + p.in_gap;
  c.in_strides.row = p.width * c.in_strides.pixel + 2 * p.in_gap;
  c.in_strides.image = p.height * c.in_strides.row + 3 * p.in_gap;
  // No float behind the last pixel: reading outside is then seen by the sanitizer.
  d.in = normal_floats(random, p.batch * c.in_strides.image - 6 * p.in_gap, p.in_scale);
  for (float& v : d.in) v += p.in_mean;
  d.scale = normal_floats(random, p.batch * p.run);
  d.shift = normal_floats(random, p.batch * p.run);
  c.in = d.in.data();
  if (p.load == Load::kAffine || p.load == Load::kAffineRelu) {
    c.scale = d.scale.data();
    c.shift = d.shift.data();
  }

  c.weights.precision = p.precision;
  c.weights.k = c.num_taps * p.run;
  c.weights.n = p.n;
  d.weights = normal_floats(random, p.n * c.weights.k);

  c.out_strides.pixel = p.out_spread * p.n + 5;
  c.out_strides.row = c.out_width * c.out_strides.pixel * p.out_spread + 3;
  c.out_strides.image = c.out_height * c.out_strides.row + 7;
  const int64_t first = 11;
  const auto size = first + p.batch * c.out_strides.image + 64;
  d.out.assign(size, kCanary);
  d.written.assign(size, 0);
  c.out = d.out.data() + first;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t y = 0; y < c.out_height; ++y) {
      for (int64_t x = 0; x < c.out_width; ++x) {
        const int64_t at =
            first + b * c.out_strides.image + y * c.out_strides.row + x * c.out_strides.pixel;
        std::fill_n(d.written.begin() + at, p.n, 1);
      }
    }
  }
  d.bias = normal_floats(random, p.n);
  d.border = normal_floats(random, 16 * p.n);
  if (p.bias) c.bias = d.bias.data();
  if (p.border) c.border = d.border.data();
  if (p.add && p.in_place) {
    c.add = c.out;
    c.add_strides = c.out_strides;
  } else if (p.add) {
    c.add_strides = {c.out_height * c.out_width * (p.n + 1) + 2, c.out_width * (p.n + 1), p.n + 1};
    d.add = normal_floats(random, p.batch * c.add_strides.image);
    c.add = d.add.data();
  }
  if (p.in_place) {
    const std::vector<float> values = normal_floats(random, size);
    for (int64_t i = 0; i < static_cast<int64_t>(size); ++i) {
      if (d.written[i]) d.out[i] = values[i];
    }
  }
  return d;
}

// What an output is, and how far off float32 may be.
struct Expected {
  double value, bound;
};

double load_reference(const Convolution& c, const float* pixel, int64_t image, int64_t channel) {
  const double x = pixel[channel];
  const int64_t at = image * c.run + channel;
  switch (c.load) {
    case Load::kPlain:
      return x;
    case Load::kRelu:
      return std::max(x, 0.0);
    case Load::kAffine:
      return x * c.scale[at] + c.shift[at];
    case Load::kAffineRelu:
      return std::max(x * c.scale[at] + c.shift[at], 0.0);
    case Load::kLayerNorm: {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < c.run; ++i) mean += pixel[i] / static_cast<double>(c.run);
      for (int64_t i = 0; i < c.run; ++i) {
        variance += (pixel[i] - mean) * (pixel[i] - mean) / static_cast<double>(c.run);
      }
      return (x - mean) / std::sqrt(variance + c.eps);
    }
  }
  return 0;
}

// The row of the left factor that belongs to an output pixel, [k].
std::vector<double> row_reference(const Convolution& c, int64_t image, int64_t y, int64_t x) {
  std::vector<double> row;
  for (int64_t t = 0; t < c.num_taps; ++t) {
    const int64_t in_y = y * c.stride + c.taps[t].dy;
    const int64_t in_x = x * c.stride + c.taps[t].dx;
    const bool inside = in_y >= 0 && in_y < c.height && in_x >= 0 && in_x < c.width;
    for (int64_t i = 0; i < c.run; ++i) {
      if (!inside) {
        row.push_back(0);
        continue;
      }
      row.push_back(load_reference(
          c,
          c.in + image * c.in_strides.image + in_y * c.in_strides.row + in_x * c.in_strides.pixel,
          image, i));
    }
  }
  return row;
}

double finish_reference(const Convolution& c, double x, int64_t image, int64_t y, int64_t x_at,
                        int64_t column) {
  if (c.bias != nullptr) x += c.bias[column];
  if (c.border != nullptr) {
    int64_t row = 0, col = 0;
    if (y == 0) row += 1;
    if (y == c.out_height - 1) row += 2;
    if (x_at == 0) col += 1;
    if (x_at == c.out_width - 1) col += 2;
    x += c.border[(4 * row + col) * c.weights.n + column];
  }
  if (c.activation == Activation::kRelu) x = std::max(x, 0.0);
  if (c.activation == Activation::kGelu) x = 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (c.add != nullptr) {
    const double add = c.add[image * c.add_strides.image + y * c.add_strides.row +
                             x_at * c.add_strides.pixel + column];
    x += c.add_relu ? std::max(add, 0.0) : add;
  }
  return x;
}

// [batch * out_height * out_width, n].
std::vector<Expected> reference(const Data& d) {
  const Convolution& c = d.c;
  const double eps = std::ldexp(1.0, -24);
  std::vector<Expected> expected;
  for (int64_t image = 0; image < c.batch; ++image) {
    for (int64_t y = 0; y < c.out_height; ++y) {
      for (int64_t x = 0; x < c.out_width; ++x) {
        const std::vector<double> row = row_reference(c, image, y, x);
        for (int64_t column = 0; column < c.weights.n; ++column) {
          double total = 0, absolute = 0;
          for (size_t i = 0; i < row.size(); ++i) {
            const double product = row[i] * d.weights[column * c.weights.k + i];
            total += product;
            absolute += std::abs(product);
          }
          const double value = finish_reference(c, total, image, y, x, column);
          // k roundings of sums that are no larger than `absolute`, those of what is loaded, and
          // the erf of GELU, 3e-7 of its argument. No activation has a slope above 1.2.
          double bound = static_cast<double>(c.weights.k + 8) * eps * absolute;
          bound += 16 * eps * (std::abs(total) + 16);
          if (c.load == Load::kLayerNorm) {
            // The mean and the variance have `run` summands, of which the mean's are as large as x.
            const float* pixel =
                c.in + image * c.in_strides.image + y * c.in_strides.row + x * c.in_strides.pixel;
            double variance = 0, mean = 0, largest = 0, sum_weights = 0;
            for (int64_t i = 0; i < c.run; ++i) {
              mean += pixel[i] / static_cast<double>(c.run);
              largest = std::max(largest, std::abs(static_cast<double>(pixel[i])));
              sum_weights += std::abs(d.weights[column * c.run + i]);
            }
            for (int64_t i = 0; i < c.run; ++i) {
              variance += (pixel[i] - mean) * (pixel[i] - mean) / static_cast<double>(c.run);
            }
            bound += static_cast<double>(c.run + 8) * eps *
                     (absolute + sum_weights * largest / std::sqrt(variance + c.eps));
          }
          if (c.activation == Activation::kGelu) bound = 1.2 * bound + 2e-7 * (std::abs(value) + 1);
          expected.push_back({value, bound});
        }
      }
    }
  }
  return expected;
}

Buffer pack(const Kernels& k, Data& d) {
  const PackedMatrix& w = d.c.weights;
  Buffer buffer = packed(k.packed_bytes(w.precision, w.k, w.n), [&](void* data) {
    k.pack(w.precision, d.weights.data(), w.k, w.n, data);
  });
  d.c.weights.data = buffer.data();
  return buffer;
}

class RuntimeConvolution : public ::testing::TestWithParam<Isa> {
 protected:
  void check(const Problem& p) {
    const Kernels& k = kernels(GetParam());
    std::mt19937 random(1);
    Data d = make_data(p, random);
    const Buffer weights = pack(k, d);
    const std::vector<Expected> expected = reference(d);
    run_all(k.convolution, d.c, {&d.out});
    size_t i = 0;
    for (size_t at = 0; at < d.out.size(); ++at) {
      if (!d.written[at]) {
        ASSERT_EQ(d.out[at], kCanary) << "wrote outside, at " << at;
        continue;
      }
      ASSERT_LT(i, expected.size());
      ASSERT_NEAR(d.out[at], expected[i].value, expected[i].bound)
          << "output " << i / p.n << ", column " << i % p.n;
      ++i;
    }
    ASSERT_EQ(i, expected.size());
  }
};

std::vector<Tap> window(int size) {
  std::vector<Tap> taps;
  for (int y = 0; y < size; ++y) {
    for (int x = 0; x < size; ++x) taps.push_back({y - size / 2, x - size / 2});
  }
  return taps;
}

TEST_P(RuntimeConvolution, LinearLayersOfAllSizes) {
  for (const int64_t rows : {1, 2, 5, 6, 7, 13, 14, 15, 29, 113, 230}) {
    for (const auto& [k, n] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {24, 48}, {48, 33}, {257, 16}, {515, 24}}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(k) + " x " + std::to_string(n));
      check({.width = rows, .run = k, .n = n, .bias = true});
    }
  }
}

TEST_P(RuntimeConvolution, SumsOverManyPartsOfK) {
  // More than what is packed at a time, which is at most 4 parts of 256.
  check({.width = 17, .run = 1300, .n = 70, .bias = true, .add = true});
  check({.width = 110, .run = 1031, .n = 40, .add = true, .in_place = true});
  // More columns than those whose sums are kept.
  check({.width = 9, .run = 600, .n = 613, .bias = true, .add = true, .in_place = true});
}

TEST_P(RuntimeConvolution, EveryLoad) {
  for (const Load load :
       {Load::kPlain, Load::kRelu, Load::kLayerNorm, Load::kAffine, Load::kAffineRelu}) {
    for (const int64_t channels : {3, 24, 48, 300}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(load)) + ", " + std::to_string(channels));
      check({.batch = 2, .height = 3, .width = 5, .run = channels, .n = 19, .load = load});
      check({.batch = 2, .width = 11, .run = channels, .n = 5, .load = load, .in_gap = 3});
      if (load == Load::kLayerNorm) continue;
      check({.batch = 2,
             .height = 4,
             .width = 5,
             .run = channels,
             .n = 19,
             .taps = window(3),
             .load = load});
      check({.batch = 2,
             .height = 4,
             .width = 5,
             .run = channels,
             .n = 19,
             .taps = window(3),
             .load = load,
             .in_gap = 5});
    }
  }
}

TEST_P(RuntimeConvolution, LayerNormOfValuesFarFromZero) {
  // A mean of 100 at a deviation of 1: the rounding of the mean is 100 times that of a value.
  check({.width = 30, .run = 768, .n = 16, .load = Load::kLayerNorm, .in_mean = 100});
}

TEST_P(RuntimeConvolution, WindowsAndStrides) {
  for (const int size : {1, 2, 3, 7}) {
    for (const int64_t stride : {1, 2}) {
      SCOPED_TRACE(std::to_string(size) + " by " + std::to_string(stride));
      check({.batch = 2,
             .height = 9,
             .width = 11,
             .run = 3,
             .n = 17,
             .stride = stride,
             .taps = window(size),
             .bias = true,
             .out_height = (9 + stride - 1) / stride,
             .out_width = (11 + stride - 1) / stride});
      check({.height = 1, .width = 1, .run = 24, .n = 8, .stride = stride, .taps = window(size)});
      check({.height = 9,
             .width = 2,
             .run = 21,
             .n = 8,
             .stride = stride,
             .taps = window(size),
             .in_gap = 2,
             .out_height = 4,
             .out_width = 1});
    }
  }
}

TEST_P(RuntimeConvolution, PatchesOfAnImageAreRowsOfTaps) {
  // Patches of 4x4 of an image of three channels: a pixel of the input is a column of the patch's
  // first row, so that a run is a row of the patch.
  std::mt19937 random(3);
  std::vector<Tap> rows;
  for (int y = 0; y < 4; ++y) rows.push_back({y, 0});
  Problem p{.height = 12, .width = 20, .run = 12, .n = 10, .stride = 4, .taps = rows};
  p.out_height = 3;
  p.out_width = 5;
  Data d = make_data(p, random);
  d.in = normal_floats(random, 12 * 20 * 3);
  d.c.in = d.in.data();
  d.c.in_strides = {12 * 20 * 3, 20 * 3, 3};
  const Kernels& k = kernels(GetParam());
  const Buffer weights = pack(k, d);
  run_all(k.convolution, d.c, {&d.out});
  const std::vector<Expected> expected = reference(d);
  for (int64_t y = 0, i = 0; y < 3; ++y) {
    for (int64_t x = 0; x < 5; ++x) {
      for (int64_t column = 0; column < p.n; ++column, ++i) {
        const float got = d.c.out[y * d.c.out_strides.row + x * d.c.out_strides.pixel + column];
        ASSERT_NEAR(got, expected[i].value, expected[i].bound);
      }
    }
  }
}

TEST_P(RuntimeConvolution, EverythingThatFollows) {
  for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kGelu}) {
    for (int options = 0; options < 32; ++options) {
      SCOPED_TRACE(std::to_string(static_cast<int>(activation)) + ", " + std::to_string(options));
      check({.batch = 2,
             .height = 3,
             .width = 4,
             .run = 20,
             .n = 21,
             .taps = window(3),
             .activation = activation,
             .bias = (options & 1) != 0,
             .border = (options & 2) != 0,
             .add = (options & 4) != 0,
             .add_relu = (options & 8) != 0,
             .in_place = (options & 16) != 0,
             .out_spread = 1 + options % 3});
    }
  }
}

TEST_P(RuntimeConvolution, BorderOfMapsOfOneRowOrColumn) {
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {5, 1}, {2, 2}}) {
    check({.height = height, .width = width, .run = 4, .n = 9, .border = true});
  }
}

TEST_P(RuntimeConvolution, GeluIsErfWithinItsBound) {
  // One row for each value, times the number one.
  std::vector<float> values;
  for (int i = -6000; i <= 6000; ++i) values.push_back(static_cast<float>(i) * 1e-3f);
  const Tap tap{0, 0};
  std::vector<float> out(values.size());
  Convolution c;
  c.in = values.data();
  c.width = c.out_width = static_cast<int64_t>(values.size());
  c.height = 1;
  c.in_strides = c.out_strides = {c.width, c.width, 1};
  c.taps = &tap;
  c.num_taps = c.run = 1;
  c.activation = Activation::kGelu;
  c.out = out.data();
  const Kernels& k = kernels(GetParam());
  const float one = 1;
  Buffer weights(k.packed_bytes(Precision::kFloat32, 1, 1));
  k.pack(Precision::kFloat32, &one, 1, 1, weights.data());
  c.weights = {Precision::kFloat32, 1, 1, weights.data()};
  run_all(k.convolution, c, {&out});
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values[i];
    const double expected = 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    // erf within 3e-7 and the rounding of its argument, of slope 2 / sqrt(pi); two roundings.
    const double bound = 0.5 * std::abs(x) * (3e-7 + 1.13 * 2e-7) + 2e-7 * std::abs(expected);
    ASSERT_NEAR(out[i], expected, bound) << "at " << x;
  }
}

TEST_P(RuntimeConvolution, NoPixels) {
  Problem p{.width = 4, .run = 8, .n = 8};
  std::mt19937 random(1);
  Data d = make_data(p, random);
  d.c.batch = 0;
  const Kernels& k = kernels(GetParam());
  const Buffer weights = pack(k, d);
  EXPECT_EQ(k.convolution.units(d.c), 0);
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, RuntimeConvolution, ::testing::ValuesIn(supported()),
                         [](const auto& info) { return std::string(to_string(info.param)); });

}  // namespace
