// csrc/dpt/ops/resize.cpp -- bilinear resizing: the gradient operator and autograd.
#include "dpt/ops/resize.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// torch.export keeps this overload whole, and ONNX makes it Resize; the other one becomes index
// arithmetic.
Tensor aten_form(const Tensor& x, const c10::SymInt& height, const c10::SymInt& width,
                 bool align_corners) {
  const std::array<c10::SymInt, 2> size{height, width};
  return at::upsample_bilinear2d_symint(x, at::OptionalSymIntArrayRef(size), align_corners,
                                        /*scale_factors=*/std::nullopt);
}

// --- the gradient ---

// The weights of one axis as a matrix [out, in]: a hat function around each input.
Tensor weights(int64_t in, int64_t out, bool align_corners, const at::TensorOptions& options) {
  Tensor position = at::arange(out, options);
  if (align_corners) {
    position = position * (in - 1) / std::max<int64_t>(out - 1, 1);
  } else {
    position = ((position + 0.5) * in / out - 0.5).clamp(0, in - 1);
  }
  return (1 - (position.unsqueeze(1) - at::arange(in, options)).abs()).clamp_min(0);
}

// ATen's kernel; on CUDA it adds atomically. Where determinism is asked for, two matrix products
// give the same sums in a fixed order.
Tensor backward_kernel(const Tensor& grad, at::IntArrayRef size, bool align_corners) {
  if (!at::globalContext().deterministicAlgorithms()) {
    return at::upsample_bilinear2d_backward(grad, {grad.size(2), grad.size(3)}, size,
                                            align_corners);
  }
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto type = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto options = at::TensorOptions().dtype(type).device(grad.device());
  const Tensor rows = weights(size[2], grad.size(2), align_corners, options);
  const Tensor columns = weights(size[3], grad.size(3), align_corners, options);
  return at::matmul(rows.t(), at::matmul(grad.to(type), columns))
      .to(grad.scalar_type())
      .contiguous(grad.suggest_memory_format());
}

Tensor backward_meta(const Tensor& grad, c10::SymIntArrayRef size, bool /*align_corners*/) {
  return at::empty_symint(size, grad.options(), grad.suggest_memory_format());
}

// --- autograd: resizing is linear, and each direction is the other's gradient ---

struct Resize : torch::autograd::Function<Resize> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const c10::SymInt& height,
                        const c10::SymInt& width, bool align_corners) {
    ctx->saved_data["size"] = x.sym_sizes();
    ctx->saved_data["align_corners"] = align_corners;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return aten_form(x, height, width, align_corners);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {resize_bilinear_backward(grads[0], ctx->saved_data["size"].toSymIntVector(),
                                     ctx->saved_data["align_corners"].toBool()),
            {},
            {},
            {}};
  }
};

struct ResizeBackward : torch::autograd::Function<ResizeBackward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, c10::SymIntArrayRef size,
                        bool align_corners) {
    ctx->saved_data["height"] = grad.sym_size(2);
    ctx->saved_data["width"] = grad.sym_size(3);
    ctx->saved_data["align_corners"] = align_corners;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return resize_bilinear_backward(grad, size, align_corners);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {resize_bilinear(grads[0], ctx->saved_data["height"].toSymInt(),
                            ctx->saved_data["width"].toSymInt(),
                            ctx->saved_data["align_corners"].toBool()),
            {},
            {}};
  }
};

Tensor backward_autograd(const Tensor& grad, c10::SymIntArrayRef size, bool align_corners) {
  return ResizeBackward::apply(grad, size, align_corners);
}

}  // namespace

Tensor resize_bilinear(const Tensor& x, const c10::SymInt& height, const c10::SymInt& width,
                       bool align_corners) {
  const bool wants_gradient = at::GradMode::is_enabled() && x.requires_grad();
  if (!wants_gradient || in_torch_func()) return aten_form(x, height, width, align_corners);
  return Resize::apply(x, height, width, align_corners);
}

Tensor resize_bilinear_backward(const Tensor& grad, c10::SymIntArrayRef size, bool align_corners) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::resize_bilinear_backward", "")
                             .typed<Tensor(const Tensor&, c10::SymIntArrayRef, bool)>();
  return op.call(grad, size, align_corners);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def("resize_bilinear_backward(Tensor grad, SymInt[4] size, bool align_corners) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) {
  m.impl("resize_bilinear_backward", backward_kernel);
}
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("resize_bilinear_backward", backward_meta); }
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("resize_bilinear_backward", backward_autograd); }

}  // namespace dpt
