// csrc/dpt/encoder/vit.h -- the Vision Transformer encoder (Dosovitskiy et al. 2021) and its
// distilled form (DeiT, Touvron et al. 2021): image -> the tokens after some of its blocks.
#pragma once

#include "dpt/layers.h"

namespace dpt {

// Multi-head self-attention to norm(x), [B, L, D] -> [B, L, D] for L tokens.
struct DPT_API Attention {
  int64_t heads = 1;
  Linear qkv, proj;

  Attention(int64_t width, int64_t heads, bool qkv_bias);

  Tensor operator()(const LayerNorm& norm, const Tensor& x) const;
  // The attention weights, [B, heads, L, L]; each row sums to one.
  Tensor weights(const LayerNorm& norm, const Tensor& x) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("qkv", qkv);
    v("proj", proj);
  }
};

// Two-layer perceptron with exact (erf) GELU, mlp(norm(s)) + s of s = x + branch, [B, L, D].
struct DPT_API Mlp {
  Linear fc1, fc2;

  Mlp(int64_t width, int64_t hidden);

  Tensor operator()(const LayerNorm& norm, const Tensor& x, const Tensor& branch) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("fc1", fc1);
    v("fc2", fc2);
  }
};

// Pre-norm transformer block, [B, L, D] -> [B, L, D].
struct DPT_API Block {
  LayerNorm norm1, norm2;
  Attention attn;
  Mlp mlp;

  Block(int64_t width, int64_t heads, int64_t mlp_width, bool qkv_bias, double layer_norm_eps);

  Tensor operator()(const Tensor& x) const { return mlp(norm2, x, attn(norm1, x)); }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("norm1", norm1);
    v("attn", attn);
    v("norm2", norm2);
    v("mlp", mlp);
  }
};

// The position embedding [1, prefix + grid*grid, D] of a square grid, resized to one of h x w; the
// prefix tokens keep theirs.
Tensor resize_pos_embed(const Tensor& pos_embed, int64_t prefix, int64_t grid, const c10::SymInt& h,
                        const c10::SymInt& w);

struct ViTOptions {
  int64_t in_channels, patch_size;
  int64_t grid;  // side of the position embedding, in patches
  int64_t width, depth, heads, mlp_width;
  bool qkv_bias, distilled;
  double layer_norm_eps;
  std::vector<int64_t> taps;  // blocks, ascending; the last one is the last
};

struct DPT_API ViT {
  int64_t patch_size = 16, grid = 24, width = 0;
  bool distilled = false;
  std::vector<int64_t> taps;
  Tensor cls_token, dist_token, pos_embed;
  Conv2d patch_embed;
  std::vector<Block> blocks;

  explicit ViT(const ViTOptions& options);

  // Tokens before the patch tokens: the readout token and, when distilled, the distillation token.
  int64_t num_prefix_tokens() const { return distilled ? 2 : 1; }

  // image [B, 3, H, W] -> [B, 1+N, D] for each of `taps` (distilled: 2+N), the outputs of these
  // blocks, not normalised. H and W are multiples of the patch size. With `checkpoint` the blocks
  // keep only their inputs for the backward pass.
  std::vector<Tensor> operator()(const Tensor& image, bool training = false,
                                 bool checkpoint = false) const;

  // The attention weights of one block, [B, heads, 1+N, 1+N].
  Tensor attention(const Tensor& image, int64_t block) const;

  // The steps of these two: pixels (of an image, or of a map in ViT-Hybrid) to tokens with the
  // position embedding added, [B, in, H, W] -> [B, 1+N, D]; tokens through the blocks.
  Tensor embed(const Tensor& pixels) const;
  std::vector<Tensor> transform(Tensor tokens, bool checkpoint) const;
  Tensor attention_of(Tensor tokens, int64_t block) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    const Init init = Init::normal(0.02);
    v("cls_token", cls_token, TensorInfo{{1, 1, width}, init});
    if (distilled) v("dist_token", dist_token, TensorInfo{{1, 1, width}, init});
    v("pos_embed", pos_embed, TensorInfo{{1, num_prefix_tokens() + grid * grid, width}, init});
    v("patch_embed", patch_embed);
    BlockList list{blocks};
    v("blocks", list);
  }

 private:
  struct BlockList {
    std::vector<Block>& blocks;
    template <class Visitor>
    void visit(Visitor&& v) {
      visit_each(blocks, v);
    }
  };
};

}  // namespace dpt
