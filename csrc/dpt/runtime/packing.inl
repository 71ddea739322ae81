// csrc/dpt/runtime/packing.inl -- what the inner kernel reads: weights packed once, and rows of the
// left factor, gathered from the input for one output pixel each.
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/product.inl"

namespace dpt::runtime::DPT_ISA {
namespace {

inline int64_t at_most(int64_t a, int64_t limit) { return a < limit ? a : limit; }

// --- weights ---

// How k is cut: `count` parts of `depth` words of weights, the last one may have fewer.
struct Parts {
  int64_t words, depth, count;
};

constexpr int elements_of(Precision precision) {
  return precision == Precision::kFloat32 ? 1 : precision == Precision::kBFloat16 ? 2 : 4;
}

Parts cut(Precision precision, int64_t k) {
  const int64_t words = divide_up(k, elements_of(precision));
  // Half for those of which the left factor may have two words for each of the weights.
  const int64_t most = precision == Precision::kFloat32 ? kDepth : kDepth / 2;
  const int64_t depth = at_most(round_up(divide_up(words, divide_up(words, most)), 16), most);
  return {words, depth, divide_up(words, depth)};
}

// For each part the panels of kColumns columns, each [depth, kColumns] words: in the order in which
// they are read. The last panel has kWidth columns where that is enough; zeros behind the last
// column. For int8 the scale and the sum of the elements of each column follow.
size_t packed_bytes(Precision precision, int64_t k, int64_t n) {
  const int64_t words = divide_up(k, elements_of(precision));
  return static_cast<size_t>(round_up(n, kWidth) *
                             (words + (precision == Precision::kInt8 ? 2 : 0))) *
         sizeof(Word);
}

// Half to even; |x| < 2^22.
inline float round_to_integer(float x) { return (x + 12582912.0f) - 12582912.0f; }

// As of a vector, in the lower half.
inline uint32_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  if (x != x) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// The word of `count` elements, for int8 divided by `scale`.
template <Precision precision>
Word pack_word(const float* elements, int64_t count, [[maybe_unused]] float scale) {
  if constexpr (precision == Precision::kFloat32) {
    return *reinterpret_cast<const Word*>(elements);
  }
  uint32_t word = 0;
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (precision == Precision::kBFloat16) {
      word |= to_bfloat16(elements[i]) << (16 * i);
    } else if (scale > 0) {
      const auto q = static_cast<int32_t>(round_to_integer(elements[i] / scale));
      word |= (static_cast<uint32_t>(q) & 0xff) << (8 * i);
    }
  }
  return static_cast<Word>(word);
}

// Of each row its largest absolute value is 127 steps.
inline float step_of(const float* row, int64_t k) {
  float most = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float size = __builtin_fabsf(row[i]);
    if (size > most) most = size;
  }
  return most / 127;
}

template <Precision precision>
void pack_panels(const float* weights, int64_t k, int64_t n, Word* words) {
  constexpr int64_t kElements = elements_of(precision);
  const Parts parts = cut(precision, k);
  const int64_t padded = round_up(n, kWidth);
  for (int64_t panel = 0; panel < padded; panel += kColumns) {
    const int64_t columns = at_most(padded - panel, kColumns);
    const int64_t inside = at_most(n - panel, columns);
    const float* rows = weights + panel * k;
    float scales[kColumns] = {};
    Word sums[kColumns] = {};
    if constexpr (precision == Precision::kInt8) {
      for (int64_t c = 0; c < inside; ++c) scales[c] = step_of(rows + c * k, k);
    }
    for (int64_t begin = 0; begin < parts.words; begin += parts.depth) {
      const int64_t depth = at_most(parts.depth, parts.words - begin);
      Word* to = words + begin * padded + panel * depth;
      for (int64_t i = begin; i < begin + depth; ++i, to += columns) {
        const int64_t at = i * kElements, count = at_most(k - at, kElements);
        for (int64_t c = 0; c < inside; ++c) {
          to[c] = pack_word<precision>(rows + c * k + at, count, scales[c]);
          if constexpr (precision == Precision::kInt8) {
            for (int e = 0; e < 4; ++e) sums[c] += static_cast<int8_t>(to[c] >> (8 * e));
          }
        }
        for (int64_t c = inside; c < columns; ++c) to[c] = 0;
      }
    }
    if constexpr (precision == Precision::kInt8) {
      Word* behind = words + padded * parts.words + panel;
      for (int64_t c = 0; c < columns; ++c) {
        reinterpret_cast<FloatWord*>(behind)[c] = scales[c];
        behind[padded + c] = sums[c];
      }
    }
  }
}

