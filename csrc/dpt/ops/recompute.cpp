#include "dpt/ops/recompute.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>
#include <tuple>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Gradients of y = x w^T + b, of w and b; all are taken as matrices.
struct LinearGradients {
  Tensor weight, bias;
  LinearGradients(const Tensor& grad, const Tensor& x, bool of_weight, bool of_bias) {
    const Tensor rows = grad.flatten(0, -2);
    if (of_weight) weight = at::mm(rows.t(), x.flatten(0, -2));
    if (of_bias) bias = rows.sum(0);
  }
};

struct LinearOfGelu : torch::autograd::Function<LinearOfGelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return at::linear(at::gelu(x, "none").to(weight.scalar_type()), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &grad = grads[0];
    const bool of_weight = ctx->needs_input_grad(1);
    Tensor active;
    if (of_weight) active = at::gelu(x, "none").to(weight.scalar_type());
    const bool of_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    const LinearGradients of(grad, active, of_weight, of_bias);
    active.reset();
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x = at::gelu_backward(at::matmul(grad, weight).to(x.scalar_type()), x, "none");
    }
    return {grad_x, of.weight, of.bias};
  }
};

struct LinearOfNorm : torch::autograd::Function<LinearOfNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& norm_weight,
                        const Tensor& norm_bias, const Tensor& weight,
                        const std::optional<Tensor>& bias, double eps) {
    ctx->save_for_backward({x, norm_weight, norm_bias, weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["eps"] = eps;
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor even = at::layer_norm_symint(x, {x.sym_size(-1)}, norm_weight, norm_bias, eps);
    return at::linear(even.to(weight.scalar_type()), weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &norm_weight = saved[1], &norm_bias = saved[2], &weight = saved[3];
    const Tensor& grad = grads[0];
    const std::array<c10::SymInt, 1> shape{x.sym_size(-1)};
    auto [even, mean, rstd] = at::native_layer_norm_symint(x, shape, norm_weight, norm_bias,
                                                           ctx->saved_data["eps"].toDouble());
    const std::array<bool, 3> of_norm{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                      ctx->needs_input_grad(2)};
    const bool of_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(4);
    const LinearGradients of(grad, even.to(weight.scalar_type()), ctx->needs_input_grad(3),
                             of_bias);
    even.reset();
    variable_list result{{}, {}, {}, of.weight, of.bias, {}};
    if (of_norm[0] || of_norm[1] || of_norm[2]) {
      std::tie(result[0], result[1], result[2]) =
          at::native_layer_norm_backward_symint(at::matmul(grad, weight).to(x.scalar_type()), x,
                                                shape, mean, rstd, norm_weight, norm_bias, of_norm);
    }
    return result;
  }
};

// Whether there is anything to save: what is made of `x` is kept for the weight's gradient only.
bool pays(const Linear& linear, const Tensor& x) {
  return wants_gradient(linear.weight) && x.dim() > 1 && !traced(x) && !traced(linear.weight);
}

// The linear layer's tensors as autocast wants them.
struct Cast {
  Tensor weight;
  std::optional<Tensor> bias;
  explicit Cast(const Linear& linear) : weight(autocast_to_lower(linear.weight)) {
    if (linear.bias.defined()) bias = autocast_to_lower(linear.bias);
  }
};

}  // namespace

Tensor linear_of_gelu(const Linear& linear, const Tensor& x) {
  if (!pays(linear, x)) return linear(at::gelu(x, "none"));
  const Cast cast(linear);
  const NoAutocast no_autocast;
  return LinearOfGelu::apply(x, cast.weight, cast.bias);
}

Tensor linear_of_norm(const Linear& linear, const LayerNorm& norm, const Tensor& x) {
  if (!pays(linear, x)) return linear(norm(x));
  const Cast cast(linear);
  const NoAutocast no_autocast;
  return LinearOfNorm::apply(x, norm.weight, norm.bias, cast.weight, cast.bias, norm.eps);
}

}  // namespace dpt
