#include "dpt/ops/recompute.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>
#include <tuple>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"
#include "dpt/ops/linear.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearOfGelu : torch::autograd::Function<LinearOfGelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, at::ScalarType dtype) {
    ctx->save_for_backward({x, weight, bias.value_or(Tensor())});
    const at::AutoDispatchBelowADInplaceOrView guard;
    return linear_in(dtype, at::gelu(x, "none"), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &grad = grads[0];
    variable_list result(4);
    if (ctx->needs_input_grad(1)) {
      result[1] = linear_grad_weight(grad, at::gelu(x, "none"), weight);
    }
    if (bias.defined() && ctx->needs_input_grad(2)) result[2] = linear_grad_bias(grad, bias);
    if (ctx->needs_input_grad(0)) {
      Tensor of_gelu = linear_grad_x(grad, weight, x.scalar_type());
      result[0] = at::GradMode::is_enabled() || traced(grad)
                      ? at::gelu_backward(of_gelu, x, "none")
                      : at::gelu_backward_out(of_gelu, of_gelu, x, "none");
    }
    return result;
  }
};

// Of x, or of x + branch if there is one; the sum is the second result then.
struct LinearOfNorm : torch::autograd::Function<LinearOfNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight,
                               const Tensor& norm_bias, const Tensor& weight,
                               const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& branch, double eps,
                               at::ScalarType dtype) {
    ctx->save_for_backward(
        {x, norm_weight, norm_bias, weight, bias.value_or(Tensor()), branch.value_or(Tensor())});
    ctx->saved_data["eps"] = eps;
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor sum = branch ? x + *branch : x;
    const Tensor even = at::layer_norm_symint(sum, {sum.sym_size(-1)}, norm_weight, norm_bias, eps);
    const Tensor out = linear_in(dtype, even, weight, bias);
    return branch ? variable_list{out, sum} : variable_list{out};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &norm_weight = saved[1], &norm_bias = saved[2], &weight = saved[3],
                 &bias = saved[4], &branch = saved[5], &grad = grads[0];
    const Tensor sum = branch.defined() ? x + branch : x;
    const std::array<c10::SymInt, 1> shape{sum.sym_size(-1)};
    auto [even, mean, rstd] = at::native_layer_norm_symint(sum, shape, norm_weight, norm_bias,
                                                           ctx->saved_data["eps"].toDouble());
    const bool of_branch = branch.defined() && ctx->needs_input_grad(bias.defined() ? 5 : 4);
    const std::array<bool, 3> of_norm{ctx->needs_input_grad(0) || of_branch,
                                      ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
    variable_list result(8);
    if (ctx->needs_input_grad(3)) result[3] = linear_grad_weight(grad, even, weight);
    if (bias.defined() && ctx->needs_input_grad(4)) result[4] = linear_grad_bias(grad, bias);
    even.reset();
    if (of_norm[0] || of_norm[1] || of_norm[2]) {
      std::tie(result[0], result[1], result[2]) =
          at::native_layer_norm_backward_symint(linear_grad_x(grad, weight, sum.scalar_type()), sum,
                                                shape, mean, rstd, norm_weight, norm_bias, of_norm);
    }
    if (branch.defined() && of_norm[0]) {
      const Tensor of_sum = result[0] + grads[1];
      result[0] = of_sum.to(x.scalar_type());
      if (of_branch) result[5] = of_sum.to(branch.scalar_type());
    }
    return result;
  }
};

// Whether there is anything to save: what is made of `x` is kept for the weight's gradient only.
bool pays(const Linear& linear, const Tensor& x) {
  return x.dim() > 1 && takes_own_gradient(x, linear.weight);
}

variable_list apply(const Linear& linear, const LayerNorm& norm, const Tensor& x,
                    const std::optional<Tensor>& branch) {
  const at::ScalarType dtype = autocast_dtype(linear.weight);
  const NoAutocast no_autocast;
  return LinearOfNorm::apply(x, norm.weight, norm.bias, linear.weight, optional(linear.bias),
                             branch, norm.eps, dtype);
}

}  // namespace

Tensor linear_of_gelu(const Linear& linear, const Tensor& x) {
  if (!pays(linear, x)) return linear(at::gelu(x, "none"));
  const at::ScalarType dtype = autocast_dtype(linear.weight);
  const NoAutocast no_autocast;
  return LinearOfGelu::apply(x, linear.weight, optional(linear.bias), dtype);
}

Tensor linear_of_norm(const Linear& linear, const LayerNorm& norm, const Tensor& x) {
  if (!pays(linear, x)) return linear(norm(x));
  return apply(linear, norm, x, std::nullopt)[0];
}

Normed linear_of_norm_of_sum(const Linear& linear, const LayerNorm& norm, const Tensor& x,
                             const Tensor& branch) {
  if (!pays(linear, x) || traced(branch)) {
    const Tensor sum = x + branch;
    return {linear(norm(sum)), sum};
  }
  const variable_list results = apply(linear, norm, x, branch);
  return {results[0], results[1]};
}

}  // namespace dpt
