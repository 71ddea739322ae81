// The scalar code of CUDA kernels of frozen models, on the host: what many lanes make of a row with
// V values at once is what one lane makes of it, value by value. Their numbers:
// tests/python/test_{normalize_pixels,quantize_rows,group_norm,readout,add_layer_norm,resize}.py.
#include <c10/util/BFloat16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <random>
#include <vector>

#include "dpt/ops/add_layer_norm_math.h"
#include "dpt/ops/group_norm_math.h"
#include "dpt/ops/normalize_pixels_math.h"
#include "dpt/ops/quantize_rows_math.h"
#include "dpt/ops/readout_math.h"
#include "dpt/ops/resize_math.h"

namespace {

template <class T>
std::vector<T> random_values(int64_t count) {
  std::mt19937 engine(0);
  std::normal_distribution<float> draw;
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(draw(engine));
  return values;
}

TEST(KernelMath, LanesShareARowOfPixels) {
  const int64_t H = 3, W = 70;
  const dpt::pixels::Map map{
      2, H, W, {H * W * 4, 1, W * 4, 4}, {H * W * 3, H * W, W, 1}};  // of four values a pixel
  const dpt::pixels::Normalization by{{0.5F, 1, 2}, {-1, 0, 1}};
  std::vector<uint8_t> in(2 * H * W * 4);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(37 * i);
  std::vector<float> alone(2 * H * W * 3, -7), shared = alone;
  for (int64_t row = 0; row < 2 * H; ++row) {
    dpt::pixels::normalize_row(map, by, in.data(), alone.data(), row, 0, 1);
    for (int lane = 0; lane < 32; ++lane) {
      dpt::pixels::normalize_row(map, by, in.data(), shared.data(), row, lane, 32);
    }
  }
  EXPECT_EQ(alone, shared);
  EXPECT_EQ(alone[H * W + 1], static_cast<float>(in[5]));  // the second channel of the second pixel
}

TEST(KernelMath, LanesShareARowOfPatches) {
  const int64_t H = 4, W = 68, P = 2;
  const dpt::pixels::Map map{
      1, H, W, {0, 1, W * 3, 3}, {0, P * P, P, 1}, P, W / P * 3 * P * P, 3 * P * P};
  const dpt::pixels::Normalization by{{1, 1, 1}, {0, 0, 0}};
  std::vector<uint8_t> in(H * W * 3);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(37 * i);
  std::vector<float> shared(H * W * 3, -7);
  for (int64_t row = 0; row < H; ++row) {
    for (int lane = 0; lane < 32; ++lane) {
      dpt::pixels::normalize_row(map, by, in.data(), shared.data(), row, lane, 32);
    }
  }
  for (int64_t y = 0; y < H; ++y) {
    for (int64_t x = 0; x < W; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        const int64_t patch = y / P * (W / P) + x / P, inside = (c * P + y % P) * P + x % P;
        EXPECT_EQ(shared[patch * 3 * P * P + inside], in[(y * W + x) * 3 + c]);
      }
    }
  }
}

TEST(KernelMath, LanesShareARowThatIsQuantized) {
  for (const int64_t D : {8, 256, 768, 1000}) {
    auto x = random_values<c10::BFloat16>(D);
    x[D - 1] = 9;
    alignas(16) c10::BFloat16 aligned[1000];
    std::copy(x.begin(), x.end(), aligned);
    std::vector<uint8_t> alone(D);
    alignas(16) uint8_t shared[1000];
    const float scale = dpt::float8::quantize_row<1>(x.data(), alone.data(), D, 0, 1,
                                                     [](float size) { return size; });
    EXPECT_EQ(scale, 9 / 448.0F);
    std::vector<float> sizes(32);
    for (int lane = 0; lane < 32; ++lane) {
      dpt::float8::quantize_row<8>(aligned, shared, D, lane, 32,
                                   [&](float size) { return sizes[lane] = size; });
    }
    const float largest = *std::max_element(sizes.begin(), sizes.end());
    for (int lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(dpt::float8::quantize_row<8>(aligned, shared, D, lane, 32,
                                             [&](float) { return largest; }),
                scale);
    }
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), shared)) << D;
  }
}

TEST(KernelMath, LanesAndPartsShareTheMomentsOfAGroup) {
  const dpt::norm::Groups n{1, 77, 12, 4};
  const auto x = random_values<float>(n.pixels * n.C);
  for (int64_t group = 0; group < n.groups; ++group) {
    const auto alone = dpt::norm::moments<double>(n, x.data(), group, 0, n.pixels, 0, 1);
    dpt::norm::Moments<double> shared{0, 0};
    for (int64_t part = 0; part < 3; ++part) {
      for (int lane = 0; lane < 32; ++lane) {
        shared.add(dpt::norm::moments<double>(n, x.data(), group, n.pixels * part / 3,
                                              n.pixels * (part + 1) / 3, lane, 32));
      }
    }
    EXPECT_NEAR(alone.sum, shared.sum, 1e-10);
    EXPECT_NEAR(alone.squares, shared.squares, 1e-10);
  }
}

