// csrc/dpt/runtime/tiles.inl -- the inner kernel of the products of bfloat16 and int8 in the tile
// registers of AMX. It reads what product.inl's kernels for AVX-512 read.
//
// By inline assembly, as those: no compiler option must let AMX into what AVX-512 alone has to run.
#pragma once

#include "dpt/runtime/product.inl"

#if defined(__AVX512F__)

namespace dpt::runtime::DPT_ISA {
namespace {

// How large the tile registers are. Sums of two by two tiles are in 0 to 3, row by row, the left
// factor in 4 and 5, the right one in 6 and 7.
struct alignas(64) TileSizes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

inline void load_sizes(const TileSizes& sizes) { asm volatile("ldtilecfg %0" ::"m"(sizes)); }

// For `words` words along k. All tiles become zero.
inline void set_sizes(int64_t words) {
  TileSizes sizes;
  for (int tile = 0; tile < 8; ++tile) {
    sizes.rows[tile] = tile < 6 ? kTileRows : static_cast<uint8_t>(words);
    sizes.row_bytes[tile] =
        4 * (tile == 4 || tile == 5 ? static_cast<uint16_t>(words) : kTileWords);
  }
  load_sizes(sizes);
}

// Sizes for whole tiles; in the end those of before: oneDNN has its own on the same thread.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    set_sizes(kTileWords);
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

// clang-format off
#define DPT_TILE_ZERO(tile) asm volatile("tilezero %tmm" #tile)
#define DPT_TILE_LOAD(tile, data, row_words) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(data), "r"(4L * (row_words)) : "memory")
#define DPT_TILE_STORE(tile, data, row_words) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(data), "r"(4L * (row_words)) : "memory")
// clang-format on

struct TiledBFloat16Product : NativeBFloat16Product {
  static constexpr int kPanel = 2 * kTileRows;
  static constexpr int kBlock = 10;
  static constexpr bool kTiles = true;

  // sums[2 * i + j] += left[i] . right[j]
  template <int i, int j>
  static void add_tile() {
    if constexpr (i == 0 && j == 0) asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0");
    if constexpr (i == 0 && j == 1) asm volatile("tdpbf16ps %tmm7, %tmm4, %tmm1");
    if constexpr (i == 1 && j == 0) asm volatile("tdpbf16ps %tmm6, %tmm5, %tmm2");
    if constexpr (i == 1 && j == 1) asm volatile("tdpbf16ps %tmm7, %tmm5, %tmm3");
  }
};

struct TiledInt8Product : NativeInt8Product {
  static constexpr int kPanel = 2 * kTileRows;
  static constexpr int kBlock = 10;
  static constexpr bool kTiles = true;

  template <int i, int j>
  static void add_tile() {
    if constexpr (i == 0 && j == 0) asm volatile("tdpbusd %tmm6, %tmm4, %tmm0");
    if constexpr (i == 0 && j == 1) asm volatile("tdpbusd %tmm7, %tmm4, %tmm1");
    if constexpr (i == 1 && j == 0) asm volatile("tdpbusd %tmm6, %tmm5, %tmm2");
    if constexpr (i == 1 && j == 1) asm volatile("tdpbusd %tmm7, %tmm5, %tmm3");
  }
};

// Rows of words, so many apart, and so are tiles along k.
struct Left {
  const Word* data;
  int64_t row_words;
  int64_t tile_words = kTileWords;
};
struct Sums {
  Word* data;
  int64_t row_words;
};

// So many tiles of the left factor by so many of the right one.
template <int rows, int columns>
void load_sums(Sums sums) {
  DPT_TILE_LOAD(0, sums.data, sums.row_words);
  if constexpr (columns > 1) DPT_TILE_LOAD(1, sums.data + kTileWords, sums.row_words);
  if constexpr (rows == 1) return;
  sums.data += kTileRows * sums.row_words;
  DPT_TILE_LOAD(2, sums.data, sums.row_words);
  if constexpr (columns > 1) DPT_TILE_LOAD(3, sums.data + kTileWords, sums.row_words);
}

template <int rows, int columns>
void store_sums(Sums sums) {
  DPT_TILE_STORE(0, sums.data, sums.row_words);
  if constexpr (columns > 1) DPT_TILE_STORE(1, sums.data + kTileWords, sums.row_words);
  if constexpr (rows == 1) return;
  sums.data += kTileRows * sums.row_words;
  DPT_TILE_STORE(2, sums.data, sums.row_words);
  if constexpr (columns > 1) DPT_TILE_STORE(3, sums.data + kTileWords, sums.row_words);
}

// sums += left . right, a tile's words along k.
template <class Product, int rows, int columns>
void add_tiles(Left left, const Word* right) {
  DPT_TILE_LOAD(6, right, columns * kTileWords);
  DPT_TILE_LOAD(4, left.data, left.row_words);
  Product::template add_tile<0, 0>();
  if constexpr (columns > 1) {
    DPT_TILE_LOAD(7, right + kTileWords, columns * kTileWords);
    Product::template add_tile<0, 1>();
  }
  if constexpr (rows > 1) {
    DPT_TILE_LOAD(5, left.data + kTileRows * left.row_words, left.row_words);
    Product::template add_tile<1, 0>();
    if constexpr (columns > 1) Product::template add_tile<1, 1>();
  }
}

template <class Product, int rows, int columns>
void multiply_whole(Left left, const Word* right, int64_t depth, bool accumulate, Sums sums,
                    const Word* next) {
  if (accumulate) {
    load_sums<rows, columns>(sums);
  } else {
    DPT_TILE_ZERO(0);
    DPT_TILE_ZERO(1);
    DPT_TILE_ZERO(2);
    DPT_TILE_ZERO(3);
  }
  for (int64_t i = 0; i < depth; i += kTileWords) {
    add_tiles<Product, rows, columns>(left, right + i * columns * kTileWords);
    left.data += left.tile_words;
    constexpr int kLines = (kColumns + Product::kBlock - 1) / Product::kBlock;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(next + line * 16);
    next += kLines * 16;
  }
  store_sums<rows, columns>(sums);
}

// As `multiply` of `rows` rows, 2 * kTileRows at most, between the constructor and the destructor
// of Tiles. Both `left` and `sums` have all rows of the last tile: what is in those behind `rows`
// does not matter, and new sizes would take longer than their products.
template <class Product, int columns>
void multiply_tiles(int64_t rows, Left left, const Word* right, int64_t depth, bool accumulate,
                    Sums sums, const Word* next) {
  const int64_t rest = depth % kTileWords, whole = depth - rest;
  const auto multiply =
      rows > kTileRows ? multiply_whole<Product, 2, columns> : multiply_whole<Product, 1, columns>;
  multiply(left, right, whole, accumulate, sums, next);
  if (rest == 0) return;
  set_sizes(rest);
  left.data += whole / kTileWords * left.tile_words;
  multiply(left, right + whole * columns * kTileWords, rest, true, sums, next);
  set_sizes(kTileWords);
}

#undef DPT_TILE_ZERO
#undef DPT_TILE_LOAD
#undef DPT_TILE_STORE

}  // namespace
}  // namespace dpt::runtime::DPT_ISA

#endif
