// csrc/dpt/ops/resize.cpp -- bilinear resizing: the gradient operator and autograd.
#include "dpt/ops/resize.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "dpt/ops/resize_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/resize_cuda.h"
#endif

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

resize::Size size_of(const Tensor& grad, at::IntArrayRef size) {
  return {size[0], size[1], size[2], size[3], grad.size(2), grad.size(3)};
}

// ATen's kernel.
Tensor backward_default(const Tensor& grad, at::IntArrayRef size, bool align_corners) {
  return at::upsample_bilinear2d_backward(grad, {grad.size(2), grad.size(3)}, size, align_corners);
}

// The CUDA kernel's twin where determinism is asked for, else ATen's, which is faster here and adds
// in one order, too.
Tensor backward_cpu(const Tensor& grad, at::IntArrayRef size, bool align_corners) {
  if (!at::globalContext().deterministicAlgorithms()) {
    return backward_default(grad, size, align_corners);
  }
  const auto format = grad.suggest_memory_format();
  const Tensor dense = grad.contiguous(format), out = at::empty(size, grad.options(), format);
  const resize::Size n = size_of(grad, size);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "resize_bilinear_backward", [&] {
        const auto rows = resize::axis<resize::Acc<scalar_t>>(n.h, n.H, align_corners);
        const auto columns = resize::axis<resize::Acc<scalar_t>>(n.w, n.W, align_corners);
        const auto item = format == at::MemoryFormat::ChannelsLast
                              ? resize::backward_item<1, true, scalar_t>
                              : resize::backward_item<1, false, scalar_t>;
        const auto* from = dense.const_data_ptr<scalar_t>();
        auto* to = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, out.numel(), 1024, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) item(n, rows, columns, from, to, i);
        });
      });
  return out;
}

#ifdef DPT_WITH_CUDA
Tensor backward_cuda(const Tensor& grad, at::IntArrayRef size, bool align_corners) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto format = grad.suggest_memory_format();
  const Tensor dense = grad.contiguous(format), out = at::empty(size, grad.options(), format);
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(resize::launch_backward(
      cuda_dtype(grad.scalar_type()), format == at::MemoryFormat::ChannelsLast, size_of(grad, size),
      align_corners, dense.const_data_ptr(), out.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream()));
  return out;
}
#endif

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

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("resize_bilinear_backward", backward_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("resize_bilinear_backward", backward_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) {
  m.impl("resize_bilinear_backward", backward_default);
}
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("resize_bilinear_backward", backward_meta); }
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("resize_bilinear_backward", backward_autograd); }

}  // namespace dpt
