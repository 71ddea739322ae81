// csrc/dpt/model.h -- the whole network as one value: encoder -> reassemble -> fusion -> head.
#pragma once

#include "dpt/config.h"
#include "dpt/decoder/head.h"

namespace dpt {

struct Output {
  Tensor depth;  // [B, H, W], relative inverse depth, not negative
};

struct DPT_API Model {
  Config config;
  ViT encoder;
  Reassemble reassemble;
  Fusion fusion;
  DepthHead head;

  // Checks the config; the tensors are undefined until initialize() or bind().
  explicit Model(const Config& config);

  // image [B, 3, H, W], normalised as in training; H and W are multiples of the patch size.
  // `training` makes batch normalisation use and update batch statistics; `checkpoint` trades time
  // for memory in the encoder.
  Output operator()(const Tensor& image, bool training = false, bool checkpoint = false) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("encoder", encoder);
    v("reassemble", reassemble);
    v("fusion", fusion);
    v("head", head);
  }
};

}  // namespace dpt
