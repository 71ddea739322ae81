#include "dpt/encoder/vit.h"

#include <cmath>

#include "dpt/encoder/image.h"
#include "dpt/ops/attention.h"
#include "dpt/ops/checkpoint.h"
#include "dpt/ops/recompute.h"
#include "dpt/ops/resize.h"

namespace dpt {

namespace {

// norm(x) [B, L, D] -> query, key and value, [B, L, 3, heads, D/heads].
Tensor pack_heads(const Linear& qkv, const LayerNorm& norm, const Tensor& x, int64_t heads) {
  return linear_of_norm(qkv, norm, x).unflatten(-1, {3, heads, qkv.in / heads});
}

}  // namespace

Attention::Attention(int64_t width, int64_t heads, bool qkv_bias)
    : heads(heads),
      qkv{.in = width, .out = 3 * width, .has_bias = qkv_bias, .normal_init = true},
      proj{.in = width, .out = width, .normal_init = true} {}

Tensor Attention::operator()(const LayerNorm& norm, const Tensor& x) const {
  return proj(attend(pack_heads(qkv, norm, x, heads)));
}

Tensor Attention::weights(const LayerNorm& norm, const Tensor& x) const {
  const auto heads_of = split_heads(pack_heads(qkv, norm, x, heads));
  const double scale = 1 / std::sqrt(static_cast<double>(qkv.in / heads));
  return at::softmax(at::matmul(heads_of[0] * scale, heads_of[1].transpose(-2, -1)), -1);
}

Mlp::Mlp(int64_t width, int64_t hidden)
    : fc1{.in = width, .out = hidden, .normal_init = true},
      fc2{.in = hidden, .out = width, .normal_init = true} {}

Tensor Mlp::operator()(const LayerNorm& norm, const Tensor& x, const Tensor& branch) const {
  const auto [hidden, sum] = linear_of_norm_of_sum(fc1, norm, x, branch);
  return sum + linear_of_gelu(fc2, hidden);
}

Block::Block(int64_t width, int64_t heads, int64_t mlp_width, bool qkv_bias, double layer_norm_eps)
    : norm1{.width = width, .eps = layer_norm_eps},
      norm2{.width = width, .eps = layer_norm_eps},
      attn(width, heads, qkv_bias),
      mlp(width, mlp_width) {}

ViT::ViT(const ViTOptions& options)
    : patch_size(options.patch_size),
      grid(options.grid),
      width(options.width),
      distilled(options.distilled),
      taps(options.taps),
      patch_embed{.in = options.in_channels,
                  .out = options.width,
                  .kernel = options.patch_size,
                  .stride = options.patch_size},
      blocks(options.depth, Block(options.width, options.heads, options.mlp_width, options.qkv_bias,
                                  options.layer_norm_eps)) {}

Tensor resize_pos_embed(const Tensor& pos_embed, int64_t prefix, int64_t grid, const c10::SymInt& h,
                        const c10::SymInt& w) {
  const Tensor patches =
      pos_embed.slice(1, prefix).unflatten(1, {grid, grid}).permute({0, 3, 1, 2});
  const Tensor resized = resize_bilinear(patches, h, w, /*align_corners=*/false);
  return at::cat({pos_embed.slice(1, 0, prefix), resized.flatten(2).transpose(1, 2)}, 1);
}

Tensor ViT::embed(const Tensor& pixels) const {
  const c10::SymInt batch = pixels.sym_size(0);
  const c10::SymInt h = pixels.sym_size(2) / patch_size, w = pixels.sym_size(3) / patch_size;
  const Tensor patches = patch_embed(pixels).flatten(2).transpose(1, 2);  // [B, N, D]
  std::vector<Tensor> tokens{cls_token.expand_symint({batch, 1, width})};
  if (distilled) tokens.push_back(dist_token.expand_symint({batch, 1, width}));
  tokens.push_back(patches);
  // Always resized: at the native size the result is the same to the bit.
  return at::cat(tokens, 1) + resize_pos_embed(pos_embed, num_prefix_tokens(), grid, h, w);
}

std::vector<Tensor> ViT::transform(Tensor x, bool checkpoint) const {
  std::vector<Tensor> tapped;
  for (int64_t i = 0; i <= taps.back(); ++i) {
    x = checkpoint ? dpt::checkpoint(blocks[i], x) : blocks[i](x);
    if (i == taps[tapped.size()]) tapped.push_back(x);
  }
  return tapped;
}

Tensor ViT::attention_of(Tensor x, int64_t block) const {
  TORCH_CHECK_VALUE(block >= 0 && block < static_cast<int64_t>(blocks.size()),
                    "attention: block must be in [0, ", blocks.size(), "), got ", block,
                    "; blocks are counted from 0");
  for (int64_t i = 0; i < block; ++i) x = blocks[i](x);
  return blocks[block].attn.weights(blocks[block].norm1, x);
}

std::vector<Tensor> ViT::operator()(const Tensor& image, bool /*training*/, bool checkpoint) const {
  check_image(image, patch_size, patch_embed.weight.scalar_type());
  return transform(embed(image), checkpoint);
}

Tensor ViT::attention(const Tensor& image, int64_t block) const {
  check_image(image, patch_size, patch_embed.weight.scalar_type());
  return attention_of(embed(image), block);
}

}  // namespace dpt
