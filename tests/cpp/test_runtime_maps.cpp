// tests/cpp/test_runtime_maps.cpp -- the runtime's group normalisation and pooling against slow
// float64 references.
#include <cmath>

#include "runtime_kernels.h"

namespace dpt::runtime::test {
namespace {

class RuntimeMaps : public testing::TestWithParam<Isa> {
 protected:
  const Kernels& table() const { return kernels(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Isa, RuntimeMaps, testing::ValuesIn(supported()),
                         [](const auto& info) { return to_string(info.param); });

// --- group statistics ---

struct GroupCase {
  int64_t batch, height, width, channels, groups;
};

// Inputs are `offset` plus a number of [-1, 1], with gaps of NaN between them.
void check_groups(const Kernel<GroupStatistics>& kernel, const GroupCase& at, float offset) {
  SCOPED_TRACE(testing::Message() << at.height << 'x' << at.width << ", " << at.channels
                                  << " channels in " << at.groups << " groups");
  Strides strides;
  strides.pixel = at.channels + 2;
  strides.row = at.width * strides.pixel + 3;
  strides.image = at.height * strides.row + 4;
  std::vector<float> in = random_floats(at.batch * strides.image, 1, offset - 1, offset + 1);
  std::vector<bool> used(in.size());
  const auto place = [&](int64_t b, int64_t y, int64_t x, int64_t c) {
    return b * strides.image + y * strides.row + x * strides.pixel + c;
  };
  for (int64_t b = 0; b < at.batch; ++b) {
    for (int64_t y = 0; y < at.height; ++y) {
      for (int64_t x = 0; x < at.width; ++x) {
        for (int64_t c = 0; c < at.channels; ++c) used[place(b, y, x, c)] = true;
      }
    }
  }
  for (size_t i = 0; i < in.size(); ++i) {
    if (!used[i]) in[i] = kNaN;
  }
  const std::vector<float> weight = random_floats(at.channels, 2),
                           bias = random_floats(at.channels, 3);
  Output scale(at.batch * at.channels), shift(at.batch * at.channels);
  GroupStatistics work;
  work.in = in.data();
  work.in_strides = strides;
  work.batch = at.batch;
  work.height = at.height;
  work.width = at.width;
  work.channels = at.channels;
  work.groups = at.groups;
  work.weight = weight.data();
  work.bias = bias.data();
  work.eps = 1e-3F;
  work.scale = scale.data();
  work.shift = shift.data();
  run_all(kernel, work, {&scale, &shift});

  const int64_t size = at.channels / at.groups;
  for (int64_t b = 0; b < at.batch; ++b) {
    for (int64_t group = 0; group < at.groups; ++group) {
      double mean = 0, variance = 0;
      const double count = size * at.height * at.width;
      for (const bool second : {false, true}) {
        for (int64_t y = 0; y < at.height; ++y) {
          for (int64_t x = 0; x < at.width; ++x) {
            for (int64_t c = group * size; c < (group + 1) * size; ++c) {
              const double value = in[place(b, y, x, c)];
              if (second) {
                variance += (value - mean) * (value - mean) / count;
              } else {
                mean += value / count;
              }
            }
          }
        }
      }
      // Sums of float64, of numbers that cancel: their size over eps. Then float32 once.
      const double sums = 4 * count * 0x1p-53 * (mean * mean + 1) / work.eps;
      for (int64_t c = group * size; c < (group + 1) * size; ++c) {
        const double expected = weight[c] / std::sqrt(variance + static_cast<double>(work.eps));
        ASSERT_NEAR(scale[b * at.channels + c], expected, std::abs(expected) * (2 * kEps + sums));
        ASSERT_NEAR(shift[b * at.channels + c], bias[c] - mean * expected,
                    (std::abs(bias[c]) + std::abs(mean * expected)) * (2 * kEps + sums));
      }
    }
  }
}

TEST_P(RuntimeMaps, GroupStatisticsMatchReference) {
  for (const GroupCase& at : std::vector<GroupCase>{{1, 1, 1, 1, 1},
                                                    {2, 5, 3, 64, 32},
                                                    {1, 4, 7, 24, 8},
                                                    {2, 3, 3, 35, 7},
                                                    {1, 9, 2, 96, 32},
                                                    {1, 6, 6, 256, 32},
                                                    {2, 2, 5, 120, 5},
                                                    {1, 3, 4, 50, 1},
                                                    {1, 17, 19, 40, 20},
                                                    {1, 2, 2, 1024, 32}}) {
    check_groups(table().group_statistics, at, 0);
  }
}

// The variance is a ten-millionth of the squares that it is the difference of.
TEST_P(RuntimeMaps, GroupStatisticsStandALargeMean) {
  check_groups(table().group_statistics, {1, 16, 16, 64, 32}, 2000);
}

TEST_P(RuntimeMaps, GroupStatisticsCarryNaNWithinAGroup) {
  std::vector<float> in = random_floats(4 * 64, 1);
  in[2 * 64 + 7] = kNaN;
  const std::vector<float> weight(64, 1), bias(64, 0);
  Output scale(64), shift(64);
  GroupStatistics work;
  work.in = in.data();
  work.in_strides = {4 * 64, 2 * 64, 64};
  work.height = work.width = 2;
  work.channels = 64;
  work.groups = 32;
  work.weight = weight.data();
  work.bias = bias.data();
  work.eps = 1e-5F;
  work.scale = scale.data();
  work.shift = shift.data();
  run_all(table().group_statistics, work, {&scale, &shift});
  for (int64_t c = 0; c < 64; ++c) {
    EXPECT_EQ(std::isnan(scale[c]), c / 2 == 3);
    EXPECT_EQ(std::isnan(shift[c]), c / 2 == 3);
  }
}

// --- affine, add, ReLU ---

TEST_P(RuntimeMaps, AffineAddReluMatchesReference) {
  const int64_t batch = 2;
  for (const auto& [pixels, channels] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {7, 3}, {50, 24}, {9, 67}, {2, 20000}, {999, 40}}) {
    const std::vector<float> in = random_floats(batch * pixels * channels, 1),
                             add = random_floats(batch * pixels * channels, 2),
                             scale = random_floats(batch * channels, 3),
                             shift = random_floats(batch * channels, 4),
                             add_scale = random_floats(batch * channels, 5),
                             add_shift = random_floats(batch * channels, 6);
    for (int options = 0; options < 32; ++options) {
      const auto is = [&](int bit) { return (options >> bit & 1) != 0; };
      Output out(in.size());
      AffineAddRelu work;
      work.in = in.data();
      work.scale = is(0) ? scale.data() : nullptr;
      work.shift = is(1) ? shift.data() : nullptr;
      work.add = is(2) ? add.data() : nullptr;
      work.add_scale = is(3) ? add_scale.data() : nullptr;
      work.add_shift = is(4) ? add_shift.data() : nullptr;
      work.batch = batch;
      work.pixels = pixels;
      work.channels = channels;
      work.out = out.data();
      run_all(table().affine_add_relu, work, {&out});
      for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t c = i / (pixels * channels) * channels + i % channels;
        double x = static_cast<double>(in[i]) * (is(0) ? scale[c] : 1) + (is(1) ? shift[c] : 0);
        if (is(2)) {
          x +=
              static_cast<double>(add[i]) * (is(3) ? add_scale[c] : 1) + (is(4) ? add_shift[c] : 0);
        }
        // Five operations on numbers of at most four.
        ASSERT_NEAR(out[i], std::max(x, 0.0), 5 * 4 * kEps) << options << ' ' << i;
      }
    }
  }
}

TEST_P(RuntimeMaps, AffineAddReluKeepsNaN) {
  std::vector<float> in = random_floats(5 * 11, 1);
  in[3 * 11 + 10] = kNaN;
  Output out(in.size());
  AffineAddRelu work;
  work.in = in.data();
  work.pixels = 5;
  work.channels = 11;
  work.out = out.data();
  run_all(table().affine_add_relu, work, {&out});
  for (int64_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i == 3 * 11 + 10);
}

// --- max pool ---

struct PoolCase {
  int64_t height, width, channels, before, out_height, out_width;
  bool zeros, affine;
};

void check_pool(const Kernel<MaxPool>& kernel, const PoolCase& at, bool with_nan) {
  SCOPED_TRACE(testing::Message() << at.height << 'x' << at.width << " to " << at.out_height << 'x'
                                  << at.out_width << ", " << at.channels << " channels");
  const int64_t batch = 2;
  std::vector<float> in = random_floats(batch * at.height * at.width * at.channels, 1, -1, -0.1F);
  if (with_nan) in[in.size() / 2] = kNaN;
  const std::vector<float> scale = random_floats(batch * at.channels, 2),
                           shift = random_floats(batch * at.channels, 3);
  Output out(batch * at.out_height * at.out_width * at.channels);
  MaxPool work;
  work.in = in.data();
  work.batch = batch;
  work.height = at.height;
  work.width = at.width;
  work.channels = at.channels;
  work.before = at.before;
  work.zeros = at.zeros;
  work.scale = at.affine ? scale.data() : nullptr;
  work.shift = at.affine ? shift.data() : nullptr;
  work.out = out.data();
  work.out_height = at.out_height;
  work.out_width = at.out_width;
  run_all(kernel, work, {&out});
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t Y = 0; Y < at.out_height; ++Y) {
      for (int64_t X = 0; X < at.out_width; ++X) {
        for (int64_t c = 0; c < at.channels; ++c) {
          double expected = -std::numeric_limits<double>::infinity();
          bool nan = false;
          for (int64_t i = 0; i < 9; ++i) {
            const int64_t y = 2 * Y - at.before + i / 3, x = 2 * X - at.before + i % 3;
            if (y < 0 || y >= at.height || x < 0 || x >= at.width) {
              if (at.zeros) expected = std::max(expected, 0.0);
              continue;
            }
            double value = in[((b * at.height + y) * at.width + x) * at.channels + c];
            if (at.affine) {
              value = value * scale[b * at.channels + c] + shift[b * at.channels + c];
              if (value < 0) value = 0;
            }
            nan = nan || std::isnan(value);
            expected = std::max(expected, value);
          }
          const float result = out[((b * at.out_height + Y) * at.out_width + X) * at.channels + c];
          ASSERT_EQ(std::isnan(result), nan);
          // A product and a sum.
          if (!nan) {
            ASSERT_NEAR(result, expected, at.affine ? 4 * kEps : 0);
          }
        }
      }
    }
  }
}

TEST_P(RuntimeMaps, MaxPoolMatchesReference) {
  for (const bool zeros : {false, true}) {
    for (const bool affine : {false, true}) {
      for (const bool with_nan : {false, true}) {
        for (const int64_t channels : {1, 3, 24, 64, 67}) {
          // As MaxPool2d(3, 2, 1), as "same" padding of even sizes, and small maps.
          check_pool(table().max_pool, {8, 10, channels, 1, 4, 5, zeros, affine}, with_nan);
          check_pool(table().max_pool, {9, 7, channels, 1, 5, 4, zeros, affine}, with_nan);
          check_pool(table().max_pool, {8, 6, channels, 0, 4, 3, zeros, affine}, with_nan);
          check_pool(table().max_pool, {1, 1, channels, 1, 1, 1, zeros, affine}, with_nan);
          check_pool(table().max_pool, {2, 5, channels, 0, 1, 3, zeros, affine}, with_nan);
        }
      }
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::test
