// csrc/dpt/ops/resize_cubic.h -- cubic resizing of photographs.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Resizes image [H, W, C] (uint8, uint16, float32, float64; CPU) to [height, width, C], float64, as
// OpenCV's INTER_CUBIC does: cubic convolution (Keys 1981) with a = -0.75, pixel centres at 0.5,
// borders repeated, no antialiasing; values may overshoot the range. This is how isl-org/DPT
// prepares photographs. No gradient.
DPT_API Tensor resize_cubic(const Tensor& image, int64_t height, int64_t width);

}  // namespace dpt
