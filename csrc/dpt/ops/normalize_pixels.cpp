// csrc/dpt/ops/normalize_pixels.cpp -- dpt::normalize_pixels and normalize_patches: CPU kernel,
// checks, registration. They are for prediction and have no gradient.
#include "dpt/ops/normalize_pixels.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
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

void check_patches(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, int64_t patch) {
  check(images, mean, std, dtype);
  TORCH_CHECK_VALUE(
      patch > 0 && images.sym_size(2) % patch == 0 && images.sym_size(3) % patch == 0,
      "normalize_patches: height and width must be multiples of the patch, got images ",
      images.sym_sizes(), " and a patch of ", patch, "; resize or pad them");
}

at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

pixels::Strides strides_of(const Tensor& map) {
  return {map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

// An empty output, and where its values go. `patch` 0 is a map, not patches.
struct Target {
  Tensor out;
  Map map;
};

Target target(const Tensor& images, at::ScalarType dtype, bool channels_last, int64_t patch) {
  const int64_t B = images.size(0), H = images.size(2), W = images.size(3);
  const auto options = images.options().dtype(dtype);
  if (patch == 0) {
    const Tensor out = at::empty(images.sizes(), options, format_of(channels_last));
    return {out, {B, H, W, strides_of(images), strides_of(out)}};
  }
  const int64_t h = H / patch, w = W / patch, values = 3 * patch * patch;
  return {at::empty({B, h, w, values}, options),
          {B,
           H,
           W,
           strides_of(images),
           {h * w * values, patch * patch, patch, 1},
           patch,
           w * values,
           values}};
}

Normalization normalization(at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  Normalization by{};
  for (int c = 0; c < 3; ++c) {
    by.scale[c] = static_cast<float>(1 / (255 * std[c]));
    by.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  return by;
}

Tensor filled_cpu(const Target& target, const Tensor& images, const Normalization& by) {
  const auto& [out, map] = target;
  const auto fill = [&, &map = map](auto* to) {
    const int64_t grain = at::internal::GRAIN_SIZE / std::max<int64_t>(1, 3 * map.W) + 1;
    at::parallel_for(0, map.B * map.H, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        pixels::normalize_row(map, by, images.const_data_ptr<uint8_t>(), to, row, /*lane=*/0,
                              /*lanes=*/1);
      }
    });
  };
  if (out.scalar_type() == at::kFloat) {
    fill(out.mutable_data_ptr<float>());
  } else if (out.scalar_type() == at::kBFloat16) {
    fill(out.mutable_data_ptr<at::BFloat16>());
  } else {
    fill(out.mutable_data_ptr<at::Half>());
  }
  return out;
}

Tensor kernel_cpu(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                  at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  return filled_cpu(target(images, dtype, channels_last, 0), images, normalization(mean, std));
}

Tensor patches_cpu(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, int64_t patch) {
  check_patches(images, mean, std, dtype, patch);
  return filled_cpu(target(images, dtype, false, patch), images, normalization(mean, std));
}

#ifdef DPT_WITH_CUDA
Tensor filled_cuda(const Target& target, const Tensor& images, const Normalization& by) {
  if (target.out.numel() == 0) return target.out;
  C10_CUDA_CHECK(pixels::launch_normalize_pixels(
      cuda_dtype(target.out.scalar_type()), target.map, by, images.const_data_ptr<uint8_t>(),
      target.out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return target.out;
}

Tensor kernel_cuda(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  const c10::cuda::CUDAGuard guard(images.device());
  return filled_cuda(target(images, dtype, channels_last, 0), images, normalization(mean, std));
}

Tensor patches_cuda(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                    at::ScalarType dtype, int64_t patch) {
  check_patches(images, mean, std, dtype, patch);
  const c10::cuda::CUDAGuard guard(images.device());
  return filled_cuda(target(images, dtype, false, patch), images, normalization(mean, std));
}
#endif

Tensor kernel_meta(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                   at::ScalarType dtype, bool channels_last) {
  check(images, mean, std, dtype);
  return at::empty_symint(images.sym_sizes(), images.options().dtype(dtype),
                          format_of(channels_last));
}

Tensor patches_meta(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                    at::ScalarType dtype, int64_t patch) {
  check_patches(images, mean, std, dtype, patch);
  const std::array<c10::SymInt, 4> shape{images.sym_size(0), images.sym_size(2) / patch,
                                         images.sym_size(3) / patch, 3 * patch * patch};
  return at::empty_symint(shape, images.options().dtype(dtype));
}

}  // namespace

Tensor normalize_pixels(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                        at::ScalarType dtype, bool channels_last) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::normalize_pixels", "")
                             .typed<decltype(kernel_cpu)>();
  return op.call(images, mean, std, dtype, channels_last);
}

Tensor normalize_patches(const Tensor& images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                         at::ScalarType dtype, int64_t patch) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::normalize_patches", "")
                             .typed<decltype(patches_cpu)>();
  return op.call(images, mean, std, dtype, patch);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "normalize_patches(Tensor images, float[] mean, float[] std, ScalarType dtype, int patch) -> "
      "Tensor");
  m.def(
      "normalize_pixels(Tensor images, float[] mean, float[] std, ScalarType dtype, "
      "bool channels_last=True) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) {
  m.impl("normalize_pixels", kernel_cpu);
  m.impl("normalize_patches", patches_cpu);
}
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) {
  m.impl("normalize_pixels", kernel_cuda);
  m.impl("normalize_patches", patches_cuda);
}
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) {
  m.impl("normalize_pixels", kernel_meta);
  m.impl("normalize_patches", patches_meta);
}

}  // namespace dpt
