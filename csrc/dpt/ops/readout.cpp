// csrc/dpt/ops/readout.cpp -- dpt::readout: CPU kernel, checks, registration. It is for prediction
// and has no gradient.
#include "dpt/ops/readout.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "dpt/ops/readout_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/readout_cuda.h"
#endif

namespace dpt {
namespace {

patches::Shape checked(const Tensor& tokens, const Tensor& token, int64_t prefix) {
  const at::ScalarType dtype = tokens.scalar_type();
  TORCH_CHECK_VALUE(tokens.dim() == 3 && tokens.is_contiguous() && at::isFloatingType(dtype) &&
                        tokens.element_size() > 1,
                    "readout: tokens must be float32, float64, float16 or bfloat16 [B, P + N, D], "
                    "dense, got ",
                    dtype, " ", tokens.sizes(), " with strides ", tokens.strides());
  TORCH_CHECK_VALUE(token.dim() == 2 && token.size(0) == tokens.size(0) &&
                        token.size(1) == tokens.size(2) && token.is_contiguous() &&
                        token.scalar_type() == dtype && token.device() == tokens.device(),
                    "readout: token must be ", dtype, " [", tokens.size(0), ", ", tokens.size(2),
                    "], dense, on ", tokens.device(), ", got ", token.scalar_type(), " ",
                    token.sizes(), " with strides ", token.strides(), " on ", token.device());
  TORCH_CHECK_VALUE(prefix >= 0 && prefix <= tokens.size(1), "readout: prefix must be 0 to ",
                    tokens.size(1), ", the number of tokens, got ", prefix);
  return {tokens.size(0), prefix, tokens.size(1) - prefix, tokens.size(2)};
}

Tensor empty_patches(const Tensor& tokens, const patches::Shape& n) {
  return at::empty({n.B, n.N, n.D}, tokens.options());
}

Tensor kernel_cpu(const Tensor& tokens, const Tensor& token, int64_t prefix) {
  const patches::Shape n = checked(tokens, token, prefix);
  const Tensor out = empty_patches(tokens, n);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tokens.scalar_type(), "readout", [&] {
    const auto* from = tokens.const_data_ptr<scalar_t>();
    const auto* more = token.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n.B * n.N, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        patches::readout_row<1>(n, from, more, to, row, /*lane=*/0, /*lanes=*/1);
      }
    });
  });
  return out;
}

#ifdef DPT_WITH_CUDA
Tensor kernel_cuda(const Tensor& tokens, const Tensor& token, int64_t prefix) {
  const patches::Shape n = checked(tokens, token, prefix);
  const c10::cuda::CUDAGuard guard(tokens.device());
  const Tensor out = empty_patches(tokens, n);
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(patches::launch_readout(
      cuda_dtype(tokens.scalar_type()), n, tokens.const_data_ptr(), token.const_data_ptr(),
      out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return out;
}
#endif

Tensor kernel_meta(const Tensor& tokens, const Tensor& token, int64_t prefix) {
  return empty_patches(tokens, checked(tokens, token, prefix));
}

}  // namespace

Tensor readout(const Tensor& tokens, const Tensor& token, int64_t prefix) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::readout", "")
                             .typed<decltype(kernel_cpu)>();
  return op.call(tokens, token, prefix);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def("readout(Tensor tokens, Tensor token, int prefix) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("readout", kernel_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("readout", kernel_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("readout", kernel_meta); }

}  // namespace dpt
