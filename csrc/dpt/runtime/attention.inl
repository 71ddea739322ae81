// csrc/dpt/runtime/attention.inl -- softmax(q k^T) v, one block of queries of one head at a time.
//
// Queries lie in the lanes of vectors: scores are kept as [keys, queries] and outputs as
// [head_dim, queries]. So the maxima and sums of the softmax need no exchange between lanes, and
// keys and values are broadcast number by number as they come; neither is transposed. Scores of a
// block of keys stay in the first level of cache, where they become weights by an online softmax
// (Milakov and Gimelshein, 2018).
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "dpt/runtime/kernels.h"
#include "dpt/runtime/simd.inl"

namespace dpt::runtime::DPT_ISA {
namespace {
namespace attention {

// A tile of a product is kRows x (kVectors * kWidth) numbers, in registers.
constexpr int64_t kRows = kWidth == 16 ? 8 : 4;
constexpr int64_t kVectors = 3;
constexpr int64_t kMaxQueries = 192;  // of a unit
constexpr int64_t kMaxKeys = 256;     // of a block
// Below every score, and finite also as a power of two.
constexpr float kLowest = -1e38F;
constexpr float kLog2E = 1.44269504F;

// How a head is cut: its queries, by vectors of kWidth, into units of about the same number; its
// keys likewise into blocks.
struct Plan {
  explicit Plan(const Attention& work)
      : query_vectors(divide_up(work.tokens, kWidth)),
        query_blocks(divide_up(query_vectors * kWidth, kMaxQueries)),
        max_query_vectors(divide_up(query_vectors, query_blocks)),
        key_blocks(divide_up(work.tokens, kMaxKeys)),
        max_keys(round_up(divide_up(work.tokens, key_blocks), kRows)),
        dim(round_up(work.head_dim, kRows)) {}

  int64_t query_vectors, query_blocks, max_query_vectors;
  int64_t key_blocks, max_keys;
  int64_t dim;  // head_dim with padding
};

// What one unit works on. Tiles of queries follow one another in `queries` and `out`; each is
// [head_dim, lanes of the tile].
struct Buffers {
  Buffers(const Plan& plan, float* scratch) : memory{scratch} {
    const int64_t lanes = plan.max_query_vectors * kWidth;
    queries = memory.take(plan.dim * lanes);
    out = memory.take(plan.dim * lanes);
    most = memory.take(lanes);
    sum = memory.take(lanes);
    scores = memory.take(plan.max_keys * kVectors * kWidth);
    keys = memory.take(plan.key_blocks * plan.max_keys * plan.dim);
    values = memory.take(plan.key_blocks * plan.max_keys * plan.dim);
  }

  Scratch<float> memory;
  float *queries, *out;
  float *most, *sum;  // per query: the greatest score until now, and the sum of weights
  float* scores;      // [keys, lanes of the tile]
  // Of the head, block by block: packed once for the units of one call that share it.
  float* keys;    // [keys, dim]
  float* values;  // [dim / kRows, keys, kRows], with an even number of keys
};

// 2^x for x that is no greater than about 0: relative error 1.7e-7, and 0 below 2^-126.
inline Vec power_of_two(Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits; 127 makes it the
  // exponent of a float.
  const Vec shifted = x + (12582912.0F + 127.0F);
  const Vec fraction = x - (shifted - (12582912.0F + 127.0F));
  Vec p = broadcast(0.00132647272F);
  p = p * fraction + 0.00967151269F;
  p = p * fraction + 0.0555073374F;
  p = p * fraction + 0.240222421F;
  p = p * fraction + 0.693146978F;
  p = p * fraction + 1.0F;
  const auto power = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(shifted) << 23);
  return select(x < broadcast(-126.0F), Vec{}, p * power);
}

// --- bfloat16 ---

inline Vec round_to_bfloat16(Vec x) { return reinterpret_cast<Vec>(to_bfloat16(x)); }
// Two numbers in one lane.
inline Vec pair_of(Vec first, Vec second) {
  return reinterpret_cast<Vec>(to_bfloat16(first) >> 16 | to_bfloat16(second));
}

// --- products ---

// What is multiplied: a float32; a float32 that was rounded to bfloat16; or two bfloat16 that share
// a lane, and of which the products are added.
struct Float32 {
  static constexpr bool kRounded = false, kPairs = false;
  static Vec multiply_add(float left, Vec right, Vec sum) { return sum + broadcast(left) * right; }
};
struct Rounded : Float32 {
  static constexpr bool kRounded = true;
};
#if defined(__AVX512F__)
struct Pairs {
  static constexpr bool kRounded = true, kPairs = true;
  [[gnu::target("avx512bf16")]] static Vec multiply_add(float left, Vec right, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_ps(left)),
                            reinterpret_cast<__m512bh>(right));
  }
};
#endif

