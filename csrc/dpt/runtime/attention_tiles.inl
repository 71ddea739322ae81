// csrc/dpt/runtime/attention_tiles.inl -- softmax(q k^T) v of bfloat16 in the tiles of AMX, a panel
// of queries of one head at a time.
//
// All scores of a panel are kept, [queries, keys], in the L2 cache. The softmax overwrites them by
// weights, which are the left factor of the second product.
#pragma once

#include "dpt/runtime/attention.inl"
#include "dpt/runtime/packing.inl"
#include "dpt/runtime/tiles.inl"

#if defined(__AVX512F__)

namespace dpt::runtime::DPT_ISA {
namespace {
namespace attention_tiles {

constexpr int64_t kPanel = TiledBFloat16Product::kPanel;

// What a call works on, in words.
struct Buffers {
  Buffers(const Attention& work, Word* scratch)
      : memory{scratch},
        keys(round_up(work.tokens, kColumns)),
        dim(round_up(work.head_dim, kColumns)) {
    key_panels = memory.take(keys * dim / 2);
    value_panels = memory.take(keys * dim / 2);
    queries = memory.take(kPanel * dim / 2);
    scores = memory.take(kPanel * keys);
    out = memory.take(kPanel * dim);
  }

  Scratch<int32_t> memory;
  int64_t keys, dim;   // with padding to whole panels, which is zeros
  Word* key_panels;    // of the head: [keys / kColumns, dim / 2, kColumns], pairs of channels
  Word* value_panels;  // of the head: [dim / kColumns, keys / 2, kColumns], pairs of keys
  Word* queries;       // [kPanel, dim / 2]
  Word* scores;        // [kPanel, keys]; weights have half of each row
  Word* out;           // [kPanel, dim]
};

// Sixteen of `count` channels from `at` on, or zeros.
inline Vec load_channels(const float* row, int64_t at, int64_t count) {
  if (at + kWidth <= count) return load(row + at);
  return at < count ? load_first(row + at, count - at) : Vec{};
}

inline void pack_keys(const float* from, int64_t from_row, const Attention& work,
                      const Buffers& at) {
  for (int64_t key = 0; key < at.keys; ++key) {
    Word* to = at.key_panels + key / kColumns * kColumns * at.dim / 2 + key % kColumns;
    for (int64_t d = 0; d < at.dim; d += kWidth) {
      const Vec x =
          key < work.tokens ? load_channels(from + key * from_row, d, work.head_dim) : Vec{};
      Word pairs[kWidth / 2];
      store_bfloat16(pairs, x);
      for (int64_t i = 0; i < kWidth / 2; ++i) to[(d / 2 + i) * kColumns] = pairs[i];
    }
  }
}

inline void pack_values(const float* from, int64_t from_row, const Attention& work,
                        const Buffers& at) {
  const auto row = [&](int64_t key, int64_t d) {
    return key < work.tokens ? load_channels(from + key * from_row, d, work.head_dim) : Vec{};
  };
  for (int64_t key = 0; key < at.keys; key += 2) {
    for (int64_t d = 0; d < at.dim; d += kWidth) {
      Word* to = at.value_panels + d / kColumns * kColumns * at.keys / 2 + key / 2 * kColumns;
      const Vec pairs = attention::pair_of(row(key, d), row(key + 1, d));
      store_words(to + d % kColumns, reinterpret_cast<IntVec>(pairs));
    }
  }
}

// 2^x for x that is no greater than about 0, to 1.1e-4 of it: a nineteenth of what bfloat16 rounds.
inline Vec power_of_two(Vec x) {
  Vec integer, result;
  asm("vrndscaleps $0, %1, %0" : "=v"(integer) : "v"(x));
  const Vec fraction = x - integer;
  Vec p = broadcast(0.05500895F);
  p = p * fraction + 0.24221101F;
  p = p * fraction + 0.69328293F;
  p = p * fraction + 1.0F;
  asm("vscalefps %2, %1, %0" : "=v"(result) : "v"(p), "v"(integer));
  return result;
}

// A row of scores becomes one of weights, of bfloat16 and with zeros behind the last key. Returns
// their sum.
inline float softmax(Word* scores, int64_t keys, int64_t padded) {
  const auto lane = [] {
    IntVec lanes;
    for (int i = 0; i < kWidth; ++i) lanes[i] = i;
    return lanes;
  }();
  const auto scores_at = [&](int64_t i) { return load_floats(scores + i); };
  const int64_t whole = keys / kWidth * kWidth;
  const IntVec rest = lane < static_cast<int32_t>(keys - whole);
  const Vec lowest = broadcast(attention::kLowest);
  Vec most = lowest;
  for (int64_t i = 0; i < whole; i += kWidth) most = max(scores_at(i), most);
  if (whole < keys) most = max(select(rest, scores_at(whole), lowest), most);
  const Vec origin = broadcast(max_of(most) * attention::kLog2E);
  Vec total = {};
  int64_t i = 0;
  for (; i < whole; i += kWidth) {
    const Vec weight = power_of_two(scores_at(i) * attention::kLog2E - origin);
    total += weight;
    store_bfloat16(scores + i / 2, weight);
  }
  for (; i < padded; i += kWidth) {
    Vec weight = {};
    if (i == whole) {
      weight = power_of_two(scores_at(i) * attention::kLog2E - origin);
      weight = select(rest, weight, Vec{});
    }
    total += weight;
    store_bfloat16(scores + i / 2, weight);
  }
  return sum(total);
}

// Queries [first, first + count) of a head.
inline void run_panel(const Attention& work, const float* queries, float* out, int64_t first,
                      int64_t count, const Buffers& at) {
  const int64_t width = work.heads * work.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    const float* row = queries + (first + i) * 3 * width;
    for (int64_t d = 0; d < at.dim; d += kWidth) {
      store_bfloat16(at.queries + (i * at.dim + d) / 2, load_channels(row, d, work.head_dim));
    }
  }
  using Product = TiledBFloat16Product;
  for (int64_t key = 0; key < at.keys; key += kColumns) {
    const Word* panel = at.key_panels + key * at.dim / 2;
    multiply_tiles<Product, kVectors>(count, {at.queries, at.dim / 2}, panel, at.dim / 2, false,
                                      {at.scores + key, at.keys}, panel);
  }
  float sums[kPanel];
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = softmax(at.scores + i * at.keys, work.tokens, at.keys);
  }
  for (int64_t d = 0; d < at.dim; d += kColumns) {
    const Word* panel = at.value_panels + d * at.keys / 2;
    multiply_tiles<Product, kVectors>(count, {at.scores, at.keys}, panel, at.keys / 2, false,
                                      {at.out + d, at.dim}, panel);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float scale = 1 / sums[i];
    const FloatWord* from = reinterpret_cast<const FloatWord*>(at.out + i * at.dim);
    float* to = out + (first + i) * width;
    for (int64_t d = 0; d < work.head_dim; ++d) to[d] = from[d] * scale;
  }
}

int64_t panels(const Attention& work) { return divide_up(work.tokens, kPanel); }

int64_t units(const Attention& work) {
  if (work.precision != Precision::kBFloat16) return DPT_ISA::units(work);
  return work.batch * work.heads * panels(work);
}

int64_t block(const Attention& work) {
  return work.precision == Precision::kBFloat16 ? panels(work) : DPT_ISA::block(work);
}

size_t scratch(const Attention& work) {
  if (work.precision != Precision::kBFloat16) return DPT_ISA::scratch(work);
  return Buffers(work, nullptr).memory.count * sizeof(Word);
}

void run(const Attention& work, int64_t begin, int64_t end, void* scratch) {
  if (work.precision != Precision::kBFloat16)
    return run_attention<false>(work, begin, end, scratch);
  if (begin == end) return;
  const Tiles configured;
  const Buffers at(work, static_cast<Word*>(scratch));
  const int64_t width = work.heads * work.head_dim;
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t head = unit / panels(work);               // of all images
    const int64_t token = head / work.heads * work.tokens;  // the first one of its image
    const int64_t column = head % work.heads * work.head_dim;
    const float* qkv = work.qkv + token * 3 * width + column;
    float* out = work.out + token * width + column;
    if (head != packed) {
      pack_keys(qkv + width, 3 * width, work, at);
      pack_values(qkv + 2 * width, 3 * width, work, at);
      packed = head;
    }
    const int64_t first = unit % panels(work) * kPanel;
    run_panel(work, qkv, out, first, at_most(work.tokens - first, kPanel), at);
  }
}

}  // namespace attention_tiles
}  // namespace
}  // namespace dpt::runtime::DPT_ISA

#endif
