// csrc/dpt/runtime/resampling.inl -- bilinear resizing, fused with what stands around it in DPT.
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/simd.inl"

namespace dpt::runtime::DPT_ISA {
namespace {
namespace resampling {

// An output position lies between two input positions; `take` is the weight of `hi`.
struct Source {
  int64_t lo, hi;
  float keep, take;
};

// As ATen's upsample_bilinear2d finds it in float32.
inline Source source(int64_t index, int64_t in, int64_t out, bool align_corners) {
  float position = 0;
  if (align_corners) {
    if (out > 1) position = float(in - 1) / float(out - 1) * float(index);
  } else {
    position = (float(index) + 0.5F) * (float(in) / float(out)) - 0.5F;
    if (position < 0) position = 0;
  }
  Source result;
  result.lo = int64_t(position);
  if (result.lo > in - 1) result.lo = in - 1;  // rounding may reach past the last input
  result.hi = result.lo < in - 1 ? result.lo + 1 : result.lo;
  result.take = position - float(result.lo);
  if (result.take > 1) result.take = 1;
  result.keep = 1 - result.take;
  return result;
}

// --- upsample, add ---

// One row of the output. Bound by the bytes of `out` and `add`: the four corners come from cache.
inline void upsample_row(const UpsampleAdd& work, int64_t image, int64_t Y, const Source* columns) {
  const Source row = source(Y, work.height, work.out_height, work.align_corners);
  const float* in = work.in + image * work.in_strides.image;
  const float* top = in + row.lo * work.in_strides.row;
  const float* bottom = in + row.hi * work.in_strides.row;
  float* out = work.out + image * work.out_strides.image + Y * work.out_strides.row;
  const float* add = nullptr;
  if (work.add != nullptr)
    add = work.add + image * work.add_strides.image + Y * work.add_strides.row;
  const int64_t whole = work.channels / kWidth * kWidth;
  for (int64_t X = 0; X < work.out_width; ++X) {
    const Source column = columns[X];
    const int64_t lo = column.lo * work.in_strides.pixel, hi = column.hi * work.in_strides.pixel;
    const float *a = top + lo, *b = top + hi, *c = bottom + lo, *d = bottom + hi;
    const auto mix = [&](Vec a, Vec b, Vec c, Vec d) {
      return (a * row.keep + c * row.take) * column.keep +
             (b * row.keep + d * row.take) * column.take;
    };
    int64_t k = 0;
    if (add == nullptr) {
      for (; k < whole; k += kWidth) {
        store(out + k, mix(load(a + k), load(b + k), load(c + k), load(d + k)));
      }
    } else {
      for (; k < whole; k += kWidth) {
        store(out + k, mix(load(a + k), load(b + k), load(c + k), load(d + k)) + load(add + k));
      }
    }
    if (const int64_t n = work.channels - k; n > 0) {
      Vec x = mix(load_first(a + k, n), load_first(b + k, n), load_first(c + k, n),
                  load_first(d + k, n));
      if (add != nullptr) x += load_first(add + k, n);
      store_first(out + k, x, n);
    }
    out += work.out_strides.pixel;
    if (add != nullptr) add += work.add_strides.pixel;
  }
}

// --- upsample, gather ---

// A unit is a block of output rows by a strip of output columns. First the taps are mixed
// vertically, column by column of the input, for all rows of the block, so that every pixel of the
// input is read whole and once; then each output pixel takes its three columns out of the mixed
// ones, which are still in cache.
constexpr int64_t kRows = 8;

struct Strip {
  int64_t begin, end;   // columns of the output
  int64_t first, last;  // columns of the input that they and their neighbours lie between
};

struct Plan {
  explicit Plan(const UpsampleGather& work)
      : row_blocks((work.out_height + kRows - 1) / kRows),
        strips((work.out_width * work.channels + 4095) / 4096),
        channels(round_up(work.channels, kWidth)) {
    for (int64_t i = 0; i < strips; ++i) {
      const Strip at = strip(work, i);
      if (at.end - at.begin > max_out) max_out = at.end - at.begin;
      if (at.last - at.first + 1 > max_in) max_in = at.last - at.first + 1;
    }
  }

  Strip strip(const UpsampleGather& work, int64_t i) const {
    const int64_t W = work.out_width, begin = W * i / strips, end = W * (i + 1) / strips;
    const auto from = [&](int64_t X) { return source(X, work.width, W, work.align_corners); };
    return {begin, end, from(begin > 0 ? begin - 1 : 0).lo, from(end < W ? end : W - 1).hi};
  }

  int64_t row_blocks, strips;
  int64_t channels;                 // with padding
  int64_t max_out = 0, max_in = 0;  // columns of a strip
};

// Where an output column finds its two columns in a mixed row.
struct Column {
  int64_t lo, hi;
  float keep, take;
};

struct Buffers {
  Buffers(const UpsampleGather& work, const Plan& plan, void* scratch) {
    char* base = static_cast<char*>(scratch);
    const auto take = [&](size_t size) {
      char* begin = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 63) / 64 * 64;
      return begin;
    };
    const size_t column = 3 * work.channels * sizeof(float), vector = kWidth * sizeof(float);
    mixed = reinterpret_cast<float*>(take(kRows * (plan.max_in + 1) * column + vector));
    zeros = reinterpret_cast<float*>(take(column));
    bias = reinterpret_cast<float*>(take(16 * plan.channels * sizeof(float)));
    dot = reinterpret_cast<float*>(take(plan.channels * sizeof(float)));
    columns = reinterpret_cast<Column*>(take((plan.max_out + 2) * sizeof(Column)));
  }

