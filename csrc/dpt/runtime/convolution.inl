// csrc/dpt/runtime/convolution.inl -- convolutions and linear layers as blocked matrix products.
//
// A unit is a panel of output pixels. A block of panels is packed, and then each panel of weights,
// which comes from the L3 cache or the memory, meets all of them.
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/packing.inl"
#include "dpt/runtime/product.inl"
#include "dpt/runtime/simd.inl"
#include "dpt/runtime/tiles.inl"

namespace dpt::runtime::DPT_ISA {
namespace {

// --- what follows the product ---

// Absolute error below 3e-7. Rational in x^2, fitted to the least maximal absolute error on
// [0, 3.8]; from there on erf is 1 to 8e-8.
inline Vec erf(Vec x) {
  x = max(min(x, broadcast(3.8f)), broadcast(-3.8f));
  const Vec t = x * x;
  Vec p = broadcast(2.1240630587726628e-08f);
  p = p * t + -2.0199297523504356e-06f;
  p = p * t + 1.4062937407288700e-04f;
  p = p * t + 3.5320718307048082e-03f;
  p = p * t + 4.9966298043727875e-02f;
  p = p * t + 1.9514901936054230e-01f;
  p = p * t + 1.1283788681030273e+00f;
  Vec q = broadcast(9.2432217206805944e-04f);
  q = q * t + 1.3974070549011230e-02f;
  q = q * t + 1.1305285245180130e-01f;
  q = q * t + 5.0627636909484863e-01f;
  q = q * t + 1.0f;
  return x * p / q;
}

inline Vec gelu(Vec x) {
  const Vec half = x * 0.5f;
  return half + half * erf(x * 0.70710678118654752f);
}

template <Activation activation>
inline Vec activate(Vec x) {
  if constexpr (activation == Activation::kRelu) return relu(x);
  if constexpr (activation == Activation::kGelu) return gelu(x);
  return x;
}

// Where the row of an output pixel goes.
struct Output {
  float* out;
  const float* add;
  const float* border;  // [n]
};

void find_outputs(const Convolution& c, int64_t first, int64_t count, Output* outputs) {
  int64_t x = first % c.out_width;
  int64_t y = first / c.out_width % c.out_height;
  int64_t image = first / c.out_width / c.out_height;
  for (int64_t i = 0; i < count; ++i) {
    const auto offset = [&](const Strides& s) { return image * s.image + y * s.row + x * s.pixel; };
    const int64_t at_row = (y == 0) + 2 * (y == c.out_height - 1);
    const int64_t at_column = (x == 0) + 2 * (x == c.out_width - 1);
    outputs[i] = {
        c.out + offset(c.out_strides), c.add == nullptr ? nullptr : c.add + offset(c.add_strides),
        c.border == nullptr ? nullptr : c.border + (4 * at_row + at_column) * c.weights.n};
    next_pixel(c, image, y, x);
  }
}

// Writes the sums of `rows` pixels and of the columns from `column` on.
template <Activation activation>
void finish(const Convolution& c, const Output* outputs, int64_t rows, int64_t column,
            const float* tile) {
  const auto write = [&](const Output& to, const float* sums, int64_t at, auto read, auto write) {
    Vec x = load(sums);
    if (c.bias != nullptr) x += read(c.bias + at);
    if (to.border != nullptr) x += read(to.border + at);
    x = activate<activation>(x);
    if (to.add != nullptr) x += c.add_relu ? relu(read(to.add + at)) : read(to.add + at);
    write(to.out + at, x);
  };
  const auto read_all = [](const float* p) { return load(p); };
  const auto write_all = [](float* p, Vec x) { store(p, x); };
  const int64_t columns = c.weights.n - column;
  if (columns >= kColumns) {
    for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        write(outputs[r], tile + r * kColumns + v * kWidth, column + v * kWidth, read_all,
              write_all);
      }
    }
    return;
  }
  for (int64_t at = 0; at < columns; at += kWidth) {
    const int64_t lanes = at_most(columns - at, kWidth);
    const auto read_some = [lanes](const float* p) { return load_first(p, lanes); };
    const auto write_some = [lanes](float* p, Vec x) { store_first(p, x, lanes); };
    for (int64_t r = 0; r < rows; ++r) {
      const float* sums = tile + r * kColumns + at;
      if (lanes == kWidth) {
        write(outputs[r], sums, column + at, read_all, write_all);
      } else {
        write(outputs[r], sums, column + at, read_some, write_some);
      }
    }
  }
}

