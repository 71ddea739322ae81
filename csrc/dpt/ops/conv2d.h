// csrc/dpt/ops/conv2d.h -- convolution with gradients of our own.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [B, C, H, W], weight [K, C / groups, k, k] -> [B, K, H', W'], at::conv2d. `bias` may be
// undefined. Differentiable, also twice.
//
// Where the weight wants one, the gradients of a 3x3 convolution of stride 1 of float32 maps with
// channels last are our own: by Winograd's F(4x4, 3x3) if the maps have 2048 pixels or more and
// there will be no second derivative (infinity becomes NaN around it); else that of the weight by
// dpt::conv2d_weight_gradient, since oneDNN has no fast one, on processors without AVX-512 and
// where ATEN_CPU_CAPABILITY denies it.
DPT_API Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                      int64_t padding, int64_t groups);

}  // namespace dpt
