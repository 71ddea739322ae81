// csrc/dpt/runtime/convolution.inl -- convolutions and linear layers as blocked matrix products.
//
// A unit is an output pixel, or with tiles a panel of them.
#pragma once

#include "dpt/runtime/blocks.inl"
#include "dpt/runtime/kernels.h"
#include "dpt/runtime/packing.inl"
#include "dpt/runtime/product.inl"
#include "dpt/runtime/simd.inl"

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
template <Activation activation, Precision precision>
void finish(const Convolution& c, const Row* pixels, const Output* outputs, int64_t rows,
            int64_t column, const Word* tile) {
  [[maybe_unused]] const int64_t padded = round_up(c.weights.n, kWidth);
  [[maybe_unused]] const Word* const scales =
      static_cast<const Word*>(c.weights.data) + cut(precision, c.weights.k).words * padded;
  const auto sum_of = [&]([[maybe_unused]] int64_t row, const Word* sums,
                          [[maybe_unused]] int64_t at) {
    if constexpr (precision == Precision::kInt8) {
      const IntVec total = load_words(sums) - load_words(scales + padded + at) * pixels[row].zero;
      return __builtin_convertvector(total, Vec) * (load_floats(scales + at) * pixels[row].scale);
    } else {
      return load_floats(sums);
    }
  };
  const auto write = [&](int64_t row, const Word* sums, int64_t at, auto read, auto write) {
    const Output& to = outputs[row];
    Vec x = sum_of(row, sums, at);
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
        write(r, tile + r * kColumns + v * kWidth, column + v * kWidth, read_all, write_all);
      }
    }
    return;
  }
  for (int64_t at = 0; at < columns; at += kWidth) {
    const int64_t lanes = at_most(columns - at, kWidth);
    const auto read_some = [lanes](const float* p) { return load_first(p, lanes); };
    const auto write_some = [lanes](float* p, Vec x) { store_first(p, x, lanes); };
    for (int64_t r = 0; r < rows; ++r) {
      const Word* sums = tile + r * kColumns + at;
      if (lanes == kWidth) {
        write(r, sums, column + at, read_all, write_all);
      } else {
        write(r, sums, column + at, read_some, write_some);
      }
    }
  }
}

using Finish = void (*)(const Convolution&, const Row*, const Output*, int64_t rows, int64_t column,
                        const Word* tile);

// Sums are floats, but those of int8 integers.
template <Precision precision>
Finish choose_finish(Activation activation) {
  constexpr Precision kSums =
      precision == Precision::kInt8 ? Precision::kInt8 : Precision::kFloat32;
  switch (activation) {
    case Activation::kRelu:
      return finish<Activation::kRelu, kSums>;
    case Activation::kGelu:
      return finish<Activation::kGelu, kSums>;
    default:
      return finish<Activation::kNone, kSums>;
  }
}

// --- blocks ---

// Pixels [first, first + count), of at most Product::kBlock panels.
template <class Product>
void run_block(const Convolution& c, const Plan& p, int64_t first, int64_t count, Word* left,
               Word* tiles, const Segment* segments) {
  constexpr int64_t kPanel = Product::kPanel;
  Row rows[Product::kBlock * kPanel];
  Output outputs[Product::kBlock * kPanel];
  find_rows(c, first, count, rows);
  find_outputs(c, first, count, outputs);
  const Gather gather_row = choose_gather(c.load);
  const Finish finish_tile = choose_finish<Product::kPrecision>(c.activation);
  if constexpr (Product::kPrecision == Precision::kInt8) {
    for (int64_t i = 0; i < count; ++i) find_range(gather_row, c, segments, rows[i]);
  }
  const auto pack = [&](int64_t begin, int64_t words, Word* to) {
    const int64_t element = begin * Product::kElements;
    const int64_t elements = at_most(words * Product::kElements, c.weights.k - element);
    for (int64_t i = 0; i < count; ++i) {
      gather_words<Product>(gather_row, c, rows[i], segments, element, elements,
                            left_row<Product>(to, i));
    }
  };
  const auto finish = [&](int64_t row, int64_t num_rows, int64_t column, int64_t panels, Word* sums,
                          int64_t next) {
    for (int64_t j = 0; j < panels; ++j, column += kColumns, sums += next) {
      finish_tile(c, rows + row, outputs + row, num_rows, column, sums);
    }
  };
  multiply_block<Product>(p, count, static_cast<const Word*>(c.weights.data), left, tiles, pack,
                          finish);
}

