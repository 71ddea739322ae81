// Winograd convolutions of the CPU runtime against sums in double, for each instruction set of this
// machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dpt/runtime/kernels.h"
#include "runtime_kernels.h"

namespace {

using namespace dpt::runtime;
using namespace dpt::runtime::test;

struct Problem {
  int64_t batch = 1, height = 1, width = 1, channels = 1, n = 1;
  bool load_relu = false, bias = false, relu = false, add = false, add_relu = false;
  bool in_place = false;
  int64_t gap = 0;  // floats between pixels, rows and images of all maps
};

struct Data {
  std::vector<float> in, weights, bias, add, out;
  std::vector<char> written;
  Winograd w;
};

Strides strides(const Problem& p, int64_t channels) {
  const int64_t pixel = channels + p.gap;
  const int64_t row = p.width * pixel + p.gap;
  return {p.height * row + p.gap, row, pixel};
}

Data make_data(const Problem& p, std::mt19937& random) {
  Data d;
  Winograd& w = d.w;
  w.batch = p.batch;
  w.height = p.height;
  w.width = p.width;
  w.channels = p.channels;
  w.n = p.n;
  w.load_relu = p.load_relu;
  w.relu = p.relu;
  w.add_relu = p.add_relu;
  w.in_strides = strides(p, p.channels);
  w.out_strides = w.add_strides = strides(p, p.n);
  // No float behind the last pixel: reading outside is then seen by the sanitizer.
  d.in = normal_floats(random, p.batch * w.in_strides.image - 3 * p.gap);
  w.in = d.in.data();
  d.weights = normal_floats(random, p.n * p.channels * 9);
  d.bias = normal_floats(random, p.n);
  if (p.bias) w.bias = d.bias.data();

  const int64_t first = 11;
  const auto size = first + p.batch * w.out_strides.image + 64;
  d.out.assign(size, kCanary);
  d.written.assign(size, 0);
  w.out = d.out.data() + first;
  const std::vector<float> values = normal_floats(random, size);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t y = 0; y < p.height; ++y) {
      for (int64_t x = 0; x < p.width; ++x) {
        const int64_t at =
            first + b * w.out_strides.image + y * w.out_strides.row + x * w.out_strides.pixel;
        for (int64_t i = at; i < at + p.n; ++i) {
          d.written[i] = 1;
          if (p.in_place) d.out[i] = values[i];
        }
      }
    }
  }
  if (p.add) {
    d.add = normal_floats(random, p.batch * w.add_strides.image - 3 * p.gap);
    w.add = p.in_place ? w.out : d.add.data();
  }
  return d;
}

// What the roundings of Winograd's algorithm are amplified by: the same computation with absolute
// values of all factors. Points 0, +-3/4, +-3/2, infinity.
struct Amplification {
  Amplification() {
    const double points[5] = {0, 0.75, -0.75, 1.5, -1.5};
    for (int i = 0; i < 5; ++i) {
      std::vector<double> polynomial = {1};  // of the other points as roots, lowest power first
      for (int j = 0; j < 5; ++j) {
        if (j != i) polynomial = times_root(polynomial, points[j]);
      }
      double divisor = 0;
      for (int j = 4; j >= 0; --j) divisor = divisor * points[i] + polynomial[j];
      for (int j = 0; j < 3; ++j) taps[i][j] = std::abs(std::pow(points[i], j) / divisor);
      for (int j = 0; j < 5; ++j) in[i][j] = std::abs(polynomial[j]);
      for (int j = 0; j < 4; ++j) out[j][i] = std::abs(std::pow(points[i], j));
    }
    std::vector<double> polynomial = {1};
    for (const double point : points) polynomial = times_root(polynomial, point);
    for (int j = 0; j < 6; ++j) in[5][j] = std::abs(polynomial[j]);
    taps[5][2] = out[3][5] = 1;
  }

