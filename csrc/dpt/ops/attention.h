// csrc/dpt/ops/attention.h -- attention whose gradient is float32 on the CPU.
#pragma once

#include "dpt/common.h"

namespace dpt {

// softmax(q k^T / sqrt(d)) v of each head, all [B, heads, L, d]: at::scaled_dot_product_attention.
//
// ATen's fused kernel for the CPU takes longer for gradients in bfloat16 and float16 than in
// float32 (80 and 54 ms for [2, 12, 577, 64] with AVX-512 and AMX). They are float32 here, and
// rounded once.
DPT_API Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v);

}  // namespace dpt
