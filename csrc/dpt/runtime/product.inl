// csrc/dpt/runtime/product.inl -- the inner kernel of the matrix products: a tile of the result in
// registers, [kRows, kColumns], and what its factors are packed into.
//
// A factor is a row of words of 32 bits along k: one float, two bfloat16 or four int8. Rows of the
// left factor stay rows, kDepth words apart: the kernel broadcasts a word of each. Only for tiles
// they are cut: a panel is [k / kTileWords, kPanel, kTileWords]. The right factor, the weights, is
// in panels [k, kColumns].
#pragma once

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/simd.inl"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dpt::runtime::DPT_ISA {
namespace {

// As many sums as the registers hold besides two vectors of weights and a broadcast. Fewer under
// AddressSanitizer, where all that is unrolled takes many minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kRows = 3;
#elif defined(__AVX512F__)
constexpr int kRows = 14;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 2;
constexpr int kColumns = kVectors * kWidth;

// Words of a row of the left factor in one call: kColumns columns of so many weights fit the L1
// cache with a panel of the left factor beside them.
constexpr int kDepth = 256;
constexpr int kTile = kRows * kColumns;

constexpr int kTileRows = 16, kTileWords = 16;  // of a tile register, at most

using Word = int32_t __attribute__((may_alias));
using UnalignedIntVec =
    int32_t __attribute__((vector_size(kWidth * sizeof(int32_t)), aligned(4), may_alias));

inline IntVec load_words(const Word* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }

inline Vec load_floats(const Word* p) { return reinterpret_cast<Vec>(load_words(p)); }

inline void store_words(Word* p, IntVec v) { *reinterpret_cast<UnalignedIntVec*>(p) = v; }

using FloatWord = float __attribute__((may_alias));

// How words are multiplied. A word of the weights has kElements elements; the left factor has
// kParts words for each of them, and its rows are kRowWords apart. Of int8 the left factor is from
// 0 to 255, and what is too much, the zero of its row times the weights, is taken off the sums in
// the end. A panel of it has kPanel rows, and kBlock panels meet a panel of the weights one after
// another: about 100 rows, so that the weights are read from outside of the L2 cache at a few bytes
// in 100 operations. Those with kTiles, which are faster, take about 300; they are in tiles.inl.
// Rows of a block are shared out evenly to its panels, so that the parts of two threads take the
// same time; only tiles have whole panels.
struct FloatProduct {
  using Sum = Vec;
  static constexpr Precision kPrecision = Precision::kFloat32;
  static constexpr int kElements = 1;
  static constexpr int kParts = 1;
  static constexpr int kRowWords = kDepth;
  static constexpr int kPanel = kRows;
  static constexpr int kBlock = (96 + kRows - 1) / kRows;
  static constexpr bool kTiles = false;

  static Vec left(const Word* a) { return broadcast(*reinterpret_cast<const FloatWord*>(a)); }
  static Vec right(IntVec b, int) { return reinterpret_cast<Vec>(b); }
  static Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

// Bfloat16 without instructions for it: the left factor is rounded but stays float32, and the
// weights become float32 here, which is exact.
struct BFloat16Product : FloatProduct {
  static constexpr Precision kPrecision = Precision::kBFloat16;
  static constexpr int kElements = 2;
  static constexpr int kParts = 2;