  static std::vector<double> times_root(const std::vector<double>& polynomial, double root) {
    std::vector<double> product(polynomial.size() + 1);
    for (size_t i = 0; i < polynomial.size(); ++i) {
      product[i + 1] += polynomial[i];
      product[i] -= root * polynomial[i];
    }
    return product;
  }

  double taps[6][3] = {}, in[6][6] = {}, out[4][6] = {};
};

template <class Map>
double pixel(const Map& map, int64_t b, int64_t y, int64_t x, int64_t channel) {
  if (y < 0 || y >= map.height || x < 0 || x >= map.width) return 0;
  return map
      .in[b * map.in_strides.image + y * map.in_strides.row + x * map.in_strides.pixel + channel];
}

double loaded(const Winograd& w, int64_t b, int64_t y, int64_t x, int64_t channel) {
  const double value = pixel(w, b, y, x, channel);
  return w.load_relu ? std::max(value, 0.0) : value;
}

// Of all outputs of the tile at (b, y, x) and one column, [4, 4].
std::vector<double> amplified(const Data& d, int64_t b, int64_t y, int64_t x, int64_t column) {
  static const Amplification kBy;
  const Winograd& w = d.w;
  double products[6][6] = {};
  for (int64_t c = 0; c < w.channels; ++c) {
    double rows[6][6] = {}, kernel_rows[3][6] = {};
    for (int i = 0; i < 6; ++i) {
      for (int point = 0; point < 6; ++point) {
        for (int j = 0; j < 6; ++j) {
          rows[i][point] += kBy.in[point][j] * std::abs(loaded(w, b, y + i - 1, x + j - 1, c));
        }
      }
    }
    const float* kernel = d.weights.data() + (column * w.channels + c) * 9;
    for (int i = 0; i < 3; ++i) {
      for (int point = 0; point < 6; ++point) {
        for (int j = 0; j < 3; ++j) {
          kernel_rows[i][point] += kBy.taps[point][j] * std::abs(kernel[3 * i + j]);
        }
      }
    }
    for (int p = 0; p < 6; ++p) {
      for (int q = 0; q < 6; ++q) {
        double pixel = 0, tap = 0;
        for (int i = 0; i < 6; ++i) pixel += kBy.in[p][i] * rows[i][q];
        for (int i = 0; i < 3; ++i) tap += kBy.taps[p][i] * kernel_rows[i][q];
        products[p][q] += pixel * tap;
      }
    }
  }
  std::vector<double> outputs(16);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int p = 0; p < 6; ++p) {
        for (int q = 0; q < 6; ++q) {
          outputs[4 * i + j] += kBy.out[i][p] * kBy.out[j][q] * products[p][q];
        }
      }
    }
  }
  return outputs;
}

// What an output is, and how far off float32 may be.
struct Expected {
  double value = 0, bound = 0;
};

// [batch * height * width, n].
std::vector<Expected> reference(const Data& d) {
  const Winograd& w = d.w;
  std::vector<Expected> expected(w.batch * w.height * w.width * w.n);
  for (int64_t b = 0; b < w.batch; ++b) {
    for (int64_t y = 0; y < w.height; ++y) {
      for (int64_t x = 0; x < w.width; ++x) {
        for (int64_t column = 0; column < w.n; ++column) {
          double total = 0;
          for (int64_t tap = 0; tap < 9; ++tap) {
            for (int64_t c = 0; c < w.channels; ++c) {
              total += loaded(w, b, y + tap / 3 - 1, x + tap % 3 - 1, c) *
                       d.weights[(column * w.channels + c) * 9 + tap];
            }
          }
          if (w.bias != nullptr) total += w.bias[column];
          if (w.relu) total = std::max(total, 0.0);
          if (w.add != nullptr) {
            const double add = w.add[b * w.add_strides.image + y * w.add_strides.row +
                                     x * w.add_strides.pixel + column];
            total += w.add_relu ? std::max(add, 0.0) : add;
          }
          expected[((b * w.height + y) * w.width + x) * w.n + column].value = total;
        }
      }
    }
  }
  // Roundings: as many as channels, and 24 of the transforms, bias and `add`. They have random
  // signs, so that their sum grows with the root of their number (Higham and Mary 2019); six
  // deviations.
  const double deviations = 6 * kEps * std::sqrt(static_cast<double>(w.channels + 24));
  for (int64_t b = 0; b < w.batch; ++b) {
    for (int64_t y = 0; y < w.height; y += 4) {
      for (int64_t x = 0; x < w.width; x += 4) {
        for (int64_t column = 0; column < w.n; ++column) {
          const std::vector<double> by = amplified(d, b, y, x, column);
          for (int64_t i = 0; i < std::min<int64_t>(4, w.height - y); ++i) {
            for (int64_t j = 0; j < std::min<int64_t>(4, w.width - x); ++j) {
              const int64_t pixel = (b * w.height + y + i) * w.width + x + j;
              expected[pixel * w.n + column].bound = deviations * (by[4 * i + j] + 8);
            }
          }
        }
      }
    }
  }
  return expected;
}

