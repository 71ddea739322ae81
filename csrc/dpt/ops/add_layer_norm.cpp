// csrc/dpt/ops/add_layer_norm.cpp -- dpt::add_layer_norm_: CPU kernel, checks, registration. It is
// for prediction and has no gradient.
#include "dpt/ops/add_layer_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "dpt/ops/add_layer_norm_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/add_layer_norm_cuda.h"
#include "dpt/ops/cuda_dtype.h"
#endif

namespace dpt {
namespace {

void check(const Tensor& x, const Tensor& y) {
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) > 0 && x.sizes() == y.sizes() &&
                        x.scalar_type() == y.scalar_type() && x.device() == y.device(),
                    "add_layer_norm_: x and y must have one shape [..., D], dtype and device, got ",
                    x.sizes(), " ", x.scalar_type(), " on ", x.device(), " and ", y.sizes(), " ",
                    y.scalar_type(), " on ", y.device());
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()) && x.element_size() > 1,
                    "add_layer_norm_: x must be float32, float64, float16 or bfloat16, got ",
                    x.scalar_type());
  TORCH_CHECK_VALUE(x.is_contiguous() && y.is_contiguous(),
                    "add_layer_norm_: x and y must be dense; call contiguous()");
}

Tensor kernel_cpu(Tensor& x, const Tensor& y, double eps) {
  check(x, y);
  const Tensor out = at::empty_like(x);
  const int64_t D = x.size(-1), rows = x.numel() / D;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "norm", [&] {
    using A = norm::Acc<scalar_t>;
    auto* values = x.mutable_data_ptr<scalar_t>();
    const auto* more = y.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * D; i < end * D; i += D) {
        norm::add_layer_norm_row<1>(values + i, more + i, to + i, D, static_cast<A>(eps),
                                    /*lane=*/0, /*lanes=*/1, [](A sum) { return sum; });
      }
    });
  });
  return out;
}

#ifdef DPT_WITH_CUDA
Tensor kernel_cuda(Tensor& x, const Tensor& y, double eps) {
  check(x, y);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor out = at::empty_like(x);
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(norm::launch_add_layer_norm(
      cuda_dtype(x.scalar_type()), x.mutable_data_ptr(), y.const_data_ptr(), out.mutable_data_ptr(),
      x.numel() / x.size(-1), x.size(-1), eps, c10::cuda::getCurrentCUDAStream()));
  return out;
}
#endif

Tensor kernel_meta(Tensor& x, const Tensor& y, double /*eps*/) {
  check(x, y);
  return at::empty_like(x);
}

}  // namespace

Tensor add_layer_norm(const Tensor& x, const Tensor& y, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::add_layer_norm_", "")
                             .typed<decltype(kernel_cpu)>();
  Tensor changed = x;
  return op.call(changed, y, eps);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def("add_layer_norm_(Tensor(a!) x, Tensor y, float eps) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("add_layer_norm_", kernel_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("add_layer_norm_", kernel_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("add_layer_norm_", kernel_meta); }

}  // namespace dpt
