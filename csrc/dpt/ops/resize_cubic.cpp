// csrc/dpt/ops/resize_cubic.cpp -- dpt::resize_cubic: checks, CPU kernel, registration.
#include "dpt/ops/resize_cubic.h"

#include <ATen/Dispatch.h>
#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace dpt {
namespace {

// The four pixels of one axis that make an output pixel, and their weights.
struct Taps {
  std::array<int64_t, 4> index;
  std::array<double, 4> weight;
};

std::vector<Taps> taps(int64_t size, int64_t new_size) {
  // Positions and weights in float32, as OpenCV has them (imgproc/src/resize.cpp): in images of
  // a thousand pixels and more the difference to float64 shows.
  constexpr float a = -0.75F;
  std::vector<Taps> result(new_size);
  const double scale = static_cast<double>(size) / static_cast<double>(new_size);
  for (int64_t i = 0; i < new_size; ++i) {
    const auto position = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
    const float first = std::floor(position), t = position - first, u = 1 - t;
    const float w0 = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
    const float w1 = ((a + 2) * t - (a + 3)) * t * t + 1;
    const float w2 = ((a + 2) * u - (a + 3)) * u * u + 1;
    result[i].weight = {w0, w1, w2, 1 - w0 - w1 - w2};
    for (int64_t k = 0; k < 4; ++k) {
      result[i].index[k] = std::clamp<int64_t>(static_cast<int64_t>(first) - 1 + k, 0, size - 1);
    }
  }
  return result;
}

// Row by row of the output: mixes four input rows, then the columns of that.
template <class T>
void resize(const T* image, int64_t H, int64_t W, int64_t C, double* out, int64_t height,
            int64_t width) {
  const auto rows = taps(H, height), columns = taps(W, width);
  const int64_t in_row = W * C, out_row = width * C;
  at::parallel_for(0, height, 4, [&](int64_t begin, int64_t end) {
    std::vector<double> mixed(in_row);
    for (int64_t y = begin; y < end; ++y) {
      const auto& [index, weight] = rows[y];
      const T *r0 = image + index[0] * in_row, *r1 = image + index[1] * in_row;
      const T *r2 = image + index[2] * in_row, *r3 = image + index[3] * in_row;
#pragma omp simd
      for (int64_t i = 0; i < in_row; ++i) {
        mixed[i] = weight[0] * static_cast<double>(r0[i]) + weight[1] * static_cast<double>(r1[i]) +
                   weight[2] * static_cast<double>(r2[i]) + weight[3] * static_cast<double>(r3[i]);
      }
      double* to = out + y * out_row;
      for (const auto& [from, w] : columns) {
        for (int64_t c = 0; c < C; ++c) {
          *to++ = w[0] * mixed[from[0] * C + c] + w[1] * mixed[from[1] * C + c] +
                  w[2] * mixed[from[2] * C + c] + w[3] * mixed[from[3] * C + c];
        }
      }
    }
  });
}

Tensor resize_cubic_cpu(const Tensor& image, int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(image.dim() == 3 && image.numel() > 0,
                    "resize_cubic: the image must be [H, W, C] and not empty, got ", image.sizes());
  TORCH_CHECK_VALUE(height > 0 && width > 0,
                    "resize_cubic: height and width must be positive, got ", height, " x ", width);
  const Tensor dense = image.contiguous();
  const Tensor out = at::empty({height, width, image.size(2)}, image.options().dtype(at::kDouble));
  AT_DISPATCH_V2(image.scalar_type(), "resize_cubic", AT_WRAP([&] {
                   resize(dense.const_data_ptr<scalar_t>(), image.size(0), image.size(1),
                          image.size(2), out.mutable_data_ptr<double>(), height, width);
                 }),
                 at::kByte, at::kUInt16, at::kFloat, at::kDouble);
  return out;
}

}  // namespace

Tensor resize_cubic(const Tensor& image, int64_t height, int64_t width) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::resize_cubic", "")
                             .typed<Tensor(const Tensor&, int64_t, int64_t)>();
  return op.call(image, height, width);
}

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def("resize_cubic(Tensor image, int height, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) { m.impl("resize_cubic", resize_cubic_cpu); }

}  // namespace dpt
