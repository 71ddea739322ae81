// csrc/dpt/ops/resize.h -- bilinear resizing.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Resizes x [B, C, h, w] to [B, C, height, width]; upsample_bilinear2d with a gradient of our own,
// dpt::resize_bilinear_backward, which
//   - is deterministic on CUDA, where ATen's adds atomically and throws if determinism is asked
//   for;
//   - stays whole under torch.compile: Inductor (torch 2.13, CPU) takes ATen's apart into scattered
//     additions, and fuses these with other loops such that gradients come out as zeros.
// Differentiable, also twice.
DPT_API Tensor resize_bilinear(const Tensor& x, const c10::SymInt& height, const c10::SymInt& width,
                               bool align_corners);

// The gradient of x [B, C, h, w] = size, from that of the result.
Tensor resize_bilinear_backward(const Tensor& grad, c10::SymIntArrayRef size, bool align_corners);

}  // namespace dpt
