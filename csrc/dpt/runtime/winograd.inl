// csrc/dpt/runtime/winograd.inl -- 3x3 convolutions by Winograd's F(4x4, 3x3): a quarter of the
// multiplications (Lavin and Gray 2016, Sec. 4; Toom and Cook's construction).
//
// The points of interpolation are 0, +-3/4, +-3/2 and infinity. The usual 0, +-1, +-2 give four
// times the error (Barabasz et al. 2020 search for better ones); all constants of the transforms of
// maps are exact in float32.
#pragma once

#include "dpt/runtime/blocks.inl"
#include "dpt/runtime/kernels.h"
#include "dpt/runtime/packing.inl"
#include "dpt/runtime/product.inl"
#include "dpt/runtime/simd.inl"

namespace dpt::runtime::DPT_ISA {
namespace {

constexpr int kPoints = 36;  // of a tile: 6 x 6, of which 4 x 4 outputs come
constexpr float kA = 0.75f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

// --- weights ---

// For each part of the channels and each point the panels of weights, as in `pack`.
size_t winograd_bytes(int64_t channels, int64_t n) {
  return kPoints * packed_bytes(Precision::kFloat32, channels, n);
}

// 1 over the product of a point's differences to the other finite ones: of 0, +-3/4 and +-3/2.
constexpr double kFactor0 = 1 / (kA2 * kB2);
constexpr double kFactorA = 0.5 / (kA2 * kA2 - kA2 * kB2);
constexpr double kFactorB = 0.5 / (kB2 * kB2 - kA2 * kB2);

// One dimension of the transform of weights: three taps to six points.
inline void transform_taps(const double taps[3], double points[6]) {
  constexpr double kAt[5] = {0, kA, -kA, kB, -kB};
  constexpr double kFactor[5] = {kFactor0, kFactorA, kFactorA, kFactorB, kFactorB};
  for (int i = 0; i < 5; ++i) {
    points[i] = (taps[0] + kAt[i] * (taps[1] + kAt[i] * taps[2])) * kFactor[i];
  }
  points[5] = taps[2];
}

void transform_kernel(const float* kernel, double points[6][6]) {
  double rows[3][6];
  for (int y = 0; y < 3; ++y) {
    const double taps[3] = {kernel[3 * y], kernel[3 * y + 1], kernel[3 * y + 2]};
    transform_taps(taps, rows[y]);
  }
  for (int x = 0; x < 6; ++x) {
    const double taps[3] = {rows[0][x], rows[1][x], rows[2][x]};
    double column[6];
    transform_taps(taps, column);
    for (int y = 0; y < 6; ++y) points[y][x] = column[y];
  }
}

int64_t winograd_pack_units(const WinogradWeights& work) { return divide_up(work.n, kColumns); }

size_t winograd_pack_scratch(const WinogradWeights&) { return 0; }

void winograd_pack(const WinogradWeights& work, int64_t first, int64_t last, void*) {
  const int64_t channels = work.channels, n = work.n;
  float* part_at = static_cast<float*>(work.packed);
  const Parts parts = cut(Precision::kFloat32, channels);
  const int64_t padded = round_up(n, kWidth);
  for (int64_t begin = 0; begin < channels; begin += parts.depth) {
    const int64_t depth = at_most(parts.depth, channels - begin);
    for (int64_t panel = first * kColumns; panel < at_most(last * kColumns, padded);
         panel += kColumns) {
      const int64_t columns = at_most(padded - panel, kColumns);
      for (int64_t i = 0; i < depth; ++i) {
        // Whole rows of a panel: those of two points lie a power of two apart and share the cache's
        // lines.
        float rows[kPoints][kColumns] = {};
        for (int64_t c = 0; c < columns && panel + c < n; ++c) {
          double points[6][6];
          transform_kernel(work.weights + ((panel + c) * channels + begin + i) * 9, points);
          for (int point = 0; point < kPoints; ++point) {
            rows[point][c] = static_cast<float>(points[point / 6][point % 6]);
          }
        }
        float* to = part_at + panel * depth + i * columns;
        for (int point = 0; point < kPoints; ++point, to += padded * depth) {
          for (int64_t c = 0; c < columns; ++c) to[c] = rows[point][c];
        }
      }
    }
    part_at += kPoints * padded * depth;
  }
}

// --- transforms of maps ---

// Six pixels in a line to six points.
inline __attribute__((always_inline)) void transform_in(const Vec x[6], Vec points[6]) {
  const Vec even_a = x[4] - kB2 * x[2], odd_a = x[3] - kB2 * x[1];
  const Vec even_b = x[4] - kA2 * x[2], odd_b = x[3] - kA2 * x[1];
  points[0] = x[4] - (kA2 + kB2) * x[2] + (kA2 * kB2) * x[0];
  points[1] = even_a + kA * odd_a;
  points[2] = even_a - kA * odd_a;
  points[3] = even_b + kB * odd_b;
  points[4] = even_b - kB * odd_b;
  points[5] = x[5] - (kA2 + kB2) * x[3] + (kA2 * kB2) * x[1];
}

// Six points to four pixels.
inline __attribute__((always_inline)) void transform_out(const Vec points[6], Vec x[4]) {
  const Vec sum_a = points[1] + points[2], difference_a = points[1] - points[2];
  const Vec sum_b = points[3] + points[4], difference_b = points[3] - points[4];
  x[0] = points[0] + sum_a + sum_b;
  x[1] = kA * difference_a + kB * difference_b;
  x[2] = kA2 * sum_a + kB2 * sum_b;
  x[3] = kA2 * kA * difference_a + kB2 * kB * difference_b + points[5];
}

// --- tiles ---

struct TileGrid {
  int64_t y, x;  // tiles of an image
};

struct TilePlace {
  int64_t image, y, x;  // of the first output
};

inline TilePlace place(const TileGrid& grid, int64_t tile) {
  return {tile / grid.x / grid.y, tile / grid.x % grid.y * 4, tile % grid.x * 4};
}

// A square of size x size pixels from `corner` on to its 36 points, of all channels. `read` is done
// to each pixel, `line` is one dimension of the transform, and `to(channel)` is the place of the
// first point, with `stride` floats to the next. `zeros` [channels] are read for pixels outside.
template <int size, class Map, class Read, class Line, class To>
void transform_tile(const Map& map, const TilePlace& corner, const float* zeros, Read read,
                    Line line, To to, int64_t stride) {
  const float* pixels[size][size];
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) {
      const int64_t y = corner.y + i;
      const int64_t x = corner.x + j;
      const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
      pixels[i][j] = inside ? map.in + corner.image * map.in_strides.image +
                                  y * map.in_strides.row + x * map.in_strides.pixel
                            : zeros;
    }
  }
  const auto transform = [&](int64_t channel, auto load_from, auto store_to) {
    float* first = to(channel);
    Vec columns[6][size];
    for (int j = 0; j < size; ++j) {
      Vec x[size], points[6];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) x[i] = read(load_from(pixels[i][j] + channel));
      line(x, points);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) columns[i][j] = points[i];
    }
    for (int i = 0; i < 6; ++i) {
      Vec points[6];
      line(columns[i], points);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) store_to(first + (6 * i + j) * stride, points[j]);
    }
  };
  int64_t channel = 0;
  for (; channel + kWidth <= map.channels; channel += kWidth) {
    transform(
        channel, [](const float* from) { return load(from); },
        [](float* at, Vec v) { store(at, v); });
  }
  const int64_t lanes = map.channels - channel;
  if (lanes > 0) {
    transform(
        channel, [lanes](const float* from) { return load_first(from, lanes); },
        [lanes](float* at, Vec v) { store_first(at, v, lanes); });
  }
}

