// csrc/dpt/ops/upsample_add.cpp -- dpt::upsample_add: CPU kernel, checks, autograd, registration.
#include "dpt/ops/upsample_add.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "dpt/ops/form.h"
#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_add_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/upsample_add_cuda.h"
#endif

namespace dpt {
namespace {

using upsample::Acc;
using upsample::Size;
using upsample::Source;

// --- checks ---

void check_shapes(const Tensor& x, const Tensor& skip) {
  TORCH_CHECK_VALUE(x.dim() == 4 && skip.dim() == 4,
                    "upsample_add: x [B, C, h, w] and skip [B, C, H, W] must have 4 ",
                    "dimensions, got x ", x.sym_sizes(), " and skip ", skip.sym_sizes(),
                    "; add a batch dimension with unsqueeze(0)");
  TORCH_CHECK_VALUE(x.sym_size(0) == skip.sym_size(0) && x.sym_size(1) == skip.sym_size(1),
                    "upsample_add: x and skip must have the same batch size and channels, got x ",
                    x.sym_sizes(), " and skip ", skip.sym_sizes(),
                    "; project or expand one of them");
  TORCH_CHECK_VALUE(
      x.sym_size(2) > 0 && x.sym_size(3) > 0 && skip.sym_size(2) > 0 && skip.sym_size(3) > 0,
      "upsample_add: heights and widths must be at least 1, got x ", x.sym_sizes(), " and skip ",
      skip.sym_sizes(), "; use a larger image");
}

// What the operator wants beyond that; the ATen form promotes types.
void check(const Tensor& x, const Tensor& skip) {
  check_shapes(x, skip);
  TORCH_CHECK_VALUE(x.scalar_type() == skip.scalar_type(),
                    "upsample_add: x and skip must have one dtype, got x ", x.scalar_type(),
                    " and skip ", skip.scalar_type(), "; convert one of them");
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()) && x.element_size() > 1,
                    "upsample_add: x and skip must be float32, float64, float16 or bfloat16, got ",
                    x.scalar_type(), "; convert them with to()");
  TORCH_CHECK_VALUE(x.device() == skip.device(),
                    "upsample_add: x and skip must be on one device, got x on ", x.device(),
                    " and skip on ", skip.device(), "; move one of them");
}

Size size_of(const Tensor& x, const Tensor& skip) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), skip.size(2), skip.size(3)};
}

// --- kernels ---

// The definition, and the fallback.
Tensor aten_form(const Tensor& x, const Tensor& skip) {
  return resize_bilinear(x, skip.sym_size(2), skip.sym_size(3), /*align_corners=*/true) + skip;
}

// Makes the output row by row: mixes two input rows into `mixed`, then mixes the columns of that. A
// row is a run of pixels, a pixel a run of `depth` values: C when channels come last (rows of
// images), 1 otherwise (rows of planes). Large maps are bound by bytes: skip and out once each,
// plus x.
template <class T>
void upsample_add_rows(const Size& n, int64_t num_images, int64_t depth, const T* x, const T* skip,
                       T* out) {
  using A = Acc<T>;
  const A scale_h = upsample::scale<A>(n.h, n.H), scale_w = upsample::scale<A>(n.w, n.W);
  std::vector<Source<A>> columns(n.W);
  for (int64_t i = 0; i < n.W; ++i) columns[i] = upsample::source<A>(scale_w, i, n.w);

  const int64_t in_row = n.w * depth, out_row = n.W * depth;
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / out_row);
  at::parallel_for(0, num_images * n.H, grain, [&](int64_t begin, int64_t end) {
    std::vector<A> mixed(in_row);
    for (int64_t row = begin; row < end; ++row) {
      const auto rows = upsample::source<A>(scale_h, row % n.H, n.h);
      const T* top = x + (row / n.H * n.h + rows.lo) * in_row;
      const T* bottom = x + (row / n.H * n.h + rows.hi) * in_row;
#pragma omp simd
      for (int64_t i = 0; i < in_row; ++i) {
        mixed[i] = upsample::mix(static_cast<A>(top[i]), static_cast<A>(bottom[i]), rows.fraction);
      }
      const T* add = skip + row * out_row;
      T* to = out + row * out_row;
      if (depth == 1) {
        for (int64_t i = 0; i < out_row; ++i) {
          const auto& c = columns[i];
          to[i] = static_cast<T>(upsample::mix(mixed[c.lo], mixed[c.hi], c.fraction) +
                                 static_cast<A>(add[i]));
        }
        continue;
      }
      for (const auto& c : columns) {
        const A* lo = mixed.data() + c.lo * depth;
        const A* hi = mixed.data() + c.hi * depth;
#pragma omp simd
        for (int64_t i = 0; i < depth; ++i) {
          to[i] = static_cast<T>(upsample::mix(lo[i], hi[i], c.fraction) + static_cast<A>(add[i]));
        }
        add += depth;
        to += depth;
      }
    }
  });
}

