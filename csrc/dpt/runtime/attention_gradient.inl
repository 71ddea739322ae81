// csrc/dpt/runtime/attention_gradient.inl -- gradient of softmax(s q k^T) v of bfloat16 in the
// tiles of AMX, head by head. With P the weights and dO the gradient of the output
//   dP = dO v^T,  dS = P * (dP - rows' sums of dO * O),  dq = s dS k,  dk = s dS^T q,  dv = P^T dO.
//
// P is made again from the scores and the logsumexp of the forward pass, and for dk and dv once
// more with keys in rows. So neither P nor dS is transposed, and each panel of rows is done when it
// is left.
#pragma once

#include "dpt/runtime/attention_tiles.inl"
#include "dpt/runtime/matrices.inl"

#if defined(__AVX512F__)

namespace dpt::runtime::DPT_ISA {
namespace {
namespace attention_gradient {

using Product = TiledBFloat16Product;
constexpr int64_t kPanel = Product::kPanel;

// The queries of a head and dO, or its keys and values; both [tokens, head_dim].
struct Side {
  Factor first{}, second{};
  // P = 2^(scores - origins), dS = P * (dP - deltas): what tokens of this side add to either one.
  const float* origins = nullptr;
  const float* deltas = nullptr;
};

// What a call works on.
struct Buffers {
  Buffers(const AttentionGradient& work, Word* scratch)
      : memory{scratch},
        tokens(round_up(work.tokens, kColumns)),
        dim(round_up(work.head_dim, kColumns)) {
    first_across = memory.take(tokens * dim / 2);
    second_across = memory.take(tokens * dim / 2);
    first_along = memory.take(tokens * dim / 2);
    second_along = memory.take(tokens * dim / 2);
    rows = memory.take(kPanel * dim / 2);
    weights = memory.take(kPanel * tokens);
    grads = memory.take(kPanel * tokens);
    out = memory.take(kPanel * dim);
    origins = reinterpret_cast<float*>(memory.take(tokens));
    deltas = reinterpret_cast<float*>(memory.take(tokens));
    none = reinterpret_cast<float*>(memory.take(tokens));
    padding = reinterpret_cast<float*>(memory.take(tokens));
  }

  Scratch<int32_t> memory;
  int64_t tokens, dim;  // with padding to whole panels, which is zeros
  // Of the side in columns, in panels of kColumns: tokens by pairs of channels, and channels by
  // pairs of tokens.
  Word *first_across, *second_across, *first_along, *second_along;
  Word* rows;               // [kPanel, dim / 2]
  Word *weights, *grads;    // [kPanel, tokens] float32, then half of each row bfloat16
  Word* out;                // [kPanel, dim]
  float *origins, *deltas;  // of queries
  float *none, *padding;    // of keys: zeros; and zeros, but for columns that are no keys
};

// A score so far below all others that its weight is zero.
constexpr float kNoToken = 1e30F;

inline Factor turned(Factor factor) {
  factor.across = !factor.across;
  return factor;
}

// [rows, k], in panels of kColumns rows.
inline void pack_columns(const Factor& factor, int64_t rows, int64_t k, Word* to) {
  const int64_t words = round_up(k, kColumns) / 2;
  matrices::Square square;
  for (int64_t row = 0; row < round_up(rows, kColumns); row += kTileRows) {
    for (int64_t word = 0; word < words; word += kTileWords) {
      matrices::read<false>(factor, rows, k, row, word, square);
      Word* at = to + (row / kColumns * words + word) * kColumns + row % kColumns;
      for (int i = 0; i < kTileWords; ++i) store_words(at + i * kColumns, square.vectors[i]);
    }
  }
}

// sums [kPanel, columns] = left [kPanel, 2 * words] . right, which pack_columns made.
inline void multiply(int64_t count, Left left, const Word* right, int64_t words, Sums sums,
                     int64_t columns) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    const Word* panel = right + column * words;
    multiply_tiles<Product, kVectors>(count, left, panel, words, false,
                                      {sums.data + column, sums.row_words}, panel);
  }
}

// The product of a panel of rows from `row` on, `factor`, and `columns`.
inline void multiply_rows(const AttentionGradient& work, const Factor& factor, int64_t row,
                          int64_t count, const Word* columns, Word* sums, const Buffers& at) {
  matrices::Square square;
  for (int64_t i = 0; i < kPanel; i += kTileRows) {
    for (int64_t word = 0; word < at.dim / 2; word += kTileWords) {
      matrices::read<true>(factor, work.tokens, work.head_dim, row + i, word, square);
      Word* to = at.rows + i * at.dim / 2 + word;
      for (int r = 0; r < kTileRows; ++r) store_words(to + r * at.dim / 2, square.vectors[r]);
    }
  }
  multiply(count, {at.rows, at.dim / 2}, columns, at.dim / 2, {sums, at.tokens}, at.tokens);
}

// A row of scores and one of dP become P and dS, of bfloat16.
inline void differentiate(Word* scores, Word* grads, int64_t count, float scale, float origin,
                          float delta, const Side& columns) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec weight = attention_tiles::power_of_two(load_floats(scores + i) * scale -
                                                     (load(columns.origins + i) + origin));
    const Vec grad = weight * (load_floats(grads + i) - (load(columns.deltas + i) + delta));
    store_bfloat16(scores + i / 2, weight);
    store_bfloat16(grads + i / 2, grad);
  }
}

