// csrc/dpt/ops/quantize_rows.h -- rows of numbers in eight bits each.
#pragma once

#include "dpt/common.h"

namespace dpt {

// x [..., D], dense, of float32, float16 or bfloat16 -> codes of float8_e4m3fn [..., D], and the
// scales, float32 [rows, 1], of which `codes * scale` is x: the largest value of a row becomes 448,
// the largest that the type holds. Without gradients.
DPT_API std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x);

}  // namespace dpt