void pack(Precision precision, const float* weights, int64_t k, int64_t n, void* packed) {
  Word* words = static_cast<Word*>(packed);
  switch (precision) {
    case Precision::kBFloat16:
      return pack_panels<Precision::kBFloat16>(weights, k, n, words);
    case Precision::kInt8:
      return pack_panels<Precision::kInt8>(weights, k, n, words);
    default:
      return pack_panels<Precision::kFloat32>(weights, k, n, words);
  }
}

// --- the left factor ---

// One row: the input as the output pixel `image, y, x` sees it.
struct Row {
  int64_t image, y, x;  // of tap (0, 0)
  const float* pixel;   // where that is, or would be
  bool inside;          // all taps are inside of the input
  float mean, rstd;     // kLayerNorm
  // kInt8: x is (q - zero) * scale, q from 0 to 255
  float scale, inverse;  // inverse: 1 / scale, or 0
  int32_t zero;
};

// Floats next to each other that the taps of a row inside of the input read one after another.
struct Segment {
  int64_t offset, count;
};

// Merges taps that are neighbours in memory: [num_taps] or fewer segments.
int64_t find_segments(const Convolution& c, Segment* segments) {
  const bool by_channel = c.load == Load::kAffine || c.load == Load::kAffineRelu;
  int64_t count = 0;
  for (int64_t t = 0; t < c.num_taps; ++t) {
    const int64_t offset = c.taps[t].dy * c.in_strides.row + c.taps[t].dx * c.in_strides.pixel;
    if (count > 0 && !by_channel &&
        segments[count - 1].offset + segments[count - 1].count == offset) {
      segments[count - 1].count += c.run;
    } else {
      segments[count++] = {offset, c.run};
    }
  }
  return count;
}

// A segment of channels from `channel` on, which counts for the affine kinds only.
template <Load kind>
inline void copy(const Convolution& c, const Row& row, const float* from, int64_t channel,
                 int64_t count, float* to) {
  const auto value = [&](int64_t i, auto read) {
    const Vec x = read(from + i);
    if constexpr (kind == Load::kRelu) {
      return relu(x);
    } else if constexpr (kind == Load::kLayerNorm) {
      return (x - row.mean) * row.rstd;
    } else if constexpr (kind == Load::kAffine || kind == Load::kAffineRelu) {
      const int64_t at = row.image * c.run + channel + i;
      const Vec y = x * read(c.scale + at) + read(c.shift + at);
      return kind == Load::kAffineRelu ? relu(y) : y;
    } else {
      return x;
    }
  };
  const auto all = [](const float* p) { return load(p); };
  int64_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store(to + i + v * kWidth, value(i + v * kWidth, all));
  }
  for (; i + kWidth <= count; i += kWidth) store(to + i, value(i, all));
  if (i == count) return;
  if (count >= kWidth) {
    store(to + count - kWidth, value(count - kWidth, all));
  } else {
    const auto some = [count](const float* p) { return load_first(p, count); };
    store_first(to, value(0, some), count);
  }
}

// Elements [begin, begin + count) of a row.
template <Load kind>
void gather(const Convolution& c, const Row& row, const Segment* segments, int64_t begin,
            int64_t count, float* to) {
  const int64_t end = begin + count;
  if (row.inside) {
    for (int64_t at = 0; at < end; at += segments->count, ++segments) {
      const int64_t first = begin > at ? begin - at : 0;
      const int64_t last = at_most(segments->count, end - at);
      if (first >= last) continue;
      copy<kind>(c, row, row.pixel + segments->offset + first, first, last - first, to);
      to += last - first;
    }
    return;
  }
  int64_t channel = begin % c.run;
  for (const Tap* tap = c.taps + begin / c.run; count > 0; ++tap) {
    const int64_t here = at_most(c.run - channel, count);
    const int64_t y = row.y + tap->dy;
    const int64_t x = row.x + tap->dx;
    if (y >= 0 && y < c.height && x >= 0 && x < c.width) {
      const int64_t offset = tap->dy * c.in_strides.row + tap->dx * c.in_strides.pixel + channel;
      copy<kind>(c, row, row.pixel + offset, channel, here, to);
    } else {
      for (int64_t i = 0; i < here; ++i) to[i] = 0;
    }
    to += here;
    count -= here;
    channel = 0;
  }
}

