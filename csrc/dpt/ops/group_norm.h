// csrc/dpt/ops/group_norm.h -- group normalisation of a map with channels next to each other, and
// the sum and ReLU behind it.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [B, C, H, W], dense with channels next to each other, and `add` alike, which may be undefined
// -> of the same layout. weight and bias [C] and all sums are float32 (of float64: float64).
// Without gradients.
DPT_API Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                          double eps, const Tensor& add, bool relu);

}  // namespace dpt