// Sums of int8 products to floats, in place.
template <class Product>
void scale_tile(const PackedMatrix& w, const Row* pixels, int64_t rows, int64_t column,
                int64_t columns, Word* tile) {
  if constexpr (Product::kPrecision == Precision::kInt8) {
    const int64_t padded = round_up(w.n, kWidth);
    const Word* scales =
        static_cast<const Word*>(w.data) + cut(Precision::kInt8, w.k).words * padded + column;
    const Word* sums = scales + padded;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < columns; i += kWidth) {
        Word* at = tile + r * kColumns + i;
        const IntVec total = load_words(at) - load_words(sums + i) * Product::kZero;
        const Vec scale = reinterpret_cast<Vec>(load_words(scales + i)) * pixels[r].scale;
        store_words(at, reinterpret_cast<IntVec>(__builtin_convertvector(total, Vec) * scale));
      }
    }
  }
}

using Finish = void (*)(const Convolution&, const Output*, int64_t rows, int64_t column,
                        const float* tile);

Finish choose_finish(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return finish<Activation::kRelu>;
    case Activation::kGelu:
      return finish<Activation::kGelu>;
    default:
      return finish<Activation::kNone>;
  }
}

// --- blocks ---

using Multiply = void (*)(const Word* a, const Word* b, int64_t depth, bool accumulate, Word* tile,
                          const Word* next);

// The kernel for the last rows and columns, too: the first `rows` of kRows, and half a panel if
// `columns` is kWidth or less.
template <class Product, int rows = kRows>
Multiply choose_multiply(int64_t wanted_rows, int64_t columns) {
  if constexpr (rows > 1) {
    if (wanted_rows < rows) return choose_multiply<Product, rows - 1>(wanted_rows, columns);
  }
  return columns > kWidth ? multiply<Product, rows, kVectors> : multiply<Product, rows, 1>;
}

// As `multiply`, of a panel of the left factor, or its first rows, and one of the weights.
template <class Product>
inline void multiply_panel(int64_t rows, int64_t columns, const Word* a, const Word* b,
                           int64_t depth, bool accumulate, Word* tile, const Word* next) {
  if constexpr (!Product::kTiles) {
    choose_multiply<Product>(rows, columns)(a, b, depth, accumulate, tile, next);
#if defined(__AVX512F__)
  } else {
    const auto multiply =
        columns > kWidth ? multiply_tiles<Product, kVectors> : multiply_tiles<Product, 1>;
    multiply(rows, {a, kTileWords, Product::kPanel * kTileWords}, b, depth, accumulate,
             {tile, kColumns}, next);
#endif
  }
}

// Parts of k, of kDepth words or less, that are packed at a time: 400 KB of the L2 cache.
constexpr int64_t kGroup = 4;
// Panels of the weights after which the sums of one part of k are taken up by the next one.
constexpr int64_t kStretch = 12;

struct Plan {
  Parts parts;
  int64_t group;       // parts of k that are packed at a time
  int64_t num_panels;  // of the weights
  int64_t stretch;     // panels of the weights whose sums are kept
  int64_t left_bytes, tile_bytes, segment_bytes;
};

template <class Product>
Plan plan(const Convolution& c) {
  constexpr int64_t kMaxRows = Product::kBlock * Product::kPanel;
  Plan p;
  p.parts = cut(c.weights.precision, c.weights.k);
  p.group = at_most(p.parts.count, kGroup);
  p.num_panels = divide_up(c.weights.n, kColumns);
  // Where not all of k is packed at a time, the sums of all columns wait for the next group.
  p.stretch = p.parts.count > p.group ? p.num_panels : at_most(p.num_panels, kStretch);
  p.left_bytes = p.group * kMaxRows * Product::kRowWords * 4;
  p.tile_bytes = p.stretch * kMaxRows * kColumns * 4;
  p.segment_bytes = c.num_taps * sizeof(Segment);
  return p;
}

