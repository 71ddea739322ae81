// csrc/dpt/ops/matmul.h -- products of bfloat16 matrices by the kernels of the CPU runtime.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Whether this processor has tiles (AMX), and with them a kernel. Elsewhere ATen's are as fast.
bool has_matmul_bfloat16();

// left [m, k] . right [k, n] + bias [n], of `dtype`, float32 or bfloat16. The factors are of one of
// the two each, on the CPU, and rounded to bfloat16; the bias is float32 or undefined. Sums are
// float32. Without a gradient.
Tensor matmul_bfloat16(const Tensor& left, const Tensor& right, const Tensor& bias,
                       at::ScalarType dtype);

}  // namespace dpt