  // [rows, 1 + columns of the input, 3 (dx), channels]: taps, mixed vertically. The first column is
  // zeros, for taps that are outside of the output.
  float* mixed;
  float* zeros;  // one column
  float* bias;   // [16, padded channels]: bias and border
  float* dot;    // [padded channels]
  Column* columns;
  size_t bytes = 0;
};

// A row of taps of the kernel, between two rows of the input.
struct TapRow {
  const float *lo, *hi;
  int64_t pixel;
  float keep, take;
};

// to [rows, 1 + columns, run] from columns of 3 * run taps.
[[gnu::noinline]] void mix_columns(const TapRow (*rows)[3], int64_t num_rows, int64_t columns,
                                   int64_t run, float* to) {
  const int64_t whole = run / kWidth * kWidth;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t k = 0; k < run; ++k) to[row * (columns + 1) * run + k] = 0;
  }
  for (int64_t x = 0; x < columns; ++x) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const auto& [a, b, c] = rows[row];
      const float *a0 = a.lo + x * a.pixel, *a1 = a.hi + x * a.pixel;
      const float *b0 = b.lo + x * b.pixel, *b1 = b.hi + x * b.pixel;
      const float *c0 = c.lo + x * c.pixel, *c1 = c.hi + x * c.pixel;
      // Pieces of pixels of several rows are no pattern that the processor foresees.
      if (x + 1 < columns) {
        for (int64_t k = 0; k < run; k += 16) {
          __builtin_prefetch(a1 + a.pixel + k);
          __builtin_prefetch(b1 + b.pixel + k);
          __builtin_prefetch(c1 + c.pixel + k);
        }
      }
      const float keep_a = a.keep, keep_b = b.keep, keep_c = c.keep;
      const float take_a = a.take, take_b = b.take, take_c = c.take;
      const auto mix = [&](auto get, int64_t k) {
        const auto lo = get(a0 + k) * keep_a + get(b0 + k) * keep_b + get(c0 + k) * keep_c;
        const auto hi = get(a1 + k) * take_a + get(b1 + k) * take_b + get(c1 + k) * take_c;
        return lo + hi;
      };
      float* out = to + (row * (columns + 1) + 1 + x) * run;
      int64_t k = 0;
      for (; k < whole; k += kWidth) store(out + k, mix(load, k));
      for (; k < run; ++k) out[k] = mix([](const float* from) { return *from; }, k);
    }
  }
}

// The convolution at a pixel for channels k, k + 1, ...; `at` are the columns of its three taps.
inline Vec gather(const float* mixed, const Column* at, int64_t channels, int64_t k, Vec sum) {
#pragma GCC unroll 3
  for (int dx = 0; dx < 3; ++dx) {
    const float* tap = mixed + dx * channels + k;
    sum += load(tap + at[dx].lo) * at[dx].keep;
    sum += load(tap + at[dx].hi) * at[dx].take;
  }
  return sum;
}

