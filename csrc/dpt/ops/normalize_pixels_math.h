// csrc/dpt/ops/normalize_pixels_math.h -- what the CPU and CUDA kernels of normalize_pixels
// compute, per row.
//
// Plain C++ without torch: nvcc compiles it for the device, g++ the same function for the host.
#pragma once

#include <cstdint>

#include "dpt/ops/host_device.h"

namespace dpt::pixels {

// (pixel / 255 - mean) / std = scale * pixel + shift, for each channel.
struct Normalization {
  float scale[3], shift[3];
};

// Steps of a map [B, 3, H, W] in memory, in values.
struct Strides {
  int64_t image, channel, row, column;
};

// `out` holds inside of squares of `patch` pixels, which are `patch_row` and `patch_column` apart.
struct Map {
  int64_t B, H, W;
  Strides in, out;
  int64_t patch = INT64_MAX, patch_row = 0, patch_column = 0;
};

// Row `row` of all B * H; `lanes` callers share it, neighbours take neighbouring pixels.
template <class T>
DPT_HOST_DEVICE void normalize_row(const Map& map, const Normalization& by, const uint8_t* in,
                                   T* out, int64_t row, int64_t lane, int64_t lanes) {
  const int64_t image = row / map.H, y = row - image * map.H;
  in += image * map.in.image + y * map.in.row;
  out += image * map.out.image + y / map.patch * map.patch_row + y % map.patch * map.out.row;
  for (int64_t x = lane; x < map.W; x += lanes) {
    T* to = out + x / map.patch * map.patch_column + x % map.patch * map.out.column;
    for (int c = 0; c < 3; ++c) {
      const auto pixel = static_cast<float>(in[x * map.in.column + c * map.in.channel]);
      to[c * map.out.channel] = static_cast<T>(by.scale[c] * pixel + by.shift[c]);
    }
  }
}

}  // namespace dpt::pixels
