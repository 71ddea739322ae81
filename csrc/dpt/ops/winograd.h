// csrc/dpt/ops/winograd.h -- the gradients of a 3x3 convolution by Winograd's F(4x4, 3x3): a
// quarter of the multiplications, and infinity becomes NaN around it.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Of a convolution of stride 1 and padding 1, on the CPU: grad [B, K, H, W] and x [B, C, H, W] are
// float32 with channels last and not empty, weight is [K, C, 3, 3]. Without a gradient.
Tensor winograd_grad_x(const Tensor& grad, const Tensor& weight);
Tensor winograd_grad_weight(const Tensor& grad, const Tensor& x);

}  // namespace dpt
