// csrc/dpt/ops/normalize_pixels.cpp -- dpt::normalize_pixels: CPU kernel, checks, registration. It
// is for prediction and has no gradient.
#include "dpt/ops/normalize_pixels.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "dpt/ops/normalize_pixels_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/normalize_pixels_cuda.h"
#endif

namespace dpt {
namespace {

using pixels::Map;
using pixels::Normalization;

void check(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
           at::ScalarType dtype) {
  TORCH_CHECK_VALUE(
      images.scalar_type() == at::kByte && images.dim() == 4 && images.sym_size(1) == 3,
      "normalize_pixels: images must be uint8 [B, 3, H, W], got ", images.scalar_type(), " ",
      images.sym_sizes(), "; permute an array [H, W, 3], and add the batch dimension");
  TORCH_CHECK_VALUE(
      mean.size() == 3 && std.size() == 3 &&
          std::all_of(mean.begin(), mean.end(), [](double m) { return std::isfinite(m); }) &&
          std::all_of(std.begin(), std.end(), [](double s) { return s > 0 && std::isfinite(s); }),
      "normalize_pixels: mean and std must be three numbers each, std positive, got ", mean,
      " and ", std);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
                    "normalize_pixels: dtype must be float32, bfloat16 or float16, got ", dtype);
}

at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

pixels::Strides strides_of(const Tensor& map) {
  return {map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

Map map_of(const Tensor& images, const Tensor& out) {
  return {images.size(0), images.size(2), images.size(3), strides_of(images), strides_of(out)};
}

Normalization normalization(at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  Normalization by{};
  for (int c = 0; c < 3; ++c) {
    by.scale[c] = static_cast<float>(1 / (255 * std[c]));
    by.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  return by;
}

Tensor kernel_cpu(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                  at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  const Tensor out =
      at::empty(images.sizes(), images.options().dtype(dtype), format_of(channels_last));
  const Map map = map_of(images, out);
  const Normalization by = normalization(mean, std);
  const auto fill = [&](auto* to) {
    const int64_t grain = at::internal::GRAIN_SIZE / std::max<int64_t>(1, 3 * map.W) + 1;
    at::parallel_for(0, map.B * map.H, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        pixels::normalize_row(map, by, images.const_data_ptr<uint8_t>(), to, row, /*lane=*/0,
                              /*lanes=*/1);
      }
    });
  };
  if (dtype == at::kFloat) {
    fill(out.mutable_data_ptr<float>());
  } else if (dtype == at::kBFloat16) {
    fill(out.mutable_data_ptr<at::BFloat16>());
  } else {
    fill(out.mutable_data_ptr<at::Half>());
  }
  return out;
}

#ifdef DPT_WITH_CUDA
Tensor kernel_cuda(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  const c10::cuda::CUDAGuard guard(images.device());
  const Tensor out =
      at::empty(images.sizes(), images.options().dtype(dtype), format_of(channels_last));
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(pixels::launch_normalize_pixels(
      cuda_dtype(dtype), map_of(images, out), normalization(mean, std),
      images.const_data_ptr<uint8_t>(), out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return out;
}
#endif

Tensor kernel_meta(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  return at::empty_symint(images.sym_sizes(), images.options().dtype(dtype),
                          format_of(channels_last));
}

}  // namespace

Tensor normalize_pixels(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                        at::ScalarType dtype, bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::normalize_pixels", "")
                             .typed<decltype(kernel_cpu)>();
  return op.call(images, mean, std, dtype, channels_last);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "normalize_pixels(Tensor images, float[] mean, float[] std, ScalarType dtype, "
      "bool channels_last=True) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("normalize_pixels", kernel_cpu); }
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) { m.impl("normalize_pixels", kernel_cuda); }
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) { m.impl("normalize_pixels", kernel_meta); }

}  // namespace dpt