// sums += left . right over `depth`: `left` has element (row, i) at row * left_row + i * left_step,
// `right` is [depth, kCount * kWidth].
template <class Product, int kCount>
[[gnu::always_inline]] inline void multiply(const float* left, int64_t left_row, int64_t left_step,
                                            const float* right, int64_t depth,
                                            Vec (&sums)[kRows][kCount]) {
  for (int64_t i = 0; i < depth; ++i) {
    Vec from[kCount];
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) from[v] = load(right + v * kWidth);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) {
        sums[row][v] = Product::multiply_add(left[row * left_row], from[v], sums[row][v]);
      }
    }
    left += left_step;
    right += kCount * kWidth;
  }
}

// A block of keys and one tile of queries.
struct Tile {
  const float *keys, *values;
  int64_t num_keys, dim;
  const float* queries;
  float *scores, *out, *most, *sum;
};

template <class Product, int kCount>
[[gnu::always_inline]] inline void attend_tile(const Tile& tile) {
  constexpr int64_t kLanes = kCount * kWidth;
  // A pair is of two that lie half of the numbers apart.
  const int64_t depth = Product::kPairs ? tile.dim / 2 : tile.dim;
  const int64_t num_keys = tile.num_keys, half = divide_up(num_keys, 2);
  const int64_t rows = Product::kPairs ? half : num_keys;
  const int64_t value_rows = Product::kPairs ? half : 2 * half;
  float *const scores = tile.scores, *const most = tile.most, *const sum = tile.sum;
  Vec before[kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) before[v] = load(most + v * kWidth) * kLog2E;

  for (int64_t key = 0; key < num_keys; key += kRows) {
    Vec sums[kRows][kCount] = {};
    multiply<Product, kCount>(tile.keys + key * depth, depth, 1, tile.queries, depth, sums);
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) {
      Vec greatest = load(most + v * kWidth);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        store(scores + (key + row) * kLanes + v * kWidth, sums[row][v]);
        greatest = max(sums[row][v], greatest);
      }
      store(most + v * kWidth, greatest);
    }
  }

  Vec origin[kCount], keep[kCount], total[kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) {
    origin[v] = load(most + v * kWidth) * kLog2E;
    keep[v] = power_of_two(before[v] - origin[v]);
    total[v] = load(sum + v * kWidth) * keep[v];
  }
  for (int64_t key = 0; key < rows; ++key) {
    float* row = scores + key * kLanes;
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v, row += kWidth) {
      Vec weight = power_of_two(load(row) * kLog2E - origin[v]);
      total[v] += weight;
      if constexpr (Product::kPairs) {
        Vec other = {};
        if (key + half < num_keys) {
          other = power_of_two(load(row + half * kLanes) * kLog2E - origin[v]);
        }
        total[v] += other;
        weight = pair_of(weight, other);
      } else if constexpr (Product::kRounded) {
        weight = round_to_bfloat16(weight);
      }
      store(row, weight);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) store(sum + v * kWidth, total[v]);

  for (int64_t d = 0; d < tile.dim; d += kRows) {
    float* out = tile.out + d * kLanes;
    Vec sums[kRows][kCount];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) {
        sums[row][v] = load(out + row * kLanes + v * kWidth) * keep[v];
      }
    }
    multiply<Product, kCount>(tile.values + d * value_rows, 1, kRows, scores, rows, sums);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) store(out + row * kLanes + v * kWidth, sums[row][v]);
    }
  }
}

template <class Product, int kCount>
[[gnu::noinline]] void attend(const Tile& tile) {
  attend_tile<Product, kCount>(tile);
}
#if defined(__AVX512F__)
template <int kCount>
[[gnu::noinline, gnu::target("avx512bf16")]] void attend_pairs(const Tile& tile) {
  attend_tile<Pairs, kCount>(tile);
}
#endif

// How one call computes, and in what form it packs.
struct Method {
  bool rounded, pairs;
  void (*attend[kVectors])(const Tile&);  // one to kVectors vectors of queries
};

template <bool pairs>
Method method_of(Precision precision) {
  if (precision != Precision::kBFloat16) {
    return {false, false, {attend<Float32, 1>, attend<Float32, 2>, attend<Float32, 3>}};
  }
#if defined(__AVX512F__)
  if constexpr (pairs) return {true, true, {attend_pairs<1>, attend_pairs<2>, attend_pairs<3>}};
#endif
  return {true, false, {attend<Rounded, 1>, attend<Rounded, 2>, attend<Rounded, 3>}};
}

