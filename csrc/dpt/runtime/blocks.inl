// csrc/dpt/runtime/blocks.inl -- a block of panels of the left factor by all of the right one.
//
// The block is packed, and then each panel of the right factor, which comes from the L3 cache or
// the memory, meets all of it.
#pragma once

#include "dpt/runtime/packing.inl"
#include "dpt/runtime/product.inl"
#include "dpt/runtime/tiles.inl"

namespace dpt::runtime::DPT_ISA {
namespace {

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

// Where row `i` of a block begins in a packed part of k.
template <class Product>
Word* left_row(Word* part, int64_t i) {
  constexpr int64_t kNextRow = Product::kTiles ? kTileWords : Product::kRowWords;
  return part + i / Product::kPanel * Product::kPanel * Product::kRowWords +
         i % Product::kPanel * kNextRow;
}

// The first row of panel `i` of `panels`.
template <class Product>
inline int64_t first_row(int64_t count, int64_t panels, int64_t i) {
  return Product::kTiles ? at_most(i * Product::kPanel, count) : count * i / panels;
}

// Parts of k, of kDepth words or less, that are packed at a time: 400 KB of the L2 cache.
constexpr int64_t kGroup = 4;
// Panels of the right factor after which the sums of one part of k are taken up by the next one.
constexpr int64_t kStretch = 12;

struct Plan {
  int64_t n;  // columns, with padding to whole vectors
  Parts parts;
  int64_t group;       // parts of k that are packed at a time
  int64_t num_panels;  // of the right factor
  int64_t stretch;     // panels of the right factor whose sums are kept
  int64_t left_bytes, tile_bytes;
};

template <class Product>
Plan plan(int64_t k, int64_t n) {
  constexpr int64_t kMaxRows = Product::kBlock * Product::kPanel;
  Plan p;
  p.n = round_up(n, kWidth);
  p.parts = cut(Product::kPrecision, k);
  p.group = at_most(p.parts.count, kGroup);
  p.num_panels = divide_up(n, kColumns);
  // Where not all of k is packed at a time, the sums of all columns wait for the next group.
  p.stretch = p.parts.count > p.group ? p.num_panels : at_most(p.num_panels, kStretch);
  p.left_bytes = p.group * kMaxRows * Product::kRowWords * 4;
  p.tile_bytes = p.stretch * kMaxRows * kColumns * 4;
  return p;
}

// `count` rows, of at most Product::kBlock panels, by the packed factor `right`.
//   pack(begin, words, to): words [begin, begin + words) along k of all rows, see left_row.
//   finish(row, rows, column, panels, sums, next): takes the sums of a panel of rows and of
//   `panels` of columns, [rows, kColumns] each and `next` words apart.
template <class Product, class Pack, class Finish>
inline void multiply_block(const Plan& p, int64_t count, const Word* right, Word* left, Word* tiles,
                           const Pack& pack, const Finish& finish) {
  constexpr int64_t kPanel = Product::kPanel, kPanelWords = kPanel * Product::kRowWords;
  const Parts& parts = p.parts;
  const int64_t panels = divide_up(count, kPanel);
  for (int64_t group = 0; group < parts.count; group += p.group) {
    const int64_t group_end = at_most(group + p.group, parts.count);
    for (int64_t part = group; part < group_end; ++part) {
      const int64_t begin = part * parts.depth;
      pack(begin, at_most(parts.depth, parts.words - begin),
           left + (part - group) * Product::kBlock * kPanelWords);
    }
    for (int64_t stretch = 0; stretch < p.num_panels; stretch += p.stretch) {
      const int64_t stretch_end = at_most(stretch + p.stretch, p.num_panels);
      for (int64_t part = group; part < group_end; ++part) {
        const int64_t begin = part * parts.depth;
        const int64_t depth = at_most(parts.depth, parts.words - begin);
        for (int64_t j = stretch; j < stretch_end; ++j) {
          const int64_t column = j * kColumns;
          const int64_t columns = at_most(p.n - column, kColumns);
          const Word* panel = right + begin * p.n + column * depth;
          const Word* next = j + 1 < p.num_panels ? panel + depth * columns : panel;
          const Word* a = left + (part - group) * Product::kBlock * kPanelWords;
          Word* tile = tiles + (j - stretch) * panels * kPanel * kColumns;
          for (int64_t i = 0; i < panels; ++i, tile += kPanel * kColumns) {
            const int64_t row = first_row<Product>(count, panels, i);
            multiply_panel<Product>(first_row<Product>(count, panels, i + 1) - row, columns,
                                    a + row * Product::kRowWords, panel, depth, part > 0, tile,
                                    next + i * depth * columns / panels);
          }
        }
      }
      if (group_end < parts.count) continue;
      for (int64_t i = 0; i < panels; ++i) {
        const int64_t row = first_row<Product>(count, panels, i);
        finish(row, first_row<Product>(count, panels, i + 1) - row, stretch * kColumns,
               stretch_end - stretch, tiles + i * kPanel * kColumns, panels * kPanel * kColumns);
      }
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
