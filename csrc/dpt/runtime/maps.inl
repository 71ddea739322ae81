// csrc/dpt/runtime/maps.inl -- normalisation and pooling of convolutional encoders.
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/simd.inl"

namespace dpt::runtime::DPT_ISA {
namespace {
namespace maps {

// --- group statistics ---

// Channels that are read together: a line of cache.
constexpr int64_t kLine = 16;
constexpr int64_t kAhead = 16;  // pixels: their lines are too far apart to be foreseen
constexpr int kHalf = kWidth / 2;
using HalfVec = float __attribute__((vector_size(kHalf * sizeof(float))));
using UnalignedHalfVec =
    float __attribute__((vector_size(kHalf * sizeof(float)), aligned(4), may_alias));
using DoubleVec = double __attribute__((vector_size(kHalf * sizeof(double))));

// Sums and sums of squares of `count` channels, at most kLine, over all pixels of an image. Sums of
// float64 of squares that float64 holds exactly: no second pass is needed for the variance.
struct Sums {
  double sum[kLine] = {}, square[kLine] = {};
};

inline Sums sums_of(const GroupStatistics& work, const float* in, int64_t count) {
  Sums result;
  if (count < kLine) {
    for (int64_t y = 0; y < work.height; ++y) {
      for (int64_t x = 0; x < work.width; ++x) {
        const float* pixel = in + y * work.in_strides.row + x * work.in_strides.pixel;
        for (int64_t c = 0; c < count; ++c) {
          const double value = pixel[c];
          result.sum[c] += value;
          result.square[c] += value * value;
        }
      }
    }
    return result;
  }
  constexpr int kParts = kLine / kHalf;
  DoubleVec sum[kParts] = {}, square[kParts] = {};
  for (int64_t y = 0; y < work.height; ++y) {
    const float* pixel = in + y * work.in_strides.row;
    for (int64_t x = 0; x < work.width; ++x, pixel += work.in_strides.pixel) {
      if (x + kAhead < work.width) __builtin_prefetch(pixel + kAhead * work.in_strides.pixel);
#pragma GCC unroll 8
      for (int i = 0; i < kParts; ++i) {
        const HalfVec value = *reinterpret_cast<const UnalignedHalfVec*>(pixel + i * kHalf);
        const auto wide = __builtin_convertvector(value, DoubleVec);
        sum[i] += wide;
        square[i] += wide * wide;
      }
    }
  }
  for (int64_t c = 0; c < kLine; ++c) {
    result.sum[c] = sum[c / kHalf][c % kHalf];
    result.square[c] = square[c / kHalf][c % kHalf];
  }
  return result;
}

// Groups of a unit: enough for a line, that none is read by two units more than need be.
inline int64_t unit_groups(const GroupStatistics& work) {
  const int64_t size = work.channels / work.groups;
  return size < kLine ? kLine / size : 1;
}

inline int64_t image_units(const GroupStatistics& work) {
  return divide_up(work.groups, unit_groups(work));
}

inline void group_unit(const GroupStatistics& work, int64_t unit) {
  const int64_t image = unit / image_units(work), size = work.channels / work.groups;
  const int64_t first = unit % image_units(work) * unit_groups(work);
  int64_t last = first + unit_groups(work);
  if (last > work.groups) last = work.groups;
  const float* in = work.in + image * work.in_strides.image;

  Sums sums;
  int64_t have = 0, begin = 0;  // channels begin, ..., begin + have - 1 are in `sums`
  for (int64_t group = first; group < last; ++group) {
    double sum = 0, square = 0;
    for (int64_t c = group * size; c < (group + 1) * size; ++c) {
      if (c >= begin + have) {
        begin = c;
        have = last * size - c < kLine ? last * size - c : kLine;
        sums = sums_of(work, in + begin, have);
      }
      sum += sums.sum[c - begin];
      square += sums.square[c - begin];
    }
    const double count = double(size) * double(work.height) * double(work.width);
    const double mean = sum / count, variance = square / count - mean * mean;
    const double inverse = 1 / __builtin_sqrt((variance < 0 ? 0 : variance) + double(work.eps));
    for (int64_t c = group * size; c < (group + 1) * size; ++c) {
      const double scale = work.weight[c] * inverse;
      work.scale[image * work.channels + c] = float(scale);
      work.shift[image * work.channels + c] = float(work.bias[c] - mean * scale);
    }
  }
}

// --- affine, add, ReLU ---

constexpr int64_t kUnitFloats = 1 << 14;

inline int64_t unit_pixels(const AffineAddRelu& work) {
  const int64_t pixels = kUnitFloats / work.channels;
  return pixels > 0 ? pixels : 1;
}

inline int64_t image_units(const AffineAddRelu& work) {
  return divide_up(work.pixels, unit_pixels(work));
}

inline void affine_unit(const AffineAddRelu& work, int64_t unit) {
  const int64_t n = work.channels, image = unit / image_units(work);
  const int64_t begin = unit % image_units(work) * unit_pixels(work);
  const auto of_image = [&](const float* p) { return p == nullptr ? nullptr : p + image * n; };
  const float *scale = of_image(work.scale), *shift = of_image(work.shift);
  const float *add_scale = of_image(work.add_scale), *add_shift = of_image(work.add_shift);
  const auto value = [&](auto get, int64_t place, int64_t c) {
    auto x = get(work.in + place + c);
    if (scale != nullptr) x *= get(scale + c);
    if (shift != nullptr) x += get(shift + c);
    if (work.add != nullptr) {
      auto y = get(work.add + place + c);
      if (add_scale != nullptr) y *= get(add_scale + c);
      if (add_shift != nullptr) y += get(add_shift + c);
      x += y;
    }
    return relu(x);
  };
  const int64_t whole = n / kWidth * kWidth;
  for (int64_t pixel = begin; pixel < work.pixels && pixel < begin + unit_pixels(work); ++pixel) {
    const int64_t place = (image * work.pixels + pixel) * n;
    for (int64_t c = 0; c < whole; c += kWidth) store(work.out + place + c, value(load, place, c));
    if (whole == n) continue;
    const auto get = [&](const float* p) { return load_first(p, n - whole); };
    store_first(work.out + place + whole, value(get, place, whole), n - whole);
  }
}

// --- max pool ---

// As in ATen, NaN is greater than everything.
inline Vec max_or_nan(Vec x, Vec most) { return select((x > most) | (x != x), x, most); }

inline void pool_row(const MaxPool& work, int64_t image, int64_t Y) {
  const int64_t n = work.channels, whole = n / kWidth * kWidth;
  const float* in = work.in + image * work.height * work.width * n;
  float* out = work.out + (image * work.out_height + Y) * work.out_width * n;
  const float* scale = work.scale == nullptr ? nullptr : work.scale + image * n;
  const float* shift = work.shift == nullptr ? nullptr : work.shift + image * n;
  const auto inside = [](int64_t at, int64_t size) { return at < 0 ? 0 : at > size ? size : at; };
  const int64_t top = 2 * Y - work.before, y0 = inside(top, work.height);
  const int64_t y1 = inside(top + 3, work.height);
  for (int64_t X = 0; X < work.out_width; ++X, out += n) {
    const int64_t left = 2 * X - work.before, x0 = inside(left, work.width);
    const int64_t x1 = inside(left + 3, work.width);
    const bool zero = work.zeros && (y1 - y0) * (x1 - x0) < 9;
    const auto most = [&](auto get, int64_t c) {
      Vec result = broadcast(zero ? 0 : -__builtin_inff());
      for (int64_t y = y0; y < y1; ++y) {
        for (int64_t x = x0; x < x1; ++x) {
          Vec value = get(in + (y * work.width + x) * n + c);
          if (scale != nullptr) value = relu(value * get(scale + c) + get(shift + c));
          result = max_or_nan(value, result);
        }
      }
      return result;
    };
    for (int64_t c = 0; c < whole; c += kWidth) store(out + c, most(load, c));
    if (whole == n) continue;
    const auto get = [&](const float* p) { return load_first(p, n - whole); };
    store_first(out + whole, most(get, whole), n - whole);
  }
}

}  // namespace maps

// --- the kernels ---

int64_t units(const GroupStatistics& work) { return work.batch * maps::image_units(work); }
size_t scratch(const GroupStatistics&) { return 0; }
void run(const GroupStatistics& work, int64_t begin, int64_t end, void*) {
  for (int64_t unit = begin; unit < end; ++unit) maps::group_unit(work, unit);
}

int64_t units(const AffineAddRelu& work) { return work.batch * maps::image_units(work); }
size_t scratch(const AffineAddRelu&) { return 0; }
void run(const AffineAddRelu& work, int64_t begin, int64_t end, void*) {
  for (int64_t unit = begin; unit < end; ++unit) maps::affine_unit(work, unit);
}

int64_t units(const MaxPool& work) { return work.batch * work.out_height; }
size_t scratch(const MaxPool&) { return 0; }
void run(const MaxPool& work, int64_t begin, int64_t end, void*) {
  for (int64_t unit = begin; unit < end; ++unit) {
    maps::pool_row(work, unit / work.out_height, unit % work.out_height);
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