template <class Product>
constexpr int64_t pixels_of_unit() {
  return Product::kTiles ? Product::kPanel : 1;
}

template <class Product>
void run_blocks(const Convolution& c, int64_t begin, int64_t end, void* scratch) {
  const Plan p = plan<Product>(c.weights.k, c.weights.n);
  char* at = static_cast<char*>(scratch);
  Word* left = reinterpret_cast<Word*>(at);
  Word* tiles = reinterpret_cast<Word*>(at + p.left_bytes);
  Segment* segments = reinterpret_cast<Segment*>(at + p.left_bytes + p.tile_bytes);
  find_segments(c, segments);

  const int64_t pixels = c.batch * c.out_height * c.out_width;
  constexpr int64_t kUnit = pixels_of_unit<Product>();
  const int64_t blocks = divide_up(end - begin, Product::kBlock * Product::kPanel / kUnit);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = (begin + (end - begin) * block / blocks) * kUnit;
    const int64_t last = (begin + (end - begin) * (block + 1) / blocks) * kUnit;
    run_block<Product>(c, p, first, at_most(last, pixels) - first, left, tiles, segments);
  }
}

// --- the kernel ---

// Calls `use` with the product of this precision and instruction set.
template <Isa isa, class Use>
auto with_product(Precision precision, const Use& use) {
  if (precision == Precision::kFloat32) return use(FloatProduct{});
  const bool is_int8 = precision == Precision::kInt8;
#if defined(__AVX512F__)
  if constexpr (isa == Isa::kAmx) {
    return is_int8 ? use(TiledInt8Product{}) : use(TiledBFloat16Product{});
  } else if constexpr (isa == Isa::kAvx512Bf16) {
    return is_int8 ? use(NativeInt8Product{}) : use(NativeBFloat16Product{});
  } else if constexpr (isa == Isa::kAvx512Vnni) {
    return is_int8 ? use(NativeInt8Product{}) : use(BFloat16Product{});
  }
#endif
  return is_int8 ? use(Int8Product{}) : use(BFloat16Product{});
}

template <Isa isa>
int64_t convolution_units(const Convolution& c) {
  return with_product<isa>(c.weights.precision, [&](auto product) {
    return divide_up(c.batch * c.out_height * c.out_width, pixels_of_unit<decltype(product)>());
  });
}

template <Isa isa>
int64_t convolution_block(const Convolution& c) {
  return with_product<isa>(c.weights.precision, [](auto product) {
    return product.kTiles ? int64_t{0} : int64_t{product.kBlock * product.kPanel};
  });
}

template <Isa isa>
size_t convolution_scratch(const Convolution& c) {
  return with_product<isa>(c.weights.precision, [&](auto product) {
    const Plan p = plan<decltype(product)>(c.weights.k, c.weights.n);
    return static_cast<size_t>(p.left_bytes + p.tile_bytes) + c.num_taps * sizeof(Segment);
  });
}

template <Isa isa>
void run_convolution(const Convolution& c, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  with_product<isa>(c.weights.precision, [&](auto product) {
#if defined(__AVX512F__)
    if constexpr (product.kTiles) {
      const Tiles configured;
      return run_blocks<decltype(product)>(c, begin, end, scratch);
    }
#endif
    run_blocks<decltype(product)>(c, begin, end, scratch);
  });
}

template <Isa isa>
constexpr Kernel<Convolution> kConvolution{convolution_units<isa>, convolution_scratch<isa>,
                                           run_convolution<isa>, convolution_block<isa>};

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