inline float sum_lanes(Vec v) {
  using Four = float __attribute__((vector_size(16), may_alias));
  const Four* parts = reinterpret_cast<const Four*>(&v);
  Four sum = parts[0];
  for (int i = 1; i < kWidth / 4; ++i) sum += parts[i];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

inline void gather_pixel(const float* mixed, const Column* at, int64_t channels, const float* bias,
                         bool with_relu, float* out) {
  const Column taps[3] = {at[0], at[1], at[2]};
  for (int64_t k = 0; k < channels; k += kWidth) {
    const Vec sum = gather(mixed, taps, channels, k, load(bias + k));
    const Vec x = with_relu ? relu(sum) : sum;
    if (k + kWidth <= channels) {
      store(out + k, x);
    } else {
      store_first(out + k, x, channels - k);
    }
  }
}

inline float gather_dot(const float* mixed, const Column* at, int64_t channels, const float* bias,
                        const float* dot) {
  const int64_t whole = channels / kWidth * kWidth;
  Vec total = {};
  for (int64_t k = 0; k < whole; k += kWidth) {
    total += relu(gather(mixed, at, channels, k, load(bias + k))) * load(dot + k);
  }
  if (whole < channels) {
    // Lanes behind the last channel hold numbers of the next tap, which may be NaN.
    float lanes[kWidth];
    store(lanes, relu(gather(mixed, at, channels, whole, load(bias + whole))));
    total += load_first(lanes, channels - whole) * load(dot + whole);
  }
  return sum_lanes(total);
}

// What becomes of the dot product.
inline float finish(const UpsampleGather& work, float dot) {
  const float d = dot + work.dot_bias, positive = d < 0 ? 0 : d;
  if (!work.invert) return positive;
  const float depth = work.invert_scale * positive + work.invert_shift;
  return 1 / (depth < 1e-8F ? 1e-8F : depth);
}

// The part of an output row that lies in the strip; `bias` is [4, padded], by the column.
[[gnu::noinline]] void gather_row(const UpsampleGather& work, const Strip& strip,
                                  const float* mixed, const Column* columns, const float* bias,
                                  int64_t padded, const float* dot, float* out) {
  const int64_t n = work.channels, last = work.out_width - 1, step = work.out_strides.pixel;
  for (int64_t X = strip.begin; X < strip.end; ++X, ++columns) {
    const float* pixel_bias = bias + ((X == 0 ? 1 : 0) + (X == last ? 2 : 0)) * padded;
    if (work.dot == nullptr) {
      gather_pixel(mixed, columns, n, pixel_bias, work.relu, out + X * step);
    } else {
      out[X * step] = finish(work, gather_dot(mixed, columns, n, pixel_bias, dot));
    }
  }
}

inline void prepare(const UpsampleGather& work, const Plan& plan, const Buffers& to) {
  const int64_t n = work.channels;
  for (int64_t k = 0; k < 3 * n; ++k) to.zeros[k] = 0;
  for (int64_t k = 0; k < plan.channels; ++k) {
    to.dot[k] = work.dot != nullptr && k < n ? work.dot[k] : 0;
    for (int64_t place = 0; place < 16; ++place) {
      float& bias = to.bias[place * plan.channels + k];
      bias = work.bias != nullptr && k < n ? work.bias[k] : 0;
      if (work.border != nullptr && k < n) bias += work.border[place * n + k];
    }
  }
}

inline void gather_unit(const UpsampleGather& work, const Plan& plan, int64_t unit,
                        const Buffers& at) {
  const int64_t image = unit / plan.row_blocks / plan.strips;
  const int64_t top = unit % plan.row_blocks * kRows;
  const Strip strip = plan.strip(work, unit / plan.row_blocks % plan.strips);
  const int64_t n = work.channels, H = work.out_height, W = work.out_width;
  const int64_t num_rows = H - top < kRows ? H - top : kRows;
  const int64_t num_columns = strip.last - strip.first + 1;

  const float* in = work.in + image * work.in_strides.image + strip.first * work.in_strides.pixel;
  TapRow rows[kRows][3];
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t Y = top + row + i - 1;
      if (Y < 0 || Y >= H) {
        rows[row][i] = {at.zeros, at.zeros, 0, 0, 0};
      } else {
        const Source from = source(Y, work.height, H, work.align_corners);
        rows[row][i] = {in + from.lo * work.in_strides.row + i * 3 * n,
                        in + from.hi * work.in_strides.row + i * 3 * n, work.in_strides.pixel,
                        from.keep, from.take};
      }
    }
  }
  mix_columns(rows, num_rows, num_columns, 3 * n, at.mixed);

  for (int64_t X = strip.begin - 1; X <= strip.end; ++X) {
    Column& to = at.columns[X - strip.begin + 1];
    to = {0, 0, 0, 0};
    if (X < 0 || X >= W) continue;
    const Source from = source(X, work.width, W, work.align_corners);
    to.lo = (1 + from.lo - strip.first) * 3 * n;
    to.hi = (1 + from.hi - strip.first) * 3 * n;
    to.keep = from.keep;
    to.take = from.take;
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t Y = top + row, place = (Y == 0 ? 1 : 0) + (Y == H - 1 ? 2 : 0);
    gather_row(work, strip, at.mixed + row * (num_columns + 1) * 3 * n, at.columns,
               at.bias + 4 * place * plan.channels, plan.channels, at.dot,
               work.out + image * work.out_strides.image + Y * work.out_strides.row);
  }
}

}  // namespace resampling

// --- the kernels ---

int64_t units(const UpsampleAdd& work) { return work.batch * work.out_height; }

size_t scratch(const UpsampleAdd& work) { return work.out_width * sizeof(resampling::Source); }

void run(const UpsampleAdd& work, int64_t begin, int64_t end, void* scratch) {
  auto* columns = static_cast<resampling::Source*>(scratch);
  for (int64_t X = 0; X < work.out_width; ++X) {
    columns[X] = resampling::source(X, work.width, work.out_width, work.align_corners);
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    resampling::upsample_row(work, unit / work.out_height, unit % work.out_height, columns);
  }
}

int64_t units(const UpsampleGather& work) {
  const resampling::Plan plan(work);
  return work.batch * plan.strips * plan.row_blocks;
}

size_t scratch(const UpsampleGather& work) {
  return resampling::Buffers(work, resampling::Plan(work), nullptr).bytes;
}

void run(const UpsampleGather& work, int64_t begin, int64_t end, void* scratch) {
  const resampling::Plan plan(work);
  const resampling::Buffers at(work, plan, scratch);
  resampling::prepare(work, plan, at);
  for (int64_t unit = begin; unit < end; ++unit) resampling::gather_unit(work, plan, unit, at);
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