TEST(KernelMath, LanesShareARowThatIsAddedAndNormalized) {
  const float eps = 1e-6F;
  for (const int64_t D : {8, 256, 768, 1000}) {
    const auto drawn = random_values<c10::BFloat16>(2 * D);
    std::vector<c10::BFloat16> x(drawn.begin(), drawn.begin() + D),
        y(drawn.begin() + D, drawn.end());
    alignas(16) c10::BFloat16 given[1000], more[1000], shared_x[1000], shared[1000];
    std::copy(x.begin(), x.end(), given);
    std::copy(y.begin(), y.end(), more);
    std::vector<c10::BFloat16> alone(D);
    float total = 0, squares = 0;  // as one lane has them
    int asked = 0;
    dpt::norm::add_layer_norm_row<1>(
        x.data(), y.data(), alone.data(), D, eps, 0, 1,
        [&](float sum) { return (asked++ == 0 ? total : squares) = sum; });
    // A lane asks twice, for the sum and for the squares. Each run gives all lanes the row anew.
    std::vector<float> totals(32), of_squares(32);
    const auto run = [&](float known_total, float known_squares) {
      std::copy_n(given, D, shared_x);
      for (int lane = 0; lane < 32; ++lane) {
        int call = 0;
        dpt::norm::add_layer_norm_row<8>(shared_x, more, shared, D, eps, lane, 32, [&](float sum) {
          (call == 0 ? totals : of_squares)[lane] = sum;
          return call++ == 0 ? known_total : known_squares;
        });
      }
    };
    run(0, 0);
    const float sum = std::accumulate(totals.begin(), totals.end(), 0.0F);
    EXPECT_NEAR(sum, total, 1e-4);  // float32 sums in another order
    run(total, 0);
    EXPECT_NEAR(std::accumulate(of_squares.begin(), of_squares.end(), 0.0F), squares,
                1e-5 * squares);
    run(total, squares);
    EXPECT_TRUE(std::equal(x.begin(), x.end(), shared_x)) << D;
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), shared)) << D;
    const float first = (x[0] - total / D) / std::sqrt(squares / D + eps);
    EXPECT_NEAR(alone[0], first, 0x1p-8 * std::abs(first));
  }
}

TEST(KernelMath, PacksOfChannelsHaveTheirGradients) {
  const dpt::resize::Size n{2, 16, 5, 7, 12, 9};
  const auto drawn = random_values<c10::BFloat16>(n.B * n.C * n.H * n.W);
  alignas(16) static c10::BFloat16 grad[2 * 16 * 12 * 9], together[2 * 16 * 5 * 7];
  std::copy(drawn.begin(), drawn.end(), grad);
  for (const bool align_corners : {false, true}) {
    const auto rows = dpt::resize::axis<float>(n.h, n.H, align_corners);
    const auto columns = dpt::resize::axis<float>(n.w, n.W, align_corners);
    std::vector<c10::BFloat16> alone(std::size(together));
    for (size_t i = 0; i < alone.size(); ++i) {
      dpt::resize::backward_item<1, true>(n, rows, columns, grad, alone.data(), i);
    }
    for (size_t i = 0; i < alone.size() / 8; ++i) {
      dpt::resize::backward_item<8, true>(n, rows, columns, grad, together, i);
    }
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together));
  }
}

TEST(KernelMath, LanesShareAPatchThatTheTokenIsReadInto) {
  for (const int64_t D : {8, 256, 768, 1000}) {
    const dpt::patches::Shape n{2, 2, 3, D};
    const auto tokens = random_values<c10::BFloat16>(n.B * (n.P + n.N) * D);
    const auto token = random_values<c10::BFloat16>(n.B * D);
    alignas(16) c10::BFloat16 aligned_tokens[10 * 1000], aligned_token[2 * 1000];
    std::copy(tokens.begin(), tokens.end(), aligned_tokens);
    std::copy(token.begin(), token.end(), aligned_token);
    std::vector<c10::BFloat16> alone(n.B * n.N * D);
    alignas(16) c10::BFloat16 shared[6 * 1000];
    for (int64_t row = 0; row < n.B * n.N; ++row) {
      dpt::patches::readout_row<1>(n, tokens.data(), token.data(), alone.data(), row, 0, 1);
      for (int lane = 0; lane < 32; ++lane) {
        dpt::patches::readout_row<8>(n, aligned_tokens, aligned_token, shared, row, lane, 32);
      }
    }
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), shared)) << D;
    // The first value of the last image's first patch.
    const double sum = static_cast<float>(tokens[7 * D]) + static_cast<float>(token[D]);
    EXPECT_NEAR(alone[3 * D], sum * std::erfc(-sum / std::sqrt(2.0)) / 2, 0x1p-8 * std::abs(sum));
  }
}

}  // namespace