  static Vec right(IntVec b, int part) {
    return reinterpret_cast<Vec>(part == 0 ? b << 16 : b & static_cast<int32_t>(0xffff0000));
  }
};

// a and b are pairs of int16: sum + a0 * b0 + a1 * b1.
inline IntVec add_pairs(IntVec sum, IntVec a, IntVec b) {
#if defined(__x86_64__)
#if defined(__AVX512BW__)
  sum += reinterpret_cast<IntVec>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  sum += reinterpret_cast<IntVec>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  sum += reinterpret_cast<IntVec>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#endif
  // Integer sums may be regrouped, and the compiler does until the registers run out.
  asm("" : "+v"(sum));
  return sum;
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Int8 in pairs of int16. Of four elements the first word of the left factor has the first and the
// third one, which is how the weights are widened at the least cost.
struct Int8Product : FloatProduct {
  using Sum = IntVec;
  using ShortVec = int16_t __attribute__((vector_size(kWidth * sizeof(int32_t))));
  static constexpr Precision kPrecision = Precision::kInt8;
  static constexpr int kElements = 4;
  static constexpr int kParts = 2;

  static IntVec left(const Word* a) { return *a - IntVec{}; }
  static IntVec right(IntVec b, int part) {
    const ShortVec shorts = reinterpret_cast<ShortVec>(b);
    return reinterpret_cast<IntVec>(part == 0 ? shorts << 8 >> 8 : shorts >> 8);
  }
  static IntVec add(IntVec sum, IntVec a, IntVec b) { return add_pairs(sum, a, b); }
};

#if defined(__AVX512F__)
// Processors with these extensions are found at run time. By inline assembly: the compiler inlines
// no function of another target into what is compiled for AVX-512 alone.
struct NativeBFloat16Product : FloatProduct {
  static constexpr Precision kPrecision = Precision::kBFloat16;
  static constexpr int kElements = 2;
  static constexpr int kRowWords = kDepth / 2;

  static IntVec left(const Word* a) { return *a - IntVec{}; }
  static IntVec right(IntVec b, int) { return b; }
  static Vec add(Vec sum, IntVec a, IntVec b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};

// The left factor is unsigned.
struct NativeInt8Product : FloatProduct {
  using Sum = IntVec;
  static constexpr Precision kPrecision = Precision::kInt8;
  static constexpr int kElements = 4;
  static constexpr int kRowWords = kDepth / 2;

  static IntVec left(const Word* a) { return *a - IntVec{}; }
  static IntVec right(IntVec b, int) { return b; }
  static IntVec add(IntVec sum, IntVec a, IntVec b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};
#endif

// One step of k: `vectors` vectors of the weights by a word of each row.
template <class Product, int rows, int vectors>
inline __attribute__((always_inline)) void step(const Word* a, const Word* b,
                                                typename Product::Sum (&sums)[rows][vectors]) {
  IntVec words[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) words[v] = load_words(b + v * kWidth);
#pragma GCC unroll 2
  for (int part = 0; part < Product::kParts; ++part) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto left = Product::left(a + r * Product::kRowWords + part);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] = Product::add(sums[r][v], left, Product::right(words[v], part));
      }
    }
  }
}

// tile [rows, kColumns] (+)= a [rows, depth] . b [depth, vectors * kWidth], in words. Meanwhile
// a share of the panel of weights that comes next, what is at `next`, is brought to the L1 cache:
// of Product::kBlock calls with the same weights each brings one.
template <class Product, int rows, int vectors>
void multiply(const Word* a, const Word* b, int64_t depth, bool accumulate, Word* tile,
              const Word* next) {
  using Sum = typename Product::Sum;
  Sum sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] =
          accumulate ? reinterpret_cast<Sum>(load_words(tile + r * kColumns + v * kWidth)) : Sum{};
    }
  }
  // With 16 registers of SSE2 the compiler moves too many broadcasts forward.
  constexpr int kUnroll = (kWidth > 4 ? 16 : 4) / Product::kParts;
  constexpr int kStep = vectors * kWidth;
  int64_t i = 0;
  for (; i + kUnroll <= depth; i += kUnroll) {
#pragma GCC unroll 16
    for (int u = 0; u < kUnroll; ++u) {
      step<Product, rows, vectors>(a + u * Product::kParts, b + u * kStep, sums);
    }
    // One line for each of kBlock calls.
    constexpr int kLines = (kUnroll * kColumns / 16 + Product::kBlock - 1) / Product::kBlock;
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(next + line * 16);
    next += kLines * 16;
    a += kUnroll * Product::kParts;
    b += kUnroll * kStep;
  }
  for (; i < depth; ++i) {
    step<Product, rows, vectors>(a, b, sums);
    a += Product::kParts;
    b += kStep;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      store_words(tile + r * kColumns + v * kWidth, reinterpret_cast<IntVec>(sums[r][v]));
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
