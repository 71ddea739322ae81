// csrc/dpt/ops/conv2d.cpp -- dpt::conv2d_weight_gradient, and the convolution that uses it.
#include "dpt/ops/conv2d.h"

#include <ATen/Version.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"
#include "dpt/ops/winograd.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The gradients of a 3x3 convolution of stride 1 and padding 1 that `wanted` asks for, of x, weight
// and bias; the definition, and the fallback.
std::array<Tensor, 3> aten_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                    std::array<bool, 3> wanted) {
  const std::array<c10::SymInt, 2> one{1, 1}, none{0, 0};
  const std::array<c10::SymInt, 1> channels{grad.sym_size(1)};
  auto [grad_x, grad_weight, grad_bias] =
      at::convolution_backward_symint(grad, x, weight, at::OptionalSymIntArrayRef(channels), one,
                                      one, one, /*transposed=*/false, none, /*groups=*/1, wanted);
  return {grad_x, grad_weight, grad_bias};
}

// A weight that gives the shape, without data of its own.
Tensor any_weight(const Tensor& grad, const Tensor& x) {
  const std::array<c10::SymInt, 4> shape{grad.sym_size(1), x.sym_size(1), 3, 3};
  return x.new_empty({1}).expand_symint(shape);
}

void check(const Tensor& grad, const Tensor& x) {
  TORCH_CHECK_VALUE(grad.dim() == 4 && x.dim() == 4 && grad.sym_size(0) == x.sym_size(0) &&
                        grad.sym_size(2) == x.sym_size(2) && grad.sym_size(3) == x.sym_size(3),
                    "conv2d_weight_gradient: grad [B, K, H, W] and x [B, C, H, W] must have one "
                    "batch size, height and width, got grad ",
                    grad.sym_sizes(), " and x ", x.sym_sizes(),
                    "; only a convolution of stride 1 that keeps the size has this gradient");
  TORCH_CHECK_VALUE(grad.scalar_type() == x.scalar_type(),
                    "conv2d_weight_gradient: grad and x must have one dtype, got grad ",
                    grad.scalar_type(), " and x ", x.scalar_type(), "; convert one of them");
}

// --- the gradient ---

// Pixels whose products are made at once: small images together.
constexpr int64_t kPixels = 16384;

// Each of the nine taps is a product of all gradients [pixels, K], transposed, with all inputs
// [pixels, C], one of them shifted by the tap; a pixel is a row, since channels come last. Both
// have a border of zeros, so that a shift never takes a pixel to another row or image. Bound by
// flops, and they are nearly those of the convolution.
Tensor weight_gradient_cpu(const Tensor& grad, const Tensor& x) {
  check(grad, x);
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), K = grad.size(1);
  const auto type = at::isReducedFloatingType(x.scalar_type()) ? at::kFloat : x.scalar_type();
  const Tensor taps = at::zeros({3, 3, K, C}, x.options().dtype(type));
  const int64_t group = std::clamp<int64_t>(kPixels / std::max<int64_t>(1, H * W), 1, B + 1);
  for (int64_t first = 0; first < B; first += group) {
    const int64_t end = std::min(first + group, B);
    const auto as_rows = [&](const Tensor& map) {  // [pixels with the border, channels]
      const Tensor rows = at::zeros({end - first, H + 2, W + 2, map.size(1)}, taps.options());
      rows.slice(1, 1, H + 1)
          .slice(2, 1, W + 1)
          .copy_(map.slice(0, first, end).permute({0, 2, 3, 1}));
      return rows.flatten(0, 2);
    };
    const Tensor grads = as_rows(grad), pixels = as_rows(x);
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t shift = (tap / 3 - 1) * (W + 2) + tap % 3 - 1;
      const int64_t begin = std::max<int64_t>(0, -shift);
      const int64_t count = grads.size(0) - std::abs(shift);
      taps[tap / 3][tap % 3].addmm_(grads.narrow(0, begin, count).t(),
                                    pixels.narrow(0, begin + shift, count));
    }
  }
  return taps.permute({2, 3, 0, 1}).to(x.scalar_type()).contiguous();
}

Tensor weight_gradient_default(const Tensor& grad, const Tensor& x) {
  check(grad, x);
  return aten_backward(grad, x, any_weight(grad, x), {false, true, false})[1].contiguous();
}

Tensor weight_gradient_meta(const Tensor& grad, const Tensor& x) {
  check(grad, x);
  const std::array<c10::SymInt, 4> shape{grad.sym_size(1), x.sym_size(1), 3, 3};
  return at::empty_symint(shape, x.options());
}

Tensor weight_gradient(const Tensor& grad, const Tensor& x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::conv2d_weight_gradient", "")
                             .typed<Tensor(const Tensor&, const Tensor&)>();
  return op.call(grad, x);
}

// --- autograd ---

struct WeightGradient : torch::autograd::Function<WeightGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x) {
    ctx->save_for_backward({grad, x});
    const at::AutoDispatchBelowADInplaceOrView guard;
    return weight_gradient(grad, x);
  }

  // Linear in both: with the gradient in the weight's place, one is the convolution, the other its
  // gradient.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    Tensor grad_grad, grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_grad = at::conv2d(saved[1], grads[0], {}, {1, 1}, {1, 1});
    }
    if (ctx->needs_input_grad(1)) {
      grad_x = aten_backward(saved[0], saved[1], grads[0], {true, false, false})[0];
    }
    return {grad_grad, grad_x};
  }
};

