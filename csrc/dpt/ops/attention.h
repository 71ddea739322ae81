// csrc/dpt/ops/attention.h -- attention, with a gradient of its own in half types on the CPU.
#pragma once

#include "dpt/common.h"

namespace dpt {

// softmax(q k^T / sqrt(d)) v of each head by at::scaled_dot_product_attention. `packed`
// [B, L, 3, heads, d] has q, k and v; the result is [B, L, heads * d].
//
// ATen's gradient for the CPU is slow in half types: 80 ms in bfloat16, 54 in float32, for
// [2, 12, 577, 64] with AVX-512 and AMX. Of bfloat16 it is the CPU runtime's where the processor
// has tiles (AMX), else float32 and rounded once.
Tensor attend(const Tensor& packed);

// q, k and v [B, heads, L, d] of `packed`.
std::vector<Tensor> split_heads(const Tensor& packed);

}  // namespace dpt