// --- packing ---

// Rows are far from one another and short, so that the processor does not foresee them.
constexpr int64_t kAhead = 8;
inline void prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

// to [columns, rows] from [rows, columns].
inline void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to,
                      int64_t to_row) {
  using Four = float __attribute__((vector_size(16)));
  using UnalignedFour = float __attribute__((vector_size(16), aligned(4), may_alias));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t next = r + 4; next < r + 8 && next < rows; ++next) {
      prefetch(from + next * from_row, columns);
    }
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Four row[4], half[4];
      for (int i = 0; i < 4; ++i) {
        row[i] = *reinterpret_cast<const UnalignedFour*>(from + (r + i) * from_row + c);
      }
      for (int i = 0; i < 2; ++i) {
        half[i] = __builtin_shufflevector(row[i], row[i + 2], 0, 4, 1, 5);
        half[i + 2] = __builtin_shufflevector(row[i], row[i + 2], 2, 6, 3, 7);
      }
      for (int i = 0; i < 4; ++i) {
        const Four a = half[i / 2 * 2], b = half[i / 2 * 2 + 1];
        *reinterpret_cast<UnalignedFour*>(to + (c + i) * to_row + r) =
            i % 2 == 0 ? __builtin_shufflevector(a, b, 0, 4, 1, 5)
                       : __builtin_shufflevector(a, b, 2, 6, 3, 7);
      }
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to[c * to_row + r + i] = from[(r + i) * from_row + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
  }
}

// Brings rows of 2 * half numbers to the form that they are multiplied in, in place: they are
// rounded, or made rows of half as many pairs.
inline void convert(const Method& method, float* data, int64_t rows, int64_t half) {
  const auto pair_one = [](float first, float second) {
    return pair_of(broadcast(first), broadcast(second))[0];
  };
  if (method.pairs) {
    for (int64_t row = 0; row < rows; ++row) {
      const float* from = data + row * 2 * half;
      float* to = data + row * half;
      int64_t i = 0;
      for (; i + kWidth <= half; i += kWidth) {
        store(to + i, pair_of(load(from + i), load(from + half + i)));
      }
      for (; i < half; ++i) to[i] = pair_one(from[i], from[half + i]);
    }
  } else if (method.rounded) {
    const int64_t count = rows * 2 * half;
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) store(data + i, round_to_bfloat16(load(data + i)));
    for (; i < count; ++i) data[i] = round_to_bfloat16(broadcast(data[i]))[0];
  }
}

// The last key is repeated up to a whole tile: the maximum of scores is the same with it.
inline void pack_keys(const float* from, int64_t from_row, int64_t keys, int64_t head_dim,
                      int64_t dim, float* to) {
  const int64_t padded = round_up(keys, kRows);
  for (int64_t key = 0; key < padded; ++key, to += dim) {
    const float* row = from + (key < keys ? key : keys - 1) * from_row;
    if (key + kAhead < keys) prefetch(row + kAhead * from_row, head_dim);
    for (int64_t d = 0; d < head_dim; ++d) to[d] = row[d];
    for (int64_t d = head_dim; d < dim; ++d) to[d] = 0;
  }
}

inline void pack_values(const float* from, int64_t from_row, int64_t keys, int64_t head_dim,
                        int64_t dim, float* to) {
  const int64_t padded = round_up(keys, 2);
  for (int64_t key = 0; key < keys; ++key) {
    const float* row = from + key * from_row;
    if (key + kAhead < keys) prefetch(row + kAhead * from_row, head_dim);
    float* group = to + key * kRows;
    int64_t d = 0;
    for (; d + kRows <= head_dim; d += kRows, group += padded * kRows) {
      for (int i = 0; i < kRows; ++i) group[i] = row[d + i];
    }
    if (d == head_dim) continue;
    for (int i = 0; i < kRows; ++i) group[i] = d + i < head_dim ? row[d + i] : 0;
  }
  if (keys == padded) return;
  for (int64_t d = 0; d < dim; d += kRows) {
    for (int i = 0; i < kRows; ++i) to[d * padded + keys * kRows + i] = 0;
  }
}

// Of `left` vectors, how many the next tile takes: never one alone where two and two do.
inline int64_t tile_vectors(int64_t left) {
  return left == 4 ? 2 : left < kVectors ? left : kVectors;
}

// The keys of block b are first_key(b) to first_key(b + 1).
inline int64_t first_key(const Attention& work, const Plan& plan, int64_t block) {
  return work.tokens * block / plan.key_blocks;
}

