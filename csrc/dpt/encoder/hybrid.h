// csrc/dpt/encoder/hybrid.h -- ViT-Hybrid (Dosovitskiy et al. 2021, Sec. 3.1): three stages of a
// ResNet-50 with group normalisation and standardised weights, then a transformer on their pixels.
#pragma once

#include "dpt/encoder/resnet.h"
#include "dpt/encoder/vit.h"

namespace dpt {

struct HybridOptions {
  ViTOptions vit;  // of the stages' last map: 1024 channels, patches of one of its pixels
  std::array<int64_t, 3> depths;
  WeightStandardization standardization;
  int64_t conv_levels;  // 0 or 2
};

struct DPT_API Hybrid {
  ConvStages<StandardizedLayers> stages;
  ViT vit;
  int64_t conv_levels;

  explicit Hybrid(const HybridOptions& options);

  // image [B, 3, H, W] -> four taps: the maps of the first `conv_levels` stages, [B, 256, H/4, W/4]
  // and [B, 512, H/8, W/8], then tokens [B, 1+N, D] as of ViT. H and W are multiples of 16.
  std::vector<Tensor> operator()(const Tensor& image, bool training = false,
                                 bool checkpoint = false) const;

  // The attention weights of one block, [B, heads, 1+N, 1+N].
  Tensor attention(const Tensor& image, int64_t block) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    stages.visit(v);
    vit.visit(v);
  }
};

}  // namespace dpt
