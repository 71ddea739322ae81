// csrc/dpt/ops/group_norm.cpp -- dpt::group_norm: CPU kernel, checks, registration. It is for
// prediction and has no gradient.
#include "dpt/ops/group_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "dpt/ops/group_norm_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/group_norm_cuda.h"
#endif

namespace dpt {
namespace {

constexpr int64_t kMostChannels = 2048;

using OptionalTensor = std::optional<Tensor>;

void check(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
           const OptionalTensor& add) {
  const at::ScalarType dtype = x.scalar_type();
  TORCH_CHECK_VALUE(
      x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast) &&
          at::isFloatingType(dtype) && x.element_size() > 1 && x.size(1) <= kMostChannels,
      "group_norm: x must be float32, float64, float16 or bfloat16 [B, C, H, W] of up to ",
      kMostChannels, " channels that lie next to each other, got ", dtype, " ", x.sizes(),
      " with strides ", x.strides());
  TORCH_CHECK_VALUE(groups > 0 && x.size(1) % groups == 0 && x.size(1) > 0,
                    "group_norm: ", x.size(1), " channels cannot be divided into ", groups,
                    " groups");
  TORCH_CHECK_VALUE(
      !add || (add->sizes() == x.sizes() && add->is_contiguous(at::MemoryFormat::ChannelsLast) &&
               add->scalar_type() == dtype && add->device() == x.device()),
      "group_norm: add must be as x is, got ", add->scalar_type(), " ", add->sizes(),
      " with strides ", add->strides(), " on ", add->device());
  const at::ScalarType sums = dtype == at::kDouble ? at::kDouble : at::kFloat;
  for (const Tensor& tensor : {weight, bias}) {
    TORCH_CHECK_VALUE(
        tensor.dim() == 1 && tensor.size(0) == x.size(1) && tensor.scalar_type() == sums &&
            tensor.is_contiguous() && tensor.device() == x.device(),
        "group_norm: weight and bias must be ", sums, " [", x.size(1), "] on ", x.device(),
        ", got ", tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
  }
}

norm::Groups groups_of(const Tensor& x, int64_t groups) {
  return {x.size(0), x.size(2) * x.size(3), x.size(1), groups};
}

Tensor kernel_cpu(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  double eps, const OptionalTensor& add, bool relu) {
  check(x, groups, weight, bias, add);
  const Tensor out = at::empty_like(x);
  if (out.numel() == 0) return out;
  const norm::Groups n = groups_of(x, groups);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "group_norm", [&] {
    using A = norm::Acc<scalar_t>;
    const auto *w = weight.const_data_ptr<A>(), *b = bias.const_data_ptr<A>();
    at::parallel_for(0, n.B * n.groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / n.groups, group = i % n.groups;
        const auto* from = x.const_data_ptr<scalar_t>() + image * n.pixels * n.C;
        auto* to = out.mutable_data_ptr<scalar_t>() + image * n.pixels * n.C;
        const scalar_t* more =
            add ? add->const_data_ptr<scalar_t>() + image * n.pixels * n.C : nullptr;
        // One caller adds up what many share on a GPU.
        const auto total =
            norm::moments<double>(n, from, group, 0, n.pixels, /*lane=*/0, /*lanes=*/1);
        for (int64_t c = group * n.width(); c < (group + 1) * n.width(); ++c) {
          const auto affine = norm::affine(n, from, c, total, w, b, static_cast<A>(eps));
          for (int64_t at = c; at < n.pixels * n.C; at += n.C) {
            const A a = more != nullptr ? static_cast<A>(more[at]) : A(0);
            to[at] = static_cast<scalar_t>(affine(static_cast<A>(from[at]), a, relu));
          }
        }
      }
    });
  });
  return out;
}

#ifdef DPT_WITH_CUDA
Tensor kernel_cuda(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                   double eps, const OptionalTensor& add, bool relu) {
  check(x, groups, weight, bias, add);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor out = at::empty_like(x);
  if (out.numel() == 0) return out;
  const norm::Groups n = groups_of(x, groups);
  const Tensor partial = at::empty({n.B, n.groups, norm::parts_of(n), 2}, weight.options());
  C10_CUDA_CHECK(norm::launch_group_norm(
      cuda_dtype(x.scalar_type()), n, x.const_data_ptr(), add ? add->const_data_ptr() : nullptr,
      weight.const_data_ptr(), bias.const_data_ptr(), eps, relu, partial.mutable_data_ptr(),
      out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return out;
}
#endif

Tensor kernel_meta(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                   double /*eps*/, const OptionalTensor& add, bool /*relu*/) {
  check(x, groups, weight, bias, add);
  return at::empty_like(x);
}

}  // namespace

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  double eps, const Tensor& add, bool relu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::group_norm", "")
                             .typed<decltype(kernel_cpu)>();
  return op.call(x, groups, weight, bias, eps, add.defined() ? OptionalTensor(add) : std::nullopt,
                 relu);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "group_norm(Tensor x, int groups, Tensor weight, Tensor bias, float eps, Tensor? add, "
      "bool relu) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("group_norm", kernel_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("group_norm", kernel_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("group_norm", kernel_meta); }

}  // namespace dpt