Tensor weight_gradient_autograd(const Tensor& grad, const Tensor& x) {
  return WeightGradient::apply(grad, x);
}

// Whether the gradients are worth transforms: not of small maps. It does not depend on the batch,
// so that parts of a batch have the gradients of the whole.
bool takes_winograd(const Tensor& grad) {
  constexpr int64_t kPixels = 2048;
  return !at::GradMode::is_enabled() && grad.size(2) * grad.size(3) >= kPixels;
}

bool has_avx512() {
  static const bool avx512 = at::get_cpu_capability() == "AVX512";
  return avx512;
}

// Of float32 maps with channels last.
struct Conv3x3 : torch::autograd::Function<Conv3x3> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return at::conv2d(x, weight, bias, {1, 1}, {1, 1});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    if (traced(grads[0])) {
      const auto [grad_x, grad_weight, grad_bias] =
          aten_backward(grads[0], saved[0], saved[1],
                        {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                         has_bias && ctx->needs_input_grad(2)});
      return {grad_x, grad_weight, grad_bias};
    }
    const Tensor grad = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    variable_list result(3);
    const bool by_winograd = takes_winograd(grad);
    if (ctx->needs_input_grad(0)) {
      result[0] = by_winograd ? winograd_grad_x(grad, saved[1])
                              : aten_backward(grad, saved[0], saved[1], {true, false, false})[0];
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = by_winograd    ? winograd_grad_weight(grad, saved[0])
                  : has_avx512() ? weight_gradient_default(grad, saved[0])
                                 : weight_gradient(grad, saved[0]);
    }
    if (has_bias && ctx->needs_input_grad(2)) result[2] = grad.sum({0, 2, 3});
    return result;
  }
};

// A convolution under autocast. It keeps the weight and makes the copy in the lower type again in
// the backward pass.
struct ConvInLowerType : torch::autograd::Function<ConvInLowerType> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias, int64_t stride, int64_t padding,
                        int64_t groups) {
    ctx->save_for_backward({x, weight, bias.value_or(Tensor())});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["groups"] = groups;
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto dtype = x.scalar_type();
    return at::conv2d(x, weight.to(dtype), bias ? bias->to(dtype) : bias, {stride, stride},
                      {padding, padding}, {1, 1}, groups);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const auto pair = [&](const char* name) {
      const int64_t value = ctx->saved_data[name].toInt();
      return std::array<int64_t, 2>{value, value};
    };
    const std::array<int64_t, 2> one{1, 1}, none{0, 0};
    const auto [grad_x, grad_weight, grad_bias] = at::convolution_backward(
        grads[0], x, weight.to(x.scalar_type()), at::OptionalIntArrayRef(weight.size(0)),
        pair("stride"), pair("padding"), one, /*transposed=*/false, none,
        ctx->saved_data["groups"].toInt(),
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
         bias.defined() && ctx->needs_input_grad(2)});
    const auto as = [](const Tensor& grad, const Tensor& like) {
      return grad.defined() ? grad.to(like.scalar_type()) : grad;
    };
    return {
        grad_x, as(grad_weight, weight), bias.defined() ? as(grad_bias, bias) : Tensor(), {}, {},
        {}};
  }
};

}  // namespace

// --- the face of the operator ---

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
              int64_t padding, int64_t groups) {
  if (x.dim() == 4 && takes_own_gradient(x, weight)) {
    const Tensor cast = autocast_to_lower(x);
    const at::ScalarType dtype = autocast_dtype(weight);
    // A weight that was computed is kept for its own gradient, and its copy is the smaller one.
    if (dtype != weight.scalar_type() && weight.is_leaf() && cast.scalar_type() == dtype) {
      const NoAutocast no_autocast;
      return ConvInLowerType::apply(cast, weight, optional(bias), stride, padding, groups);
    }
    if (x.is_cpu() && dtype == at::kFloat && weight.scalar_type() == dtype &&
        cast.scalar_type() == dtype && stride == 1 && padding == 1 && groups == 1 &&
        weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3 &&
        x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      const NoAutocast no_autocast;
      return Conv3x3::apply(cast, weight, optional(bias));
    }
  }
  // Two-element lists: a list of one integer makes an invalid ONNX graph.
  return at::conv2d(x, weight, bias, {stride, stride}, {padding, padding}, {1, 1}, groups);
}

// --- registration ---

TORCH_LIBRARY_FRAGMENT(dpt, m) { m.def("conv2d_weight_gradient(Tensor grad, Tensor x) -> Tensor"); }

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("conv2d_weight_gradient", weight_gradient_cpu); }
TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) {
  m.impl("conv2d_weight_gradient", weight_gradient_default);
}
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("conv2d_weight_gradient", weight_gradient_meta); }
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("conv2d_weight_gradient", weight_gradient_autograd); }

}  // namespace dpt
