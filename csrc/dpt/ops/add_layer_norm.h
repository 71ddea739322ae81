// csrc/dpt/ops/add_layer_norm.h -- a residual sum and the normalisation behind it, in one pass.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [..., D] += y, in place, then layer normalisation of x over its last dimension, without gain
// and shift. Both are dense. Without gradients.
DPT_API Tensor add_layer_norm(const Tensor& x, const Tensor& y, double eps);

}  // namespace dpt
