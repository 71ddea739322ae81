#include "dpt/ops/linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"
#include "dpt/ops/matmul.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool fits(const Tensor& x) {
  return x.is_cpu() && !traced(x) && x.numel() > 0 &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

// A product of matrices in `dtype`, whose result is of type `to`. Differentiable where gradients
// are recorded.
Tensor product(const Tensor& left, const Tensor& right, at::ScalarType dtype, at::ScalarType to) {
  if (dtype == at::kBFloat16 && (to == at::kBFloat16 || to == at::kFloat) &&
      !at::GradMode::is_enabled() && fits(left) && fits(right) && has_matmul_bfloat16()) {
    return matmul_bfloat16(left, right, {}, to);
  }
  return at::mm(left.to(dtype), right.to(dtype)).to(to);
}

Tensor rows_of(const Tensor& x) { return x.flatten(0, -2); }

struct LinearInLowerType : torch::autograd::Function<LinearInLowerType> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, at::ScalarType dtype) {
    ctx->save_for_backward({x, weight, bias.value_or(Tensor())});
    const at::AutoDispatchBelowADInplaceOrView guard;
    return linear_in(dtype, x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &grad = grads[0];
    variable_list result(4);
    if (ctx->needs_input_grad(0)) result[0] = linear_grad_x(grad, weight, x.scalar_type());
    if (ctx->needs_input_grad(1)) result[1] = linear_grad_weight(grad, x, weight);
    if (bias.defined() && ctx->needs_input_grad(2)) result[2] = linear_grad_bias(grad, bias);
    return result;
  }
};

}  // namespace

Tensor linear_in(at::ScalarType dtype, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& bias) {
  if (dtype == at::kBFloat16 && fits(x) && fits(weight) && (!bias || fits(*bias)) &&
      has_matmul_bfloat16()) {
    const Tensor offset = bias ? bias->to(at::kFloat) : Tensor();
    return matmul_bfloat16(rows_of(x), weight.t(), offset, dtype)
        .unflatten(0, x.sizes().slice(0, x.dim() - 1));
  }
  return at::linear(x.to(dtype), weight.to(dtype), bias ? bias->to(dtype) : bias);
}

Tensor linear_grad_x(const Tensor& grad, const Tensor& weight, at::ScalarType dtype_of_x) {
  return product(rows_of(grad), weight, grad.scalar_type(), dtype_of_x)
      .unflatten_symint(0, grad.sym_sizes().slice(0, grad.dim() - 1));
}

Tensor linear_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  return product(rows_of(grad).t(), rows_of(x), grad.scalar_type(), weight.scalar_type());
}

Tensor linear_grad_bias(const Tensor& grad, const Tensor& bias) {
  return rows_of(grad).sum({0}, /*keepdim=*/false, bias.scalar_type());
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (x.dim() < 2 || !takes_own_gradient(x, weight)) return at::linear(x, weight, bias);
  const at::ScalarType dtype = autocast_dtype(weight);
  if (dtype == weight.scalar_type()) return at::linear(x, weight, bias);
  const Tensor lower = autocast_to_lower(x);
  const NoAutocast no_autocast;
  return LinearInLowerType::apply(lower, weight, optional(bias), dtype);
}

}  // namespace dpt
