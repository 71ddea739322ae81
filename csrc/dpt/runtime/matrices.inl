// csrc/dpt/runtime/matrices.inl -- products of two matrices that both change, in the tiles of AMX.
//
// Both factors are cut into squares of 16 rows or columns by 16 words of two elements along k. They
// are read as they lie in memory, and turned where the tiles want them the other way.
#pragma once

#include "dpt/runtime/attention.inl"
#include "dpt/runtime/blocks.inl"

#if defined(__AVX512F__)

namespace dpt::runtime::DPT_ISA {
namespace {
namespace matrices {

using Product = TiledBFloat16Product;

// Sixteen words along k of sixteen rows of the left factor, or columns of the right one.
struct Square {
  IntVec vectors[kTileWords];
};

inline void turn(Square& square) {
#pragma GCC unroll 4
  for (int size = 1; size < kTileWords; size *= 2) {
    IntVec first, second;
    for (int lane = 0; lane < kTileWords; ++lane) {
      first[lane] = lane & size ? lane - size + kTileWords : lane;
      second[lane] = lane & size ? lane + kTileWords : lane + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kTileWords; ++i) {
      if (i & size) continue;
      IntVec &a = square.vectors[i], &b = square.vectors[i + size];
      const IntVec upper = __builtin_shuffle(a, b, first);
      b = __builtin_shuffle(a, b, second);
      a = upper;
    }
  }
}

inline uint32_t element(const Factor& factor, int64_t row, int64_t k) {
  const int64_t at = factor.across ? k * factor.stride + row : row * factor.stride + k;
  if (factor.bfloat16) return static_cast<const uint16_t*>(factor.data)[at];
  return to_bfloat16(static_cast<const float*>(factor.data)[at]);
}

// Two of bfloat16 in each word, at any address of one.
inline IntVec halves_at(const uint16_t* p) {
  IntVec words;
  __builtin_memcpy(&words, p, sizeof(words));
  return words;
}

// Two floats in each word.
inline IntVec narrow(Vec low, Vec high) {
  IntVec words;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(words) : "v"(low), "v"(high));
  return words;
}

// The first `count` of two vectors of floats, kColumns at most, as bfloat16.
inline void store_halves(uint16_t* to, Vec low, Vec high, int64_t count) {
  const IntVec words = narrow(low, high);
  if (count == kColumns) {
    __builtin_memcpy(to, &words, sizeof(words));  // a size that is known: one store
  } else {
    __builtin_memcpy(to, &words, count * sizeof(uint16_t));
  }
}

// Rows [row, row + 16) of `rows` and words [word, word + 16) along k, by rows or by words; zeros
// where the factor has none.
template <bool by_rows>
void read(const Factor& factor, int64_t rows, int64_t k, int64_t row, int64_t word,
          Square& square) {
  const int64_t first = 2 * word;
  const auto* halves = static_cast<const uint16_t*>(factor.data);
  const auto* floats = static_cast<const float*>(factor.data);
  if (row + kTileRows > rows || first + 2 * kTileWords > k) {
    for (int i = 0; i < kTileRows; ++i) {
      Word words[kTileWords] = {};
      for (int64_t j = 0; row + i < rows && j < at_most(k - first, 2 * kTileWords); ++j) {
        words[j / 2] |= static_cast<Word>(element(factor, row + i, first + j) << (j % 2 * 16));
      }
      square.vectors[i] = load_words(words);
    }
    if (!by_rows) turn(square);
    return;
  }
  if (!factor.across) {
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t at = (row + i) * factor.stride + first;
      square.vectors[i] = factor.bfloat16 ? halves_at(halves + at)
                                          : narrow(load(floats + at), load(floats + at + kWidth));
    }
  } else {
    for (int i = 0; i < kTileWords; ++i) {
      const int64_t at = (first + 2 * i) * factor.stride + row;
      if (factor.bfloat16) {
        HalfVec low, high;
        __builtin_memcpy(&low, halves + at, sizeof(low));
        __builtin_memcpy(&high, halves + at + factor.stride, sizeof(high));
        square.vectors[i] = reinterpret_cast<IntVec>(__builtin_convertvector(low, UIntVec) |
                                                     __builtin_convertvector(high, UIntVec) << 16);
      } else {
        square.vectors[i] = reinterpret_cast<IntVec>(
            attention::pair_of(load(floats + at), load(floats + at + factor.stride)));
      }
    }
  }
  if (by_rows == factor.across) turn(square);
}

// Whole tiles along k.
int64_t padded(int64_t k) { return round_up(k, 2 * kTileWords); }

// --- the right factor ---

size_t packed_bytes(const MatrixProduct& work) {
  return DPT_ISA::packed_bytes(Precision::kBFloat16, padded(work.k), work.n);
}

int64_t pack_units(const MatrixProduct& work) { return divide_up(work.n, kColumns); }

size_t pack_scratch(const MatrixProduct&) { return 0; }

void pack(const MatrixProduct& work, int64_t begin, int64_t end, void*) {
  const Parts parts = cut(Precision::kBFloat16, padded(work.k));
  const int64_t n = round_up(work.n, kWidth);
  Word* const words = static_cast<Word*>(work.packed);
  Square square;
  for (int64_t column = begin * kColumns; column < at_most(end * kColumns, n); column += kWidth) {
    const int64_t panel = column / kColumns * kColumns;
    const int64_t columns = at_most(n - panel, kColumns);
    for (int64_t word = 0; word < parts.words; word += kTileWords) {
      const int64_t part = word / parts.depth * parts.depth;
      const int64_t depth = at_most(parts.depth, parts.words - part);
      Word* to = words + part * n + panel * depth + (word - part) * columns + column - panel;
      read<false>(work.right, work.n, work.k, column, word, square);
      for (int i = 0; i < kTileWords; ++i) store_words(to + i * columns, square.vectors[i]);
    }
  }
}

// --- the product ---

// Sums of a row, two vectors of them, into columns [column, column + kColumns).
inline void write(const MatrixProduct& work, int64_t row, int64_t column, const Word* sums) {
  Vec low = load_floats(sums), high = load_floats(sums + kWidth);
  const int64_t count = at_most(work.n - column, kColumns);
  if (work.bias != nullptr) {
    float bias[kColumns] = {};
    __builtin_memcpy(bias, work.bias + column, count * sizeof(float));
    low += load(bias);
    high += load(bias + kWidth);
  }
  const int64_t at = row * work.out_stride + column;
  if (work.out_bfloat16) {
    store_halves(static_cast<uint16_t*>(work.out) + at, low, high, count);
  } else {
    auto* out = static_cast<float*>(work.out) + at;
    const auto put = [](float* to, Vec v, int64_t lanes) {
      if (lanes >= kWidth) return store(to, v);
      store_first(to, v, lanes);
    };
    put(out, low, count);
    put(out + kWidth, high, count - kWidth);
  }
}

int64_t units(const MatrixProduct& work) { return divide_up(work.m, Product::kPanel); }

size_t scratch(const MatrixProduct& work) {
  const Plan p = plan<Product>(padded(work.k), work.n);
  return p.left_bytes + p.tile_bytes;
}

void run(const MatrixProduct& work, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  const Tiles configured;
  const Plan p = plan<Product>(padded(work.k), work.n);
  Word* left = static_cast<Word*>(scratch);
  Word* tiles = left + p.left_bytes / sizeof(Word);
  const int64_t blocks = divide_up(end - begin, Product::kBlock);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = (begin + (end - begin) * block / blocks) * Product::kPanel;
    const int64_t last = (begin + (end - begin) * (block + 1) / blocks) * Product::kPanel;
    const int64_t count = at_most(last, work.m) - first;
    const auto pack_left = [&](int64_t word, int64_t words, Word* to) {
      Square square;
      for (int64_t row = 0; row < count; row += kTileRows) {
        Word* tile = left_row<Product>(to, row);
        for (int64_t i = 0; i < words; i += kTileWords, tile += Product::kPanel * kTileWords) {
          read<true>(work.left, work.m, work.k, first + row, word + i, square);
          for (int r = 0; r < kTileRows; ++r) store_words(tile + r * kTileWords, square.vectors[r]);
        }
      }
    };
    const auto finish = [&](int64_t row, int64_t rows, int64_t column, int64_t panels,
                            const Word* sums, int64_t next) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < panels; ++j) {
          write(work, first + row + r, column + j * kColumns, sums + j * next + r * kColumns);
        }
      }
    };
    multiply_block<Product>(p, count, static_cast<const Word*>(work.packed), left, tiles, pack_left,
                            finish);
  }
}

}  // namespace matrices
}  // namespace
}  // namespace dpt::runtime::DPT_ISA

#endif