using Gather = void (*)(const Convolution&, const Row&, const Segment*, int64_t begin,
                        int64_t count, float* to);

Gather choose_gather(Load load) {
  switch (load) {
    case Load::kRelu:
      return gather<Load::kRelu>;
    case Load::kLayerNorm:
      return gather<Load::kLayerNorm>;
    case Load::kAffine:
      return gather<Load::kAffine>;
    case Load::kAffineRelu:
      return gather<Load::kAffineRelu>;
    default:
      return gather<Load::kPlain>;
  }
}

// Mean and 1 / sqrt(variance + eps) of `count` channels. The second pass reads from the cache.
void layer_norm_statistics(const float* x, int64_t count, float eps, Row& row) {
  const auto mean_of = [&](auto value) {
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
      for (int v = 0; v < 4; ++v) sums[v] += value(load(x + i + v * kWidth));
    }
    float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < count; ++i) total += value(x[i]);
    return total / static_cast<float>(count);
  };
  const float mean = mean_of([](auto value) { return value; });
  const float variance = mean_of([mean](auto value) { return (value - mean) * (value - mean); });
  row.mean = mean;
  row.rstd = 1 / __builtin_sqrtf(variance + eps);
}

inline void next_pixel(const Convolution& c, int64_t& image, int64_t& y, int64_t& x) {
  if (++x < c.out_width) return;
  x = 0;
  if (++y < c.out_height) return;
  y = 0;
  ++image;
}

// The rows of output pixels [first, first + count).
void find_rows(const Convolution& c, int64_t first, int64_t count, Row* rows) {
  int64_t top = 0, bottom = 0, left = 0, right = 0;  // how far the taps reach
  for (int64_t t = 0; t < c.num_taps; ++t) {
    const Tap& tap = c.taps[t];
    if (tap.dy < top) top = tap.dy;
    if (tap.dy > bottom) bottom = tap.dy;
    if (tap.dx < left) left = tap.dx;
    if (tap.dx > right) right = tap.dx;
  }
  int64_t x = first % c.out_width;
  int64_t y = first / c.out_width % c.out_height;
  int64_t image = first / c.out_width / c.out_height;
  for (int64_t i = 0; i < count; ++i) {
    Row& row = rows[i];
    row.image = image;
    row.y = y * c.stride;
    row.x = x * c.stride;
    row.pixel =
        c.in + image * c.in_strides.image + row.y * c.in_strides.row + row.x * c.in_strides.pixel;
    row.inside = row.y + top >= 0 && row.y + bottom < c.height && row.x + left >= 0 &&
                 row.x + right < c.width;
    if (c.load == Load::kLayerNorm) layer_norm_statistics(row.pixel, c.run, c.eps, row);
    next_pixel(c, image, y, x);
  }
}

// --- words of the left factor ---

using HalfVec = uint16_t __attribute__((vector_size(kWidth * sizeof(uint16_t))));

// x / scale + zero rounded, half to even: the lower 22 bits, and ones of the exponent above them.
inline IntVec quantize(Vec x, float inverse_scale, int32_t zero) {
  return reinterpret_cast<IntVec>(x * inverse_scale + (12582912.0f + static_cast<float>(zero)));
}

#if defined(__AVX512F__)
// The lowest byte of each lane.
inline void store_bytes(Word* to, IntVec v) {
  uint8_t bytes __attribute__((vector_size(kWidth)));
  asm("vpmovdb %1, %0" : "=v"(bytes) : "v"(v));
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}