// The output and both inputs, dense in the layout of skip.
struct Dense {
  at::MemoryFormat format;
  Tensor x, skip, out;

  Dense(const Tensor& x_, const Tensor& skip_)
      : format(skip_.suggest_memory_format()),
        x(x_.contiguous(format)),
        skip(skip_.contiguous(format)),
        out(at::empty(skip.sizes(), skip.options(), format)) {}
  bool channels_last() const { return format == at::MemoryFormat::ChannelsLast; }
};

Tensor upsample_add_cpu(const Tensor& x, const Tensor& skip) {
  check(x, skip);
  const Dense dense(x, skip);
  if (dense.out.numel() == 0) return dense.out;
  const Size n = size_of(x, skip);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "upsample_add", [&] {
    upsample_add_rows(n, dense.channels_last() ? n.B : n.B * n.C, dense.channels_last() ? n.C : 1,
                      dense.x.const_data_ptr<scalar_t>(), dense.skip.const_data_ptr<scalar_t>(),
                      dense.out.mutable_data_ptr<scalar_t>());
  });
  return dense.out;
}

#ifdef DPT_WITH_CUDA
Tensor upsample_add_cuda(const Tensor& x, const Tensor& skip) {
  check(x, skip);
  const c10::cuda::CUDAGuard guard(x.device());
  const Dense dense(x, skip);
  if (dense.out.numel() == 0) return dense.out;
  C10_CUDA_CHECK(upsample::launch(cuda_dtype(x.scalar_type()), dense.channels_last(),
                                  size_of(x, skip), dense.x.const_data_ptr(),
                                  dense.skip.const_data_ptr(), dense.out.mutable_data_ptr(),
                                  c10::cuda::getCurrentCUDAStream()));
  return dense.out;
}
#endif

// Devices without a kernel of their own.
Tensor upsample_add_default(const Tensor& x, const Tensor& skip) {
  check(x, skip);
  return aten_form(x, skip).contiguous(skip.suggest_memory_format());
}

Tensor upsample_add_meta(const Tensor& x, const Tensor& skip) {
  check(x, skip);
  return at::empty_symint(skip.sym_sizes(), skip.options(), skip.suggest_memory_format());
}

// --- autograd ---

Tensor call(const Tensor& x, const Tensor& skip) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::upsample_add", "")
                             .typed<Tensor(const Tensor&, const Tensor&)>();
  return op.call(x, skip);
}

struct UpsampleAdd : torch::autograd::Function<UpsampleAdd> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                        const Tensor& skip) {
    ctx->saved_data["size"] = x.sym_sizes();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call(x, skip);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const Tensor& grad = grads[0];
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x = resize_bilinear_backward(grad, ctx->saved_data["size"].toSymIntVector(),
                                        /*align_corners=*/true);
    }
    return {grad_x, grad};
  }
};

Tensor upsample_add_autograd(const Tensor& x, const Tensor& skip) {
  return UpsampleAdd::apply(x, skip);
}

// --- the face of the operator ---

// Where dpt::upsample_add is the faster form (benchmarks/results/upsample_add_cpu.json). On the CPU
// ATen's vector code for half types is faster.
bool pays(const Tensor& x) {
  return x.is_cuda() ||
         (x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble));
}

}  // namespace

Tensor upsample_add(const Tensor& x, const Tensor& skip) {
  check_shapes(x, skip);
  const bool alike = x.scalar_type() == skip.scalar_type() && x.device() == skip.device();
  return alike && pays(x) && !traced(x) && !traced(skip) ? call(x, skip) : aten_form(x, skip);
}

// --- registration ---

TORCH_LIBRARY_FRAGMENT(dpt, m) { m.def("upsample_add(Tensor x, Tensor skip) -> Tensor"); }

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("upsample_add", upsample_add_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("upsample_add", upsample_add_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) {
  m.impl("upsample_add", upsample_add_default);
}
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("upsample_add", upsample_add_meta); }
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("upsample_add", upsample_add_autograd); }

}  // namespace dpt
