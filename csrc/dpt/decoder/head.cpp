#include "dpt/decoder/head.h"

#include "dpt/ops/resize.h"

namespace dpt {

DepthHead::DepthHead(int64_t channels, int64_t hidden)
    : conv1{.in = channels, .out = channels / 2, .kernel = 3, .padding = 1},
      conv2{.in = channels / 2, .out = hidden, .kernel = 3, .padding = 1},
      // Above zero: with PyTorch's default the last ReLU starts below zero everywhere about half of
      // the time, and then no gradient ever passes it.
      conv3{.in = hidden, .out = 1, .initial_bias = 1} {}

Tensor DepthHead::operator()(const Tensor& map) const {
  TORCH_CHECK_VALUE(map.dim() == 4, "head: the fused map must be [B, C, H/2, W/2], got ",
                    map.sym_sizes(), "; pass what fusion returns");
  Tensor x = conv1(map);  // no ReLU before the upsampling: isl-org/DPT dpt/models.py
  x = resize_bilinear(x, x.sym_size(2) * 2, x.sym_size(3) * 2, /*align_corners=*/true);
  return conv3(conv2(x).relu()).relu().squeeze(1);
}

}  // namespace dpt