// Writes left . columns * scale for tokens [row, row + count) to `to`, of which the first token is
// given.
inline void write(const AttentionGradient& work, const Word* left, const Word* columns, float scale,
                  int64_t row, int64_t count, uint16_t* to, int64_t stride, const Buffers& at) {
  multiply(count, {left, at.tokens}, columns, at.tokens / 2, {at.out, at.dim}, at.dim);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < work.head_dim; d += kColumns) {
      const Word* from = at.out + i * at.dim + d;
      matrices::store_halves(to + (row + i) * stride + d, load_floats(from) * scale,
                             load_floats(from + kWidth) * scale,
                             at_most(work.head_dim - d, kColumns));
    }
  }
}

// Gradients of what the rows are: of `first`, and of `second` if that is not null. They lie as
// `first` does.
inline void run_side(const AttentionGradient& work, const Side& rows, const Side& columns,
                     uint16_t* grad_first, uint16_t* grad_second, const Buffers& at) {
  const int64_t tokens = work.tokens, dim = work.head_dim;
  pack_columns(columns.first, tokens, dim, at.first_across);
  pack_columns(columns.second, tokens, dim, at.second_across);
  pack_columns(turned(columns.first), dim, tokens, at.first_along);
  if (grad_second != nullptr) pack_columns(turned(columns.second), dim, tokens, at.second_along);
  const int64_t stride = 3 * work.heads * dim;
  for (int64_t row = 0; row < tokens; row += kPanel) {
    const int64_t count = at_most(tokens - row, kPanel);
    multiply_rows(work, rows.first, row, count, at.first_across, at.weights, at);
    multiply_rows(work, rows.second, row, count, at.second_across, at.grads, at);
    for (int64_t i = 0; i < count; ++i) {
      differentiate(at.weights + i * at.tokens, at.grads + i * at.tokens, at.tokens,
                    work.scale * attention::kLog2E, rows.origins[row + i], rows.deltas[row + i],
                    columns);
    }
    write(work, at.grads, at.first_along, work.scale, row, count, grad_first, stride, at);
    if (grad_second != nullptr) {
      write(work, at.weights, at.second_along, 1, row, count, grad_second, stride, at);
    }
  }
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

int64_t units(const AttentionGradient& work) { return work.batch * work.heads; }

size_t scratch(const AttentionGradient& work) {
  return Buffers(work, nullptr).memory.count * sizeof(Word);
}

void run(const AttentionGradient& work, int64_t begin, int64_t end, void* scratch) {
  if (begin == end) return;
  const Tiles configured;
  const Buffers at(work, static_cast<Word*>(scratch));
  const int64_t width = work.heads * work.head_dim;
  for (int64_t i = 0; i < at.tokens; ++i) {
    at.none[i] = 0;
    at.padding[i] = i < work.tokens ? 0 : kNoToken;
  }
  for (int64_t head = begin; head < end; ++head) {          // of all images
    const int64_t token = head / work.heads * work.tokens;  // the first one of its image
    const int64_t column = head % work.heads * work.head_dim;
    const int64_t packed = token * 3 * width + column, plain = token * width + column;
    const auto factor = [](const uint16_t* data, int64_t stride) {
      return Factor{.data = data, .bfloat16 = true, .stride = stride};
    };
    for (int64_t i = 0; i < at.tokens; ++i) {
      at.origins[i] = kNoToken;
      at.deltas[i] = 0;
      if (i >= work.tokens) continue;
      at.origins[i] = work.logsumexp[head * work.tokens + i] * attention::kLog2E;
      const uint16_t* out = work.out + plain + i * width;
      const uint16_t* grad = work.grad_out + plain + i * width;
      for (int64_t d = 0; d < work.head_dim; ++d) {
        at.deltas[i] += from_bfloat16(out[d]) * from_bfloat16(grad[d]);
      }
    }
    const Side queries{factor(work.qkv + packed, 3 * width), factor(work.grad_out + plain, width),
                       at.origins, at.deltas};
    const Side keys{factor(work.qkv + packed + width, 3 * width),
                    factor(work.qkv + packed + 2 * width, 3 * width), at.padding, at.none};
    uint16_t* grad = work.grad + packed;
    run_side(work, queries, keys, grad, nullptr, at);
    run_side(work, keys, queries, grad + width, grad + 2 * width, at);
  }
}

}  // namespace attention_gradient
}  // namespace
}  // namespace dpt::runtime::DPT_ISA

#endif
