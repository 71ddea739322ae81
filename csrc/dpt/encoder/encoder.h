// csrc/dpt/encoder/encoder.h -- any of the encoders: image -> four taps, finest level first.
#pragma once

#include <variant>

#include "dpt/encoder/hybrid.h"
#include "dpt/encoder/resnet.h"
#include "dpt/encoder/vit.h"

namespace dpt {

using EncoderOptions = std::variant<ViTOptions, HybridOptions, ResNetOptions>;

struct DPT_API Encoder {
  std::variant<ViT, Hybrid, ResNet> network;

  explicit Encoder(const EncoderOptions& options);

  // image [B, 3, H, W], normalised as in training -> four taps, finest level first: tokens
  // [B, 1+N, D] of transformer blocks, or maps [B, C_i, H / s_i, W / s_i] of convolutional stages.
  // `training` is for batch normalisation; with `checkpoint` transformer blocks keep only their
  // inputs for the backward pass.
  std::vector<Tensor> operator()(const Tensor& image, bool training = false,
                                 bool checkpoint = false) const;

  // The attention weights of one transformer block, [B, heads, 1+N, 1+N].
  Tensor attention(const Tensor& image, int64_t block) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    std::visit([&](auto& encoder) { encoder.visit(v); }, network);
  }
};

}  // namespace dpt
