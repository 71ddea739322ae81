// csrc/dpt/ops/upsample_conv2d.h -- a 3x3 convolution of an upsampled map, computed on the small
// one.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [B, C, h, w] resized bilinearly to [B, C, H, W], then a 3x3 convolution of stride 1 and padding
// 1 with weight [K, C, 3, 3] and bias [K] -> [B, K, H, W]. Differentiable, also twice.
//
// Both are linear, so the matrix products of the nine taps may come first: on h w pixels instead of
// H W, and the upsampled map is never made. dpt::upsample_conv2d does that on the CPU in float32;
// in half types it makes the upsampled map of one image at a time, and again in the backward pass.
// Elsewhere, and for tracers, tensor subclasses and mixed dtypes, the two steps run as they stand.
DPT_API Tensor upsample_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const c10::SymInt& height, const c10::SymInt& width,
                               bool align_corners);

}  // namespace dpt
