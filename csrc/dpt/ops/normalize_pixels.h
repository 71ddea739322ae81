// csrc/dpt/ops/normalize_pixels.h -- from the pixels of photographs to a network's input, in one
// pass.
#pragma once

#include "dpt/common.h"

namespace dpt {

// images uint8 [B, 3, H, W] with any strides -> (images / 255 - mean) / std of `dtype` (float32,
// bfloat16 or float16), dense, with channels next to each other or, without `channels_last`, as
// planes. mean and std are three numbers, std above 0. Without gradients.
DPT_API Tensor normalize_pixels(const Tensor& images, at::ArrayRef<double> mean,
                                at::ArrayRef<double> std, at::ScalarType dtype, bool channels_last);

}  // namespace dpt
