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

// Likewise in squares of `patch` pixels, as a patch embedding reads them:
// [B, H / patch, W / patch, 3 * patch * patch], the planes of a patch one after another.
DPT_API Tensor normalize_patches(const Tensor& images, at::ArrayRef<double> mean,
                                 at::ArrayRef<double> std, at::ScalarType dtype, int64_t patch);

}  // namespace dpt