inline void pack_head(const Attention& work, const Plan& plan, const Method& method, int64_t image,
                      int64_t head, const Buffers& at) {
  const int64_t dim = work.head_dim, width = work.heads * dim, row = 3 * width;
  const float* in = work.qkv + image * work.tokens * row + head * dim;
  for (int64_t b = 0; b < plan.key_blocks; ++b) {
    const int64_t key = first_key(work, plan, b), keys = first_key(work, plan, b + 1) - key;
    const int64_t place = b * plan.max_keys * plan.dim;
    pack_keys(in + width + key * row, row, keys, dim, plan.dim, at.keys + place);
    pack_values(in + 2 * width + key * row, row, keys, dim, plan.dim, at.values + place);
    convert(method, at.keys + place, round_up(keys, kRows), plan.dim / 2);
    convert(method, at.values + place, plan.dim / kRows, round_up(keys, 2) / 2 * kRows);
  }
}

// One block of queries.
inline void run_block(const Attention& work, const Plan& plan, const Method& method, int64_t image,
                      int64_t head, int64_t block, const Buffers& at) {
  const int64_t dim = work.head_dim, width = work.heads * dim, row = 3 * width;
  const float* in = work.qkv + image * work.tokens * row + head * dim;
  const int64_t first = plan.query_vectors * block / plan.query_blocks * kWidth;
  const int64_t last = plan.query_vectors * (block + 1) / plan.query_blocks * kWidth;
  const int64_t vectors = (last - first) / kWidth;

  for (int64_t i = 0; i < plan.dim * (last - first); ++i) at.queries[i] = at.out[i] = 0;
  for (int64_t i = 0; i < last - first; ++i) {
    at.most[i] = kLowest;
    at.sum[i] = 0;
  }
  // A tile's queries that there are.
  const auto count = [&](int64_t query, int64_t lanes) {
    return query + lanes <= work.tokens ? lanes : work.tokens - query;
  };
  for (int64_t v = 0, n; v < vectors; v += n) {
    n = tile_vectors(vectors - v);
    const int64_t query = first + v * kWidth;
    float* tile = at.queries + v * kWidth * plan.dim;
    transpose(in + query * row, row, count(query, n * kWidth), dim, tile, n * kWidth);
    convert(method, tile, 1, plan.dim / 2 * n * kWidth);
  }

  for (int64_t b = 0; b < plan.key_blocks; ++b) {
    const int64_t keys = first_key(work, plan, b + 1) - first_key(work, plan, b);
    const int64_t place = b * plan.max_keys * plan.dim;
    for (int64_t v = 0, n; v < vectors; v += n) {
      n = tile_vectors(vectors - v);
      const int64_t lane = v * kWidth;
      method.attend[n - 1]({at.keys + place, at.values + place, keys, plan.dim,
                            at.queries + lane * plan.dim, at.scores, at.out + lane * plan.dim,
                            at.most + lane, at.sum + lane});
    }
  }

  for (int64_t v = 0, n; v < vectors; v += n) {
    n = tile_vectors(vectors - v);
    const int64_t query = first + v * kWidth, lanes = n * kWidth;
    float* tile = at.out + v * kWidth * plan.dim;
    for (int64_t lane = 0; lane < lanes; lane += kWidth) {
      const Vec scale = 1.0F / load(at.sum + v * kWidth + lane);
      for (int64_t d = 0; d < dim; ++d) {
        store(tile + d * lanes + lane, load(tile + d * lanes + lane) * scale);
      }
    }
    transpose(tile, lanes, dim, count(query, lanes),
              work.out + (image * work.tokens + query) * width + head * dim, width);
  }
}

}  // namespace attention

int64_t block(const Attention& work) { return attention::Plan(work).query_blocks; }

int64_t units(const Attention& work) {
  if (work.tokens == 0) return 0;
  return work.batch * work.heads * attention::Plan(work).query_blocks;
}

size_t scratch(const Attention& work) {
  if (work.tokens == 0) return 0;
  return attention::Buffers(attention::Plan(work), nullptr).memory.count * sizeof(float);
}

// `pairs`: with instructions for bfloat16.
template <bool pairs>
void run_attention(const Attention& work, int64_t begin, int64_t end, void* scratch) {
  if (begin == end) return;
  const attention::Plan plan(work);
  const attention::Method method = attention::method_of<pairs>(work.precision);
  const attention::Buffers at(plan, static_cast<float*>(scratch));
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t head = unit / plan.query_blocks, image = head / work.heads;  // of all images
    if (head != packed) attention::pack_head(work, plan, method, image, head % work.heads, at);
    packed = head;
    attention::run_block(work, plan, method, image, head % work.heads, unit % plan.query_blocks,
                         at);
  }
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
