// csrc/dpt/decoder/head.h -- the output heads.
#pragma once

#include "dpt/layers.h"

namespace dpt {

// Relative inverse depth, not negative: [B, C, H/2, W/2] -> [B, H, W].
struct DPT_API DepthHead {
  Conv2d conv1, conv2, conv3;

  DepthHead(int64_t channels, int64_t hidden);

  Tensor operator()(const Tensor& map) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
    v("conv3", conv3);
  }
};

}  // namespace dpt