// --- blocks of tiles ---

// A unit is a tile. A call does so many panels of kRows at a time that what is between the
// transforms takes half the memory of the weights: more would move it further out of the caches,
// and fewer would read the weights more often.
int64_t panels_at_a_time(const Winograd& w) {
  const int64_t panels = w.channels * w.n / (2 * (w.channels + w.n)) / kRows;
  return panels < 4 ? 4 : at_most(panels, FloatProduct::kBlock);
}

// Words of the left factors of one point: a line more than its rows, or all points would fall into
// the same sets of the cache.
constexpr int64_t kPointWords = kRows * kDepth + 16;

struct TilePlan {
  Parts parts;  // of the channels
  TileGrid grid;
  int64_t num_tiles;
  int64_t block;       // panels of tiles at a time, at most
  int64_t num_panels;  // of the weights
  int64_t left_bytes, tile_bytes, zero_bytes;
};

TilePlan plan(const Winograd& w) {
  TilePlan p;
  p.parts = cut(Precision::kFloat32, w.channels);
  p.grid = {divide_up(w.height, 4), divide_up(w.width, 4)};
  p.num_tiles = w.batch * p.grid.y * p.grid.x;
  p.num_panels = divide_up(w.n, kColumns);
  p.block = at_most(divide_up(p.num_tiles, kRows), panels_at_a_time(w));
  p.left_bytes = p.block * p.parts.count * kPoints * kPointWords * 4;
  p.tile_bytes = p.block * p.num_panels * kPoints * kTile * 4;
  p.zero_bytes = w.channels * 4;
  return p;
}

int64_t units(const Winograd& w) { return plan(w).num_tiles; }

int64_t block(const Winograd& w) { return panels_at_a_time(w) * kRows; }

size_t scratch(const Winograd& w) {
  const TilePlan p = plan(w);
  return static_cast<size_t>(p.left_bytes + p.tile_bytes + p.zero_bytes);
}

// The 36 products' left rows of one tile. `left` is its row of the first point and part, and
// `zeros` [channels] are read for pixels outside.
void transform_tile_in(const Winograd& w, const TilePlan& p, const TilePlace& tile,
                       const float* zeros, float* left) {
  const auto to = [&](int64_t channel) {
    const int64_t part = channel / p.parts.depth;
    return left + part * kPoints * kPointWords + channel - part * p.parts.depth;
  };
  const auto read = [&](Vec x) { return w.load_relu ? relu(x) : x; };
  transform_tile<6>(w, {tile.image, tile.y - 1, tile.x - 1}, zeros, read, transform_in, to,
                    kPointWords);
}

