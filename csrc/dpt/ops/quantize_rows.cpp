// csrc/dpt/ops/quantize_rows.cpp -- dpt::quantize_rows: CPU kernel, checks, registration. It is for
// prediction and has no gradient.
#include "dpt/ops/quantize_rows.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "dpt/ops/quantize_rows_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/quantize_rows_cuda.h"
#endif

namespace dpt {
namespace {

void check(const Tensor& x) {
  const at::ScalarType dtype = x.scalar_type();
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) > 0 && x.is_contiguous() &&
                        (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16),
                    "quantize_rows: x must be float32, float16 or bfloat16 [..., D], dense, got ",
                    dtype, " ", x.sizes(), " with strides ", x.strides());
}

struct Quantized {
  int64_t D, rows;
  Tensor codes, scale;

  explicit Quantized(const Tensor& x)
      : D(x.size(-1)),
        rows(x.numel() / D),
        codes(at::empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn))),
        scale(at::empty({rows, 1}, x.options().dtype(at::kFloat))) {}
  uint8_t* bytes() const { return static_cast<uint8_t*>(codes.mutable_data_ptr()); }
};

std::tuple<Tensor, Tensor> kernel_cpu(const Tensor& x) {
  check(x);
  const Quantized to(x);
  const auto fill = [&](const auto* from) {
    auto* scale = to.scale.mutable_data_ptr<float>();
    at::parallel_for(0, to.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        scale[i] = float8::quantize_row<1>(from + i * to.D, to.bytes() + i * to.D, to.D, /*lane=*/0,
                                           /*lanes=*/1, [](float size) { return size; });
      }
    });
  };
  if (x.scalar_type() == at::kFloat) {
    fill(x.const_data_ptr<float>());
  } else if (x.scalar_type() == at::kHalf) {
    fill(x.const_data_ptr<at::Half>());
  } else {
    fill(x.const_data_ptr<at::BFloat16>());
  }
  return {to.codes, to.scale};
}

#ifdef DPT_WITH_CUDA
std::tuple<Tensor, Tensor> kernel_cuda(const Tensor& x) {
  check(x);
  const c10::cuda::CUDAGuard guard(x.device());
  const Quantized to(x);
  if (to.rows > 0) {
    C10_CUDA_CHECK(float8::launch_quantize_rows(cuda_dtype(x.scalar_type()), x.const_data_ptr(),
                                                to.bytes(), to.scale.mutable_data_ptr<float>(),
                                                to.rows, to.D, c10::cuda::getCurrentCUDAStream()));
  }
  return {to.codes, to.scale};
}
#endif

std::tuple<Tensor, Tensor> kernel_meta(const Tensor& x) {
  check(x);
  const Quantized to(x);
  return {to.codes, to.scale};
}

}  // namespace

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::quantize_rows", "")
                             .typed<decltype(kernel_cpu)>();
  return op.call(x);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) { m.def("quantize_rows(Tensor x) -> (Tensor, Tensor)"); }

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("quantize_rows", kernel_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("quantize_rows", kernel_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("quantize_rows", kernel_meta); }

}  // namespace dpt
