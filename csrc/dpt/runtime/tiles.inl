// csrc/dpt/runtime/tiles.inl -- the inner kernel of the products of bfloat16 and int8 in the tile
// registers of AMX. It reads what product.inl's kernels for AVX-512 read.
//
// By inline assembly, as those: no compiler option must let AMX into what AVX-512 alone has to run.
#pragma once

#include "dpt/runtime/product.inl"

#if defined(__AVX512F__)

namespace dpt::runtime::DPT_ISA {
namespace {

// How large the tile registers are: 0 and 1 hold sums, 2 the left factor, 3 and 4 the right one.
struct alignas(64) TileSizes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr int kTileWords = 16;  // of a row, at most

inline void load_sizes(const TileSizes& sizes) { asm volatile("ldtilecfg %0" ::"m"(sizes)); }

// `rows` of the left factor by `words` words along k. All tiles become zero.
inline void set_sizes(int64_t rows, int64_t words) {
  TileSizes sizes;
  const auto set = [&sizes](int tile, int64_t tile_rows, int64_t row_words) {
    sizes.rows[tile] = static_cast<uint8_t>(tile_rows);
    sizes.row_bytes[tile] = static_cast<uint16_t>(4 * row_words);
  };
  set(0, rows, kTileWords);
  set(1, rows, kTileWords);
  set(2, rows, words);
  set(3, words, kTileWords);
  set(4, words, kTileWords);
  load_sizes(sizes);
}

// Sizes for whole tiles; in the end those of before: oneDNN has its own on the same thread.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    set_sizes(kRows, kTileWords);
  }
  ~Tiles() {
    if (before_.palette == 0) {
      asm volatile("tilerelease");
    } else {
      load_sizes(before_);
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  TileSizes before_;
};

#define DPT_LOAD_TILE(tile, data, row_words) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(data), "r"(4L * (row_words)) : "memory")
#define DPT_STORE_TILE(tile, data, row_words)                                            \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(data), "r"(4L * (row_words)) \
               : "memor"                                                                 \
                 "y")

struct TiledBFloat16Product : NativeBFloat16Product {
  static constexpr bool kTiles = true;

  static void add_first() { asm volatile("tdpbf16ps %tmm3, %tmm2, %tmm0"); }
  static void add_second() { asm volatile("tdpbf16ps %tmm4, %tmm2, %tmm1"); }
};

struct TiledInt8Product : NativeInt8Product {
  static constexpr bool kTiles = true;

  static void add_first() { asm volatile("tdpbusd %tmm3, %tmm2, %tmm0"); }
  static void add_second() { asm volatile("tdpbusd %tmm4, %tmm2, %tmm1"); }
};

template <int vectors>
void load_sums(const Word* tile) {
  DPT_LOAD_TILE(0, tile, kColumns);
  if constexpr (vectors > 1) DPT_LOAD_TILE(1, tile + kWidth, kColumns);
}

template <int vectors>
void store_sums(Word* tile) {
  DPT_STORE_TILE(0, tile, kColumns);
  if constexpr (vectors > 1) DPT_STORE_TILE(1, tile + kWidth, kColumns);
}

template <class Product, int vectors>
void add_tiles(const Word* a, const Word* b) {
  DPT_LOAD_TILE(2, a, kDepth);
  DPT_LOAD_TILE(3, b, vectors * kWidth);
  Product::add_first();
  if constexpr (vectors > 1) {
    DPT_LOAD_TILE(4, b + kWidth, vectors * kWidth);
    Product::add_second();
  }
}

// As `multiply`, between the constructor and the destructor of Tiles.
template <class Product, int rows, int vectors>
void multiply_tiles(const Word* a, const Word* b, int64_t depth, bool accumulate, Word* tile,
                    const Word* next) {
  const int64_t rest = depth % kTileWords;
  if constexpr (rows < kRows) set_sizes(rows, kTileWords);
  if (accumulate) {
    load_sums<vectors>(tile);
  } else {
    asm volatile("tilezero %tmm0");
    asm volatile("tilezero %tmm1");
  }
  for (int64_t i = 0; i < depth - rest; i += kTileWords) {
    add_tiles<Product, vectors>(a + i, b + i * vectors * kWidth);
    constexpr int kLines = (kColumns + kBlock - 1) / kBlock;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(next + line * 16);
    next += kLines * 16;
  }
  store_sums<vectors>(tile);
  if (rest > 0) {
    set_sizes(rows, rest);
    load_sums<vectors>(tile);
    add_tiles<Product, vectors>(a + depth - rest, b + (depth - rest) * vectors * kWidth);
    store_sums<vectors>(tile);
  }
  if (rows < kRows || rest > 0) set_sizes(kRows, kTileWords);
}

#undef DPT_LOAD_TILE
#undef DPT_STORE_TILE

}  // namespace
}  // namespace dpt::runtime::DPT_ISA

#endif
