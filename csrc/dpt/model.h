// csrc/dpt/model.h -- the whole network as one value: encoder -> reassemble -> fusion -> head.
#pragma once

#include "dpt/config.h"
#include "dpt/decoder/head.h"

namespace dpt {

struct DPT_API Model {
  Config config;
  Encoder encoder;
  Reassemble reassemble;
  Fusion fusion;
  Head head;

  // Checks the config; the tensors are undefined until initialize() or bind().
  explicit Model(const Config& config);

  // image [B, 3, H, W], normalised as in training; H and W are multiples of the patch size (ResNet:
  // of 32). `training` makes batch normalisation use and update batch statistics, and runs dropout
  // and the auxiliary head; `checkpoint` trades time for memory in the encoder.
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