// One tile of the output, columns [column, column + lanes). `sums` is its row of the first point.
void transform_tile_out(const Winograd& w, const TilePlace& tile, const float* sums, int64_t column,
                        int64_t lanes) {
  const auto read = [lanes](const float* from) {
    return lanes == kWidth ? load(from) : load_first(from, lanes);
  };
  Vec rows[4][6];
  for (int j = 0; j < 6; ++j) {
    Vec points[6], x[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) points[i] = load(sums + (6 * i + j) * kTile);
    transform_out(points, x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) rows[i][j] = x[i];
  }
  const Vec bias = w.bias != nullptr ? read(w.bias + column) : Vec{};
  for (int64_t i = 0; i < at_most(w.height - tile.y, 4); ++i) {
    Vec outs[4];
    transform_out(rows[i], outs);
    for (int64_t j = 0; j < at_most(w.width - tile.x, 4); ++j) {
      const auto offset = [&](const Strides& s) {
        return tile.image * s.image + (tile.y + i) * s.row + (tile.x + j) * s.pixel + column;
      };
      Vec x = outs[j] + bias;
      if (w.relu) x = relu(x);
      if (w.add != nullptr) {
        const Vec add = read(w.add + offset(w.add_strides));
        x += w.add_relu ? relu(add) : add;
      }
      float* to = w.out + offset(w.out_strides);
      if (lanes == kWidth) {
        store(to, x);
      } else {
        store_first(to, x, lanes);
      }
    }
  }
}

// Tiles [first, first + count), of at most `block` panels. `left` is [panels, parts, 36,
// kPointWords] and `tiles` [panels, panels of the weights, 36, kTile].
void run_tiles(const Winograd& w, const TilePlan& p, int64_t first, int64_t count, Word* left,
               Word* tiles, const float* zeros) {
  const int64_t panels = divide_up(count, kRows);
  const int64_t panel_words = p.parts.count * kPoints * kPointWords;
  const auto first_tile = [&](int64_t panel) {
    return first_row<FloatProduct>(count, panels, panel);
  };
  for (int64_t i = 0; i < panels; ++i) {
    for (int64_t tile = first_tile(i); tile < first_tile(i + 1); ++tile) {
      transform_tile_in(
          w, p, place(p.grid, first + tile), zeros,
          reinterpret_cast<float*>(left + i * panel_words + (tile - first_tile(i)) * kDepth));
    }
  }
  const Word* right = static_cast<const Word*>(w.weights);
  for (int64_t part = 0; part < p.parts.count; ++part) {
    const int64_t depth = at_most(p.parts.depth, p.parts.words - part * p.parts.depth);
    for (int64_t point = 0; point < kPoints; ++point) {
      const Word* point_left = left + (part * kPoints + point) * kPointWords;
      for (int64_t j = 0; j < p.num_panels; ++j) {
        const int64_t columns = at_most(round_up(w.n, kWidth) - j * kColumns, kColumns);
        const bool more = j + 1 < p.num_panels || point + 1 < kPoints;
        const Word* next = more ? right + depth * columns : right;
        for (int64_t i = 0; i < panels; ++i) {
          const Multiply multiply_tile =
              choose_multiply<FloatProduct>(first_tile(i + 1) - first_tile(i), columns);
          multiply_tile(point_left + i * panel_words, right, depth, part > 0,
                        tiles + ((i * p.num_panels + j) * kPoints + point) * kTile,
                        next + i * depth * columns / panels);
        }
        right += depth * columns;
      }
    }
  }
  for (int64_t i = 0; i < panels; ++i) {
    for (int64_t tile = first_tile(i); tile < first_tile(i + 1); ++tile) {
      const Word* row =
          tiles + i * p.num_panels * kPoints * kTile + (tile - first_tile(i)) * kColumns;
      for (int64_t column = 0; column < w.n; column += kWidth) {
        const Word* sums = row + column / kColumns * kPoints * kTile + column % kColumns;
        transform_tile_out(w, place(p.grid, first + tile), reinterpret_cast<const float*>(sums),
                           column, at_most(w.n - column, kWidth));
      }
    }
  }
}

void run(const Winograd& w, int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  const TilePlan p = plan(w);
  char* at = static_cast<char*>(scratch);
  Word* left = reinterpret_cast<Word*>(at);
  Word* tiles = reinterpret_cast<Word*>(at + p.left_bytes);
  float* zeros = reinterpret_cast<float*>(at + p.left_bytes + p.tile_bytes);
  for (int64_t i = 0; i < w.channels; ++i) zeros[i] = 0;

  const int64_t blocks = divide_up(end - begin, p.block * kRows);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = begin + (end - begin) * block / blocks;
    const int64_t last = begin + (end - begin) * (block + 1) / blocks;
    run_tiles(w, p, first, last - first, left, tiles, zeros);
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
