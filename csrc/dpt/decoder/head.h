// csrc/dpt/decoder/head.h -- the output heads.
#pragma once

#include "dpt/decoder/fusion.h"
#include "dpt/layers.h"

namespace dpt {

// What a network predicts; tensors that it has no head for are undefined.
struct Output {
  Tensor depth{};       // [B, H, W], relative inverse depth, not negative; or metres
  Tensor logits{};      // [B, K, H, W], scores of K classes
  Tensor aux_logits{};  // [B, K, h, w], of the auxiliary head, at the size of its map; in training
};

// From inverse depth up to scale and shift to metres: 1 / max(scale * x + shift, 1e-8).
struct Inversion {
  double scale, shift;
};

struct DepthHeadOptions {
  int64_t channels, hidden;
  bool align_corners;  // of the upsampling
  std::optional<Inversion> inversion;
};

// [B, C, H/2, W/2] -> [B, H, W]: relative inverse depth, not negative; or metres.
struct DPT_API DepthHead {
  Conv2d conv1, conv2, conv3;
  bool align_corners;
  std::optional<Inversion> inversion;

  explicit DepthHead(const DepthHeadOptions& options);

  Tensor operator()(const Tensor& map) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
    v("conv3", conv3);
  }
};

struct SegmentationHeadOptions {
  int64_t channels, num_classes;
  double dropout;
  std::string process_group;  // see BatchNorm2d
};

// [B, C, h, w] -> [B, K, h, w].
struct DPT_API SegmentationHead {
  double dropout;
  Conv2d conv;
  BatchNorm2d norm;
  Conv2d classify;

  explicit SegmentationHead(const SegmentationHeadOptions& options);

  Tensor operator()(const Tensor& map, bool training) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv", conv);
    v("norm", norm);
    v("classify", classify);
  }
};

struct HeadOptions {
  std::optional<DepthHeadOptions> depth;
  std::optional<SegmentationHeadOptions> segmentation;
  AuxiliaryHead auxiliary;  // a second segmentation head, in training only
};

// All heads of a network, on one fused map.
struct DPT_API Head {
  AuxiliaryHead auxiliary_map;
  std::optional<DepthHead> depth;
  std::optional<SegmentationHead> segmentation, auxiliary;

  explicit Head(const HeadOptions& options);

  // What Fusion returns: the fused map [B, C, H/2, W/2], and perhaps one for the auxiliary head.
  Output operator()(at::TensorList maps, bool training = false) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    if (depth) v("depth", *depth);
    if (segmentation) v("segmentation", *segmentation);
    if (auxiliary) v("auxiliary", *auxiliary);
  }
};

}  // namespace dpt