class RuntimeWinograd : public ::testing::TestWithParam<Isa> {
 protected:
  // Returns the largest error over the largest output.
  double check(const Problem& p) {
    const Kernels& k = kernels(GetParam());
    std::mt19937 random(1);
    Data d = make_data(p, random);
    const Buffer weights = packed(k.winograd_bytes(p.channels, p.n), [&](void* data) {
      const WinogradWeights work{
          .weights = d.weights.data(), .channels = p.channels, .n = p.n, .packed = data};
      const int64_t units = k.winograd_pack.units(work);
      call(k.winograd_pack, work, units / 2, units);
      call(k.winograd_pack, work, 0, units / 2);
    });
    d.w.weights = weights.data();
    const std::vector<Expected> expected = reference(d);
    run_all(k.winograd, d.w, {&d.out});
    double largest_error = 0, largest = 0;
    size_t i = 0;
    for (size_t at = 0; at < d.out.size(); ++at) {
      if (!d.written[at]) {
        EXPECT_EQ(d.out[at], kCanary) << "wrote outside, at " << at;
        continue;
      }
      if (i == expected.size()) break;
      const double error = std::abs(d.out[at] - expected[i].value);
      EXPECT_LE(error, expected[i].bound) << "output " << i / p.n << ", column " << i % p.n;
      if (!(error <= expected[i].bound)) break;
      largest_error = std::max(largest_error, error);
      largest = std::max(largest, std::abs(expected[i].value));
      ++i;
    }
    EXPECT_EQ(i, expected.size());
    return largest_error / largest;
  }
};

TEST_P(RuntimeWinograd, MapsOfAllSizes) {
  for (const int64_t height : {1, 2, 3, 4, 5, 9}) {
    for (const int64_t width : {1, 3, 4, 6, 8, 11}) {
      SCOPED_TRACE(std::to_string(height) + " x " + std::to_string(width));
      check({.batch = 2, .height = height, .width = width, .channels = 5, .n = 6, .bias = true});
    }
  }
}

TEST_P(RuntimeWinograd, ChannelsOfAllSizes) {
  for (const int64_t channels : {1, 3, 16, 24, 48, 70}) {
    for (const int64_t n : {1, 8, 19, 32, 48}) {
      SCOPED_TRACE(std::to_string(channels) + " -> " + std::to_string(n));
      check({.height = 6, .width = 9, .channels = channels, .n = n, .bias = true});
    }
  }
}

TEST_P(RuntimeWinograd, MorePanelsThanAtATime) {
  check({.batch = 2, .height = 62, .width = 45, .channels = 8, .n = 5});
}

TEST_P(RuntimeWinograd, MoreChannelsThanOnePart) {
  check({.height = 7, .width = 9, .channels = 600, .n = 20, .add = true});
  check({.height = 7, .width = 9, .channels = 259, .n = 20, .load_relu = true, .gap = 3});
}

