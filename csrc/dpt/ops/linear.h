// csrc/dpt/ops/linear.h -- linear layers under autocast that keep no copy of their weights.
#pragma once

#include <optional>

#include "dpt/common.h"

namespace dpt {

// x [..., in], weight [out, in], bias [out] or undefined -> [..., out], at::linear; differentiable,
// also twice. Under autocast the weight is converted anew in the backward pass, where PyTorch keeps
// a copy of each in the lower type; its gradient has the weight's type from the start.
DPT_API Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias);

// --- for autograd functions that contain a linear layer ---

// A linear layer in `dtype`, whatever the types of its operands; below autograd.
Tensor linear_in(at::ScalarType dtype, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& bias);

// Gradients of y = x w^T + b, where y has the type of `grad`, and they those of x, w and b.
Tensor linear_grad_x(const Tensor& grad, const Tensor& weight, at::ScalarType dtype_of_x);
Tensor linear_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& weight);
Tensor linear_grad_bias(const Tensor& grad, const Tensor& bias);

}  // namespace dpt
