// csrc/dpt/runtime/winograd_gradient.inl -- the transforms for the gradient of a 3x3 convolution's
// weights by Winograd: those of winograd.inl, transposed. With the points P x of an input's tile
// and Q g of the gradient of its output, the gradient of the weights' points is the sum of their
// products over all tiles, which are a quarter of the multiplications.
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/simd.inl"
#include "dpt/runtime/winograd.inl"

namespace dpt::runtime::DPT_ISA::winograd_gradient {
namespace {

// Four pixels of a gradient to six points.
inline __attribute__((always_inline)) void transform_grad(const Vec x[4], Vec points[6]) {
  const Vec even_a = x[0] + kA2 * x[2], odd_a = kA * x[1] + kA2 * kA * x[3];
  const Vec even_b = x[0] + kB2 * x[2], odd_b = kB * x[1] + kB2 * kB * x[3];
  points[0] = x[0];
  points[1] = even_a + odd_a;
  points[2] = even_a - odd_a;
  points[3] = even_b + odd_b;
  points[4] = even_b - odd_b;
  points[5] = x[3];
}

// Six points to three taps.
inline __attribute__((always_inline)) void transform_points(const Vec points[6], Vec taps[3]) {
  constexpr float kTo0 = kFactor0, kToA = kFactorA, kToB = kFactorB;
  const Vec sum_a = kToA * (points[1] + points[2]), difference_a = kToA * (points[1] - points[2]);
  const Vec sum_b = kToB * (points[3] + points[4]), difference_b = kToB * (points[3] - points[4]);
  taps[0] = kTo0 * points[0] + sum_a + sum_b;
  taps[1] = kA * difference_a + kB * difference_b;
  taps[2] = kA2 * sum_a + kB2 * sum_b + points[5];
}

// --- maps ---

int64_t units(const WinogradPoints& work) { return work.tiles; }

size_t scratch(const WinogradPoints& work) { return work.channels * sizeof(float); }

void run(const WinogradPoints& work, int64_t begin, int64_t end, void* scratch) {
  float* zeros = static_cast<float*>(scratch);
  for (int64_t i = 0; i < work.channels; ++i) zeros[i] = 0;
  const TileGrid grid{divide_up(work.height, 4), divide_up(work.width, 4)};
  const auto read = [](Vec x) { return x; };
  for (int64_t i = begin; i < end; ++i) {
    const TilePlace tile = place(grid, work.first + i);
    const auto to = [&](int64_t channel) { return work.out + i * work.channels + channel; };
    if (work.of_gradient) {
      transform_tile<4>(work, tile, zeros, read, transform_grad, to, work.point_stride);
    } else {
      transform_tile<6>(work, {tile.image, tile.y - 1, tile.x - 1}, zeros, read, transform_in, to,
                        work.point_stride);
    }
  }
}

// --- weights ---

// A unit is a row of n.
int64_t units(const WinogradTaps& work) { return work.n; }

size_t scratch(const WinogradTaps&) { return 0; }

void run(const WinogradTaps& work, int64_t begin, int64_t end, void*) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t channel = 0; channel < work.channels; channel += kWidth) {
      const int64_t lanes = at_most(work.channels - channel, kWidth);
      const float* from = work.points + row * work.channels + channel;
      Vec rows[3][6];
      for (int j = 0; j < 6; ++j) {
        Vec points[6], taps[3];
        for (int i = 0; i < 6; ++i) {
          const float* point = from + (6 * i + j) * work.n * work.channels;
          points[i] = lanes == kWidth ? load(point) : load_first(point, lanes);
        }
        transform_points(points, taps);
        for (int i = 0; i < 3; ++i) rows[i][j] = taps[i];
      }
      float* to = work.taps + (row * work.channels + channel) * 9;
      for (int i = 0; i < 3; ++i) {
        Vec taps[3];
        transform_points(rows[i], taps);
        for (int j = 0; j < 3; ++j) {
          for (int64_t lane = 0; lane < lanes; ++lane) to[lane * 9 + 3 * i + j] = taps[j][lane];
        }
      }
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA::winograd_gradient
