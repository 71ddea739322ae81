// csrc/dpt/ops/conv2d.h -- convolution whose weight gradient is made of matrix products.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [B, C, H, W], weight [K, C / groups, k, k] -> [B, K, H', W'], at::conv2d. `bias` may be
// undefined. Differentiable, also twice.
//
// oneDNN has no fast weight gradient for channels-last maps on processors without AVX-512. There,
// and where ATEN_CPU_CAPABILITY denies it, a 3x3 convolution of stride 1 takes
// dpt::conv2d_weight_gradient.
DPT_API Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                      int64_t padding, int64_t groups);

}  // namespace dpt
