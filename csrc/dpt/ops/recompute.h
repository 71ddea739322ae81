// csrc/dpt/ops/recompute.h -- a linear layer that keeps the input of what stands before it, and
// makes its own input again in the backward pass.
#pragma once

#include "dpt/layers.h"

namespace dpt {

// linear(norm(x)) and linear(gelu(x)) with exact (erf) GELU, [..., in] -> [..., out];
// differentiable, also twice. Autograd keeps `x` alone, which is kept for other reasons anyway:
// the input of a transformer block's norm is its residual, that of GELU is its input's.
DPT_API Tensor linear_of_norm(const Linear& linear, const LayerNorm& norm, const Tensor& x);
DPT_API Tensor linear_of_gelu(const Linear& linear, const Tensor& x);

// linear(norm(x + branch)), and the sum. Autograd keeps `x` and `branch`, which under autocast has
// half the bytes of the sum.
struct Normed {
  Tensor out, sum;
};
DPT_API Normed linear_of_norm_of_sum(const Linear& linear, const LayerNorm& norm, const Tensor& x,
                                     const Tensor& branch);

}  // namespace dpt
