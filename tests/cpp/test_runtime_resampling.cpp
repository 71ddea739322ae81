// tests/cpp/test_runtime_resampling.cpp -- the runtime's bilinear resizing, with a sum and with a
// convolution, against a slow float64 reference.
#include <cmath>

#include "runtime_kernels.h"

namespace dpt::runtime::test {
namespace {

struct Size {
  int64_t h, w, H, W;
};

const std::vector<Size> kSizes = {{1, 1, 1, 1},     {1, 1, 4, 3},  {2, 3, 1, 1},   {1, 5, 6, 1},
                                  {3, 5, 7, 11},    {4, 7, 4, 7},  {7, 9, 3, 4},   {5, 1, 5, 9},
                                  {12, 13, 24, 26}, {9, 40, 2, 5}, {6, 30, 17, 61}};

// Where output `i` lies in the input.
double position(int64_t i, int64_t in, int64_t out, bool align_corners) {
  if (!align_corners) return std::max((i + 0.5) * in / out - 0.5, 0.0);
  return out == 1 ? 0.0 : static_cast<double>(i * (in - 1)) / static_cast<double>(out - 1);
}

// A map with gaps between rows, pixels and images; they hold NaN.
struct Map {
  Map(int64_t batch, int64_t height, int64_t width, int64_t channels, uint32_t seed)
      : batch(batch), height(height), width(width), channels(channels) {
    strides.pixel = channels + 3;
    strides.row = width * strides.pixel + 5;
    strides.image = height * strides.row + 7;
    const std::vector<float> values = random_floats(batch * height * width * channels, seed);
    data.assign(batch * strides.image, kNaN);
    auto value = values.begin();
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          for (int64_t c = 0; c < channels; ++c) data[place(b, y, x, c)] = *value++;
        }
      }
    }
  }
  int64_t place(int64_t b, int64_t y, int64_t x, int64_t c) const {
    return b * strides.image + y * strides.row + x * strides.pixel + c;
  }
  double at(int64_t b, int64_t y, int64_t x, int64_t c) const { return data[place(b, y, x, c)]; }

  // The map resized to [H, W], at row Y and column X.
  double resized(const Size& size, bool align_corners, int64_t b, int64_t Y, int64_t X,
                 int64_t c) const {
    const double y = position(Y, height, size.H, align_corners);
    const double x = position(X, width, size.W, align_corners);
    double result = 0;
    for (int64_t i = 0; i < 2; ++i) {
      for (int64_t j = 0; j < 2; ++j) {
        const double row = std::floor(y) + i, column = std::floor(x) + j;
        const double weight = (1 - std::abs(y - row)) * (1 - std::abs(x - column));
        result += weight * at(b, std::min<int64_t>(row, height - 1),
                              std::min<int64_t>(column, width - 1), c);
      }
    }
    return result;
  }

  int64_t batch, height, width, channels;
  Strides strides;
  std::vector<float> data;
};

// A bound on the error of one number of at most 1 that was resized: positions are rounded at their
// own size and move it along slopes of at most 2, and four products are summed.
double resizing_error(const Size& size) { return 2 * 4 * kEps * (size.h + size.w + 2) + 8 * kEps; }

// Everything but the pixels of the output is as it was.
void expect_gaps_untouched(const Output& out, const Map& like) {
  std::vector<bool> written(out.size());
  for (int64_t b = 0; b < like.batch; ++b) {
    for (int64_t y = 0; y < like.height; ++y) {
      for (int64_t x = 0; x < like.width; ++x) {
        for (int64_t c = 0; c < like.channels; ++c) written[like.place(b, y, x, c)] = true;
      }
    }
  }
  for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.untouched(i), !written[i]) << i;
}