// Rounded by processors with AVX512-BF16, half to even; numbers below 2^-126 become zero.
inline void store_bfloat16(Word* to, Vec x) {
  HalfVec halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(x));
  __builtin_memcpy(to, &halves, sizeof(halves));
}
#endif

// `count` elements of a row, with zeros behind them up to a whole vector, as words.
template <class Product>
void pack_row(const float* x, int64_t count, [[maybe_unused]] const Row& row, Word* to) {
  [[maybe_unused]] const auto word = [to](int64_t i) {
    return Product::kTiles ? to + i / kTileWords * Product::kPanel * kTileWords + i % kTileWords
                           : to + i;
  };
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec v = load(x + i);
    if constexpr (Product::kPrecision == Precision::kBFloat16 && Product::kParts == 2) {
      store_words(to + i, reinterpret_cast<IntVec>(to_bfloat16(v)));
#if defined(__AVX512F__)
    } else if constexpr (Product::kPrecision == Precision::kBFloat16) {
      store_bfloat16(word(i / 2), v);
#endif
    } else {
      const IntVec q = quantize(v, row.inverse, row.zero);
      if constexpr (Product::kParts == 1) {
#if defined(__AVX512F__)
        store_bytes(word(i / 4), q);
#endif
      } else {
        IntVec order;
        for (int lane = 0; lane < kWidth; ++lane) {
          order[lane] = lane / 4 * 4 + lane % 4 / 2 + lane % 2 * 2;
        }
        const HalfVec halves = __builtin_convertvector(__builtin_shuffle(q, order), HalfVec);
        __builtin_memcpy(to + i / 2, &halves, sizeof(halves));
      }
    }
  }
}

// The most elements of a part of k that are not float32.
constexpr int64_t kPartElements = 4 * kDepth / 2;

// Elements [begin, begin + count) of a row, with zeros behind them up to a whole vector: where they
// are, or else in `values`.
inline const float* find_elements(Gather gather_row, const Convolution& c, const Row& row,
                                  const Segment* segments, int64_t begin, int64_t count,
                                  float* values) {
  if (c.load == Load::kPlain && row.inside && count % kWidth == 0) {
    const Segment* segment = segments;
    int64_t first = begin;  // of the segment
    for (; first >= segment->count; ++segment) first -= segment->count;
    if (first + count <= segment->count) return row.pixel + segment->offset + first;
  }
  gather_row(c, row, segments, begin, count, values);
  store(values + count, Vec{});
  return values;
}

// The elements [begin, begin + count) of a row as words.
template <class Product>
void gather_words(Gather gather_row, const Convolution& c, const Row& row, const Segment* segments,
                  int64_t begin, int64_t count, Word* to) {
  if constexpr (Product::kPrecision == Precision::kFloat32) {
    gather_row(c, row, segments, begin, count, reinterpret_cast<float*>(to));
  } else {
    float values[kPartElements + kWidth];
    pack_row<Product>(find_elements(gather_row, c, row, segments, begin, count, values), count, row,
                      to);
  }
}

// The step and the zero of a row in int8: 254 steps from its least to its greatest value, 0 being
// one of them. Where all are positive, as behind a ReLU, no step is lost. If one is not finite, the
// step is NaN, and so is what comes of it.
void find_range(Gather gather_row, const Convolution& c, const Segment* segments, Row& row) {
  float values[kPartElements + kWidth];
  Vec most = {}, least = {}, zeros = {};
  for (int64_t begin = 0; begin < c.weights.k; begin += kPartElements) {
    const int64_t count = at_most(c.weights.k - begin, kPartElements);
    const float* from = find_elements(gather_row, c, row, segments, begin, count, values);
    for (int64_t i = 0; i < count; i += kWidth) {
      const Vec x = load(from + i);
      most = max(most, x);
      least = min(least, x);
      zeros += x * 0.0f;
    }
  }
  const float below = max_of(-least);
  row.scale = (max_of(most) + below + sum(zeros)) / 254;
  row.inverse = row.scale > 1e-37f ? 1 / row.scale : 0;  // finite
  row.zero = quantize(broadcast(below), row.inverse, 0)[0] & 0xff;
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