TEST_P(RuntimeWinograd, EveryOption) {
  for (int options = 0; options < 64; ++options) {
    SCOPED_TRACE(options);
    check({.batch = 2,
           .height = 5,
           .width = 7,
           .channels = 20,
           .n = 21,
           .load_relu = (options & 1) != 0,
           .bias = (options & 2) != 0,
           .relu = (options & 4) != 0,
           .add = (options & 8) != 0,
           .add_relu = (options & 16) != 0,
           .in_place = (options & 32) != 0,
           .gap = options % 3});
  }
}

TEST_P(RuntimeWinograd, ErrorIsSmallAgainstTheLargestOutput) {
  // Channels of the networks' decoders; 2e-5 is what the exactness of the runtime is planned with.
  EXPECT_LE(check({.height = 12, .width = 16, .channels = 256, .n = 64}), 2e-5);
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, RuntimeWinograd, ::testing::ValuesIn(supported()),
                         [](const auto& info) { return std::string(to_string(info.param)); });

// --- the gradient of the weights ---

// [n, channels, 3, 3]. Roundings are those of the transforms, 24 and 24 and, of the sums of all
// tiles, one.
std::vector<Expected> reference(const WinogradPoints& input, const WinogradPoints& gradient) {
  static const Amplification kBy;
  const int64_t channels = input.channels, n = gradient.channels;
  const double deviations = 6 * kEps * std::sqrt(49.0);
  std::vector<Expected> expected(n * channels * 9);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      Expected* taps = expected.data() + (k * channels + c) * 9;
      double by[6][6] = {};
      for (int64_t b = 0; b < input.batch; ++b) {
        for (int64_t y = 0; y < input.height; ++y) {
          for (int64_t x = 0; x < input.width; ++x) {
            for (int64_t tap = 0; tap < 9; ++tap) {
              taps[tap].value += pixel(gradient, b, y, x, k) *
                                 pixel(input, b, y + tap / 3 - 1, x + tap % 3 - 1, c);
            }
          }
        }
        for (int64_t y = 0; y < input.height; y += 4) {
          for (int64_t x = 0; x < input.width; x += 4) {
            double rows[6][6] = {}, grad_rows[4][6] = {};
            for (int point = 0; point < 6; ++point) {
              for (int j = 0; j < 6; ++j) {
                for (int i = 0; i < 6; ++i) {
                  rows[i][point] +=
                      kBy.in[point][j] * std::abs(pixel(input, b, y + i - 1, x + j - 1, c));
                }
                for (int i = 0; i < 4 && j < 4; ++i) {
                  grad_rows[i][point] +=
                      kBy.out[j][point] * std::abs(pixel(gradient, b, y + i, x + j, k));
                }
              }
            }
            for (int p = 0; p < 6; ++p) {
              for (int q = 0; q < 6; ++q) {
                double in = 0, grad = 0;
                for (int i = 0; i < 6; ++i) in += kBy.in[p][i] * rows[i][q];
                for (int i = 0; i < 4; ++i) grad += kBy.out[i][p] * grad_rows[i][q];
                by[p][q] += in * grad;
              }
            }
          }
        }
      }
      for (int tap = 0; tap < 9; ++tap) {
        for (int p = 0; p < 6; ++p) {
          for (int q = 0; q < 6; ++q) {
            taps[tap].bound += deviations * kBy.taps[p][tap / 3] * kBy.taps[q][tap % 3] * by[p][q];
          }
        }
      }
    }
  }
  return expected;
}

