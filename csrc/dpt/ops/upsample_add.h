// csrc/dpt/ops/upsample_add.h -- bilinear upsampling plus a skip connection, in one pass.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Upsamples x [B, C, h, w] to the size of skip [B, C, H, W] and adds skip; differentiable, also
// twice. align_corners = true: isl-org/DPT dpt/blocks.py; half-pixel centres give other numbers.
//
// Runs dpt::upsample_add, one pass over the output, where that is the faster form, and otherwise
// upsample_bilinear2d and an addition: the form that tracers, tensor subclasses, other devices and
// mixed dtypes get.
DPT_API Tensor upsample_add(const Tensor& x, const Tensor& skip);

}  // namespace dpt