// Pixels [first, first + count), of at most Product::kBlock panels.
template <class Product>
void run_block(const Convolution& c, const Plan& p, int64_t first, int64_t count, Word* left,
               Word* tiles, const Segment* segments) {
  constexpr int64_t kPanel = Product::kPanel, kPanelWords = kPanel * Product::kRowWords;
  constexpr int64_t kNextRow = Product::kTiles ? kTileWords : Product::kRowWords;
  Row rows[Product::kBlock * kPanel];
  Output outputs[Product::kBlock * kPanel];
  find_rows(c, first, count, rows);
  find_outputs(c, first, count, outputs);
  const Gather gather_row = choose_gather(c.load);
  const Finish finish_tile = choose_finish(c.activation);
  if constexpr (Product::kPrecision == Precision::kInt8) {
    for (int64_t i = 0; i < count; ++i) find_scale(gather_row, c, segments, rows[i]);
  }

  const Parts& parts = p.parts;
  const int64_t panels = divide_up(count, kPanel);
  const Word* weights = static_cast<const Word*>(c.weights.data);

  for (int64_t group = 0; group < parts.count; group += p.group) {
    const int64_t group_end = at_most(group + p.group, parts.count);
    for (int64_t part = group; part < group_end; ++part) {
      const int64_t begin = part * parts.depth * Product::kElements;
      const int64_t elements = at_most(parts.depth * Product::kElements, c.weights.k - begin);
      Word* const to = left + (part - group) * Product::kBlock * kPanelWords;
      for (int64_t i = 0; i < count; ++i) {
        gather_words<Product>(gather_row, c, rows[i], segments, begin, elements,
                              to + i / kPanel * kPanelWords + i % kPanel * kNextRow);
      }
    }
    for (int64_t stretch = 0; stretch < p.num_panels; stretch += p.stretch) {
      const int64_t stretch_end = at_most(stretch + p.stretch, p.num_panels);
      for (int64_t part = group; part < group_end; ++part) {
        const int64_t begin = part * parts.depth;
        const int64_t depth = at_most(parts.depth, parts.words - begin);
        for (int64_t j = stretch; j < stretch_end; ++j) {
          const int64_t column = j * kColumns;
          const int64_t columns = at_most(round_up(c.weights.n, kWidth) - column, kColumns);
          const Word* right = weights + begin * round_up(c.weights.n, kWidth) + column * depth;
          const Word* next = j + 1 < p.num_panels ? right + depth * columns : right;
          const Word* a = left + (part - group) * Product::kBlock * kPanelWords;
          Word* tile = tiles + (j - stretch) * panels * kPanel * kColumns;
          for (int64_t i = 0; i < panels; ++i, a += kPanelWords, tile += kPanel * kColumns) {
            const int64_t num_rows = at_most(count - i * kPanel, kPanel);
            multiply_panel<Product>(num_rows, columns, a, right, depth, part > 0, tile,
                                    next + i * depth * columns / panels);
            if (part + 1 == parts.count) {
              scale_tile<Product>(c.weights, rows + i * kPanel, num_rows, column, columns, tile);
              finish_tile(c, outputs + i * kPanel, num_rows, column,
                          reinterpret_cast<const float*>(tile));
            }
          }
        }
      }
    }
  }
}

template <class Product>
void run_blocks(const Convolution& c, int64_t begin, int64_t end, void* scratch) {
  const Plan p = plan<Product>(c);
  char* at = static_cast<char*>(scratch);
  Word* left = reinterpret_cast<Word*>(at);
  Word* tiles = reinterpret_cast<Word*>(at + p.left_bytes);
  Segment* segments = reinterpret_cast<Segment*>(at + p.left_bytes + p.tile_bytes);
  find_segments(c, segments);

  const int64_t pixels = c.batch * c.out_height * c.out_width;
  const int64_t blocks = divide_up(end - begin, Product::kBlock);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = (begin + (end - begin) * block / blocks) * Product::kPanel;
    const int64_t last = (begin + (end - begin) * (block + 1) / blocks) * Product::kPanel;
    run_block<Product>(c, p, first, at_most(last, pixels) - first, left, tiles, segments);
  }
}

// --- the kernel ---

// Calls `use` with the product of this precision that the processor has.
template <bool tiles, class Use>
auto with_product(Precision precision, const Use& use) {
  switch (precision) {
    case Precision::kBFloat16:
#if defined(__AVX512F__)
      if constexpr (tiles) return use(TiledBFloat16Product{});
      if (__builtin_cpu_supports("avx512bf16")) return use(NativeBFloat16Product{});
#endif
      return use(BFloat16Product{});
    case Precision::kInt8:
#if defined(__AVX512F__)
      if constexpr (tiles) return use(TiledInt8Product{});
      if (__builtin_cpu_supports("avx512vnni")) return use(NativeInt8Product{});
#endif
      return use(Int8Product{});
    default:
      return use(FloatProduct{});
  }
}

template <bool tiles>
int64_t convolution_units(const Convolution& c) {
  return with_product<tiles>(c.weights.precision, [&](auto product) {
    return divide_up(c.batch * c.out_height * c.out_width, product.kPanel);
  });
}

template <bool tiles>
size_t convolution_scratch(const Convolution& c) {
  return with_product<tiles>(c.weights.precision, [&](auto product) {
    const Plan p = plan<decltype(product)>(c);
    return static_cast<size_t>(p.left_bytes + p.tile_bytes + p.segment_bytes);
  });
}

template <bool tiles>
void run_convolution(const Convolution& c, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  with_product<tiles>(c.weights.precision, [&](auto product) {
#if defined(__AVX512F__)
    if constexpr (product.kTiles) {
      const Tiles configured;
      return run_blocks<decltype(product)>(c, begin, end, scratch);
    }
#endif
    run_blocks<decltype(product)>(c, begin, end, scratch);
  });
}

// With tiles or without.
template <bool tiles>
constexpr Kernel<Convolution> kConvolution{convolution_units<tiles>, convolution_scratch<tiles>,
                                           run_convolution<tiles>};

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