class RuntimeWinogradGradient : public ::testing::TestWithParam<Isa> {
 protected:
  void check(const Problem& p, int64_t tiles_at_a_time = 0) {  // 0: all
    const Kernels& k = kernels(GetParam());
    std::mt19937 random(3);
    const int64_t tiles = p.batch * ((p.height + 3) / 4) * ((p.width + 3) / 4);
    const int64_t most = tiles_at_a_time == 0 ? tiles : tiles_at_a_time;
    const auto make_map = [&](int64_t channels, std::vector<float>& values, bool of_gradient) {
      WinogradPoints map{.batch = p.batch,
                         .height = p.height,
                         .width = p.width,
                         .channels = channels,
                         .of_gradient = of_gradient};
      map.in_strides = strides(p, channels);
      values = normal_floats(random, p.batch * map.in_strides.image - 3 * p.gap);
      map.in = values.data();
      return map;
    };
    std::vector<float> input_values, gradient_values;
    WinogradPoints input = make_map(p.channels, input_values, false);
    WinogradPoints gradient = make_map(p.n, gradient_values, true);

    std::vector<double> sums(36 * p.n * p.channels);
    for (int64_t first = 0; first < tiles; first += most) {
      const int64_t count = std::min(most, tiles - first);
      const auto points = [&](WinogradPoints map) {
        map.first = first;
        map.tiles = count;
        map.point_stride = count * map.channels + 5;
        std::vector<float> out(36 * map.point_stride, kCanary);
        map.out = out.data();
        run_all(k.winograd_points, map, {&out});
        for (int64_t i = 0; i < 36; ++i) {
          for (int64_t j = count * map.channels; j < map.point_stride; ++j) {
            EXPECT_EQ(out[i * map.point_stride + j], kCanary) << "wrote behind point " << i;
          }
        }
        return out;
      };
      const std::vector<float> in = points(input), grad = points(gradient);
      for (int64_t point = 0; point < 36; ++point) {
        for (int64_t tile = 0; tile < count; ++tile) {
          const float* of_in = &in[point * (count * p.channels + 5) + tile * p.channels];
          const float* of_grad = &grad[point * (count * p.n + 5) + tile * p.n];
          for (int64_t i = 0; i < p.n * p.channels; ++i) {
            sums[point * p.n * p.channels + i] +=
                static_cast<double>(of_grad[i / p.channels]) * of_in[i % p.channels];
          }
        }
      }
    }
    const std::vector<float> rounded(sums.begin(), sums.end());
    Output taps(p.n * p.channels * 9);
    run_all(k.winograd_taps,
            WinogradTaps{
                .points = rounded.data(), .n = p.n, .channels = p.channels, .taps = taps.data()},
            {&taps.all()});
    EXPECT_TRUE(taps.guarded());
    const std::vector<Expected> expected = reference(input, gradient);
    for (int64_t i = 0; i < taps.size(); ++i) {
      ASSERT_LE(std::abs(taps[i] - expected[i].value), expected[i].bound) << "tap " << i;
    }
  }
};

TEST_P(RuntimeWinogradGradient, MapsOfAllSizes) {
  for (const int64_t height : {1, 2, 3, 4, 5, 9}) {
    for (const int64_t width : {1, 3, 4, 6, 8, 11}) {
      SCOPED_TRACE(std::to_string(height) + " x " + std::to_string(width));
      check({.batch = 2, .height = height, .width = width, .channels = 5, .n = 6});
    }
  }
}

TEST_P(RuntimeWinogradGradient, ChannelsOfAllSizes) {
  for (const int64_t channels : {1, 3, 16, 24, 48}) {
    for (const int64_t n : {1, 8, 19, 32}) {
      SCOPED_TRACE(std::to_string(channels) + " -> " + std::to_string(n));
      check({.height = 6, .width = 9, .channels = channels, .n = n, .gap = channels % 5});
    }
  }
}

TEST_P(RuntimeWinogradGradient, SomeTilesAtATime) {
  for (const int64_t tiles : {1, 5, 8}) {
    check({.batch = 3, .height = 7, .width = 13, .channels = 17, .n = 3}, tiles);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, RuntimeWinogradGradient, ::testing::ValuesIn(supported()),
                         [](const auto& info) { return std::string(to_string(info.param)); });

}  // namespace