class RuntimeResampling : public testing::TestWithParam<Isa> {
 protected:
  const Kernels& table() const { return kernels(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Isa, RuntimeResampling, testing::ValuesIn(supported()),
                         [](const auto& info) { return to_string(info.param); });

// --- upsample, add ---

UpsampleAdd work_of(const Map& in, const Map& like, bool align_corners, float* out) {
  UpsampleAdd work;
  work.in = in.data.data();
  work.in_strides = in.strides;
  work.batch = in.batch;
  work.height = in.height;
  work.width = in.width;
  work.channels = in.channels;
  work.align_corners = align_corners;
  work.out = out;
  work.out_strides = like.strides;
  work.out_height = like.height;
  work.out_width = like.width;
  return work;
}

TEST_P(RuntimeResampling, UpsampleAddMatchesReference) {
  for (const Size& size : kSizes) {
    for (const int64_t channels : {1, 3, 24, 48, 67}) {
      for (const bool align_corners : {true, false}) {
        for (const bool with_add : {true, false}) {
          SCOPED_TRACE(testing::Message() << size.h << 'x' << size.w << " to " << size.H << 'x'
                                          << size.W << ", " << channels << " channels");
          const Map in(2, size.h, size.w, channels, 1), add(2, size.H, size.W, channels, 2);
          Output out(add.data.size());
          UpsampleAdd work = work_of(in, add, align_corners, out.data());
          if (with_add) {
            work.add = add.data.data();
            work.add_strides = add.strides;
          }
          run_all(table().upsample_add, work, {&out});
          expect_gaps_untouched(out, add);
          for (int64_t b = 0; b < 2; ++b) {
            for (int64_t Y = 0; Y < size.H; ++Y) {
              for (int64_t X = 0; X < size.W; ++X) {
                for (int64_t c = 0; c < channels; ++c) {
                  const double expected = in.resized(size, align_corners, b, Y, X, c) +
                                          (with_add ? add.at(b, Y, X, c) : 0);
                  ASSERT_NEAR(out[add.place(b, Y, X, c)], expected, resizing_error(size))
                      << b << ' ' << Y << ' ' << X << ' ' << c;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(RuntimeResampling, UpsampleAddMayAddInPlace) {
  const Map in(2, 5, 6, 35, 1), add(2, 10, 12, 35, 2);
  Output apart(add.data.size());
  UpsampleAdd work = work_of(in, add, true, apart.data());
  work.add = add.data.data();
  work.add_strides = add.strides;
  run_all(table().upsample_add, work, {&apart});

  std::vector<float> within = add.data;
  work.add = work.out = within.data();
  call(table().upsample_add, work, 0, table().upsample_add.units(work));
  for (int64_t i = 0; i < apart.size(); ++i) {
    if (!apart.untouched(i)) {
      ASSERT_EQ(within[i], apart[i]);
    }
  }
}

TEST_P(RuntimeResampling, UpsampleAddCarriesNaNToThePixelsThatSeeIt) {
  Map in(1, 4, 4, 5, 1);
  const Map add(1, 8, 8, 5, 2);
  in.data[in.place(0, 1, 2, 3)] = kNaN;
  Output out(add.data.size());
  run_all(table().upsample_add, work_of(in, add, false, out.data()), {&out});
  for (int64_t Y = 0; Y < 8; ++Y) {
    for (int64_t X = 0; X < 8; ++X) {
      // Row 0 sees it with a weight of 0, as in ATen.
      const bool sees = Y <= 4 && X >= 3 && X <= 6;
      for (int64_t c = 0; c < 5; ++c) {
        ASSERT_EQ(std::isnan(out[add.place(0, Y, X, c)]), sees && c == 3) << Y << ' ' << X;
      }
    }
  }
}

// --- upsample, gather ---

struct GatherCase {
  Size size;
  int64_t channels;
  bool align_corners, with_bias, with_border, relu, with_dot, invert;
};

struct Gather {
  explicit Gather(const GatherCase& at)
      : at(at),
        in(2, at.size.h, at.size.w, 9 * at.channels, 1),
        like(2, at.size.H, at.size.W, at.with_dot ? 1 : at.channels, 2),
        bias(random_floats(at.channels, 3)),
        border(random_floats(16 * at.channels, 4)),
        dot(random_floats(at.channels, 5)),
        out(like.data.size()) {}

  UpsampleGather work() {
    UpsampleGather work;
    work.in = in.data.data();
    work.in_strides = in.strides;
    work.batch = in.batch;
    work.height = at.size.h;
    work.width = at.size.w;
    work.channels = at.channels;
    work.align_corners = at.align_corners;
    work.out = out.data();
    work.out_strides = like.strides;
    work.out_height = at.size.H;
    work.out_width = at.size.W;
    work.bias = at.with_bias ? bias.data() : nullptr;
    work.border = at.with_border ? border.data() : nullptr;
    work.relu = at.relu;
    if (at.with_dot) {
      work.dot = dot.data();
      work.dot_bias = 0.25F;
      work.invert = at.invert;
      work.invert_scale = 0.5F;
      work.invert_shift = 0.125F;
    }
    return work;
  }

  // Before the ReLU.
  double convolved(int64_t b, int64_t Y, int64_t X, int64_t c) const {
    const Size& n = at.size;
    double x = at.with_bias ? bias[c] : 0;
    if (at.with_border) {
      int64_t number = 0;
      if (Y == 0) number += 4;
      if (Y == n.H - 1) number += 8;
      if (X == 0) number += 1;
      if (X == n.W - 1) number += 2;
      x += border[number * at.channels + c];
    }
    for (int64_t dy = -1; dy <= 1; ++dy) {
      for (int64_t dx = -1; dx <= 1; ++dx) {
        if (Y + dy < 0 || Y + dy >= n.H || X + dx < 0 || X + dx >= n.W) continue;
        const int64_t tap = 3 * (dy + 1) + dx + 1;
        x += in.resized(n, at.align_corners, b, Y + dy, X + dx, tap * at.channels + c);
      }
    }
    return x;
  }

  GatherCase at;
  Map in, like;
  std::vector<float> bias, border, dot;
  Output out;
};

void check_gather(const Kernel<UpsampleGather>& kernel, const GatherCase& at) {
  SCOPED_TRACE(testing::Message() << at.size.h << 'x' << at.size.w << " to " << at.size.H << 'x'
                                  << at.size.W << ", " << at.channels << " channels, dot "
                                  << at.with_dot << ", align_corners " << at.align_corners);
  Gather gather(at);
  run_all(kernel, gather.work(), {&gather.out});
  expect_gaps_untouched(gather.out, gather.like);
  // Nine taps, and eleven sums of at most eleven; then the sum over channels.
  const double error = 9 * resizing_error(at.size) + 11 * 11 * kEps;
  const double dot_error = at.channels * (error + 11 * (at.channels + 2) * kEps);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t Y = 0; Y < at.size.H; ++Y) {
      for (int64_t X = 0; X < at.size.W; ++X) {
        double sum = 0.25;
        for (int64_t c = 0; c < at.channels; ++c) {
          const double x = gather.convolved(b, Y, X, c), positive = std::max(x, 0.0);
          sum += gather.dot[c] * positive;
          if (at.with_dot) continue;
          ASSERT_NEAR(gather.out[gather.like.place(b, Y, X, c)], at.relu ? positive : x, error)
              << b << ' ' << Y << ' ' << X << ' ' << c;
        }
        if (!at.with_dot) continue;
        const double d = std::max(sum, 0.0), result = gather.out[gather.like.place(b, Y, X, 0)];
        if (at.invert) {
          const double depth = std::max(0.5 * d + 0.125, 1e-8);
          ASSERT_NEAR(result * depth, 1, 2 * (dot_error + 4 * kEps) / depth) << Y << ' ' << X;
        } else {
          ASSERT_NEAR(result, d, dot_error) << b << ' ' << Y << ' ' << X;
        }
      }
    }
  }
}

TEST_P(RuntimeResampling, UpsampleGatherMatchesReferenceForAnySize) {
  for (const Size& size : kSizes) {
    for (const int64_t channels : {1, 3, 24, 32, 50}) {
      for (const bool align_corners : {true, false}) {
        for (const bool with_dot : {true, false}) {
          check_gather(table().upsample_gather,
                       {size, channels, align_corners, true, true, true, with_dot, false});
        }
      }
    }
  }
}

TEST_P(RuntimeResampling, UpsampleGatherMatchesReferenceForAnyOptions) {
  for (int options = 0; options < 32; ++options) {
    const auto is = [&](int bit) { return (options >> bit & 1) != 0; };
    check_gather(table().upsample_gather,
                 {{5, 6, 9, 12}, 20, true, is(0), is(1), is(2), is(3), is(4)});
  }
}

// More strips than one, and channels as in the networks.
TEST_P(RuntimeResampling, UpsampleGatherMatchesReferenceForManyChannels) {
  check_gather(table().upsample_gather,
               {{6, 40, 11, 81}, 128, true, true, true, false, false, false});
  check_gather(table().upsample_gather,
               {{3, 100, 5, 300}, 32, false, true, true, true, true, true});
}

// Weights of zero do not hide a NaN inside of the map, and the border of zeros does not make one.
TEST_P(RuntimeResampling, UpsampleGatherCarriesNaNOfItsOwnTapAndChannel) {
  const int64_t channels = 19;
  Gather gather({{6, 6, 6, 6}, channels, true, true, false, true, false, false});
  // The tap at (dy, dx) = (1, -1) of pixel (2, 3): pixel (1, 4) sees it and no other. With equal
  // sizes all weights are 0 or 1, but a NaN times 0 is one, so that pixels beside it are, too.
  gather.in.data[gather.in.place(0, 2, 3, 6 * channels + 4)] = kNaN;
  run_all(table().upsample_gather, gather.work(), {&gather.out});
  for (int64_t Y = 0; Y < 6; ++Y) {
    for (int64_t X = 0; X < 6; ++X) {
      const bool sees = (Y == 0 || Y == 1) && (X == 3 || X == 4);
      for (int64_t c = 0; c < channels; ++c) {
        ASSERT_EQ(std::isnan(gather.out[gather.like.place(0, Y, X, c)]), sees && c == 4)
            << Y << ' ' << X << ' ' << c;
      }
    }
  }
}

TEST_P(RuntimeResampling, UpsampleGatherLeavesOutTapsBeyondTheBorder) {
  for (const bool with_dot : {false, true}) {
    const int64_t channels = 5;
    Gather gather({{3, 4, 6, 8}, channels, true, true, false, true, with_dot, false});
    // Of the first row only taps of dy = 1 and 0 are seen, by the output's rows -1 and 0 at most.
    for (int64_t x = 0; x < 4; ++x) {
      for (int64_t k = 6 * channels; k < 9 * channels; ++k) {
        for (int64_t b = 0; b < 2; ++b) gather.in.data[gather.in.place(b, 0, x, k)] = kInf;
      }
    }
    run_all(table().upsample_gather, gather.work(), {&gather.out});
    for (int64_t X = 0; X < 8; ++X) {
      // Rows 2 and on see rows 1 and on of the input through dy = 1: 3 * 2 / 5 > 1.
      for (int64_t Y = 2; Y < 6; ++Y) {
        ASSERT_TRUE(std::isfinite(gather.out[gather.like.place(0, Y, X, 0)])) << Y << ' ' << X;
      }
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::test
