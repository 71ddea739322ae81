// csrc/dpt/ops/upsample_gather.cpp -- dpt::upsample_gather, dpt::upsample_gather_dot: CPU kernels,
// checks, registration. They are for prediction and have no gradients.
#include "dpt/ops/upsample_gather.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "dpt/ops/upsample_gather_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/ops/cuda_dtype.h"
#include "dpt/ops/upsample_gather_cuda.h"
#endif

namespace dpt {
namespace {

using upsample::Acc;
using upsample::Gathering;

using Optional = std::optional<Tensor>;

// --- checks ---

at::ScalarType type_of_sums(const Tensor& products) {
  return products.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_vector(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                  const Tensor& products) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.scalar_type() == type_of_sums(products) &&
                        tensor.device() == products.device() && tensor.is_contiguous(),
                    "upsample_gather: ", name, " must be dense ", type_of_sums(products), " ",
                    shape, " on ", products.device(), ", got ", tensor.scalar_type(), " ",
                    tensor.sizes(), " on ", tensor.device());
}

Gathering checked(const Tensor& products, const Optional& bias, const Optional& border,
                  int64_t height, int64_t width, bool align_corners) {
  TORCH_CHECK_VALUE(products.dim() == 4 && products.size(3) > 0 && products.size(3) % 9 == 0,
                    "upsample_gather: products must be [B, h, w, 9 * n], got ", products.sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(products.scalar_type()) && products.element_size() > 1,
                    "upsample_gather: products must be float32, float64, float16 or bfloat16, got ",
                    products.scalar_type());
  TORCH_CHECK_VALUE(products.size(1) > 0 && products.size(2) > 0 && height > 0 && width > 0,
                    "upsample_gather: heights and widths must be at least 1, got products ",
                    products.sizes(), " to ", height, " x ", width);
  const int64_t n = products.size(3) / 9;
  if (bias) check_vector("bias", *bias, {n}, products);
  if (border) check_vector("border", *border, {16, n}, products);
  return {products.size(0), products.size(1), products.size(2), n, height, width, align_corners};
}

void check_dot(const Tensor& products, const Tensor& dot, const Tensor& dot_bias,
               at::ArrayRef<double> inversion) {
  check_vector("dot", dot, {products.size(3) / 9}, products);
  check_vector("dot_bias", dot_bias, {1}, products);
  TORCH_CHECK_VALUE(inversion.empty() || inversion.size() == 2,
                    "upsample_gather_dot: inversion must be a scale and a shift, or nothing, got ",
                    inversion.size(), " numbers");
}

Tensor empty_map(const Tensor& products, const Gathering& g) {
  return at::empty({g.B, g.H, g.W, g.n}, products.options());
}

Tensor empty_values(const Tensor& products, const Gathering& g) {
  return at::empty({g.B, g.H, g.W}, products.options().dtype(type_of_sums(products)));
}

// --- CPU ---

template <class T>
const T* pointer(const Optional& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// f(pixel) for all pixels of the output.
template <class F>
void for_each_pixel(const Gathering& g, const F& f) {
  at::parallel_for(0, g.B * g.H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin * g.W; pixel < end * g.W; ++pixel) f(pixel);
  });
}

Tensor gather_cpu(const Tensor& products, const Optional& bias, const Optional& border,
                  int64_t height, int64_t width, bool align_corners, bool relu) {
  const Gathering g = checked(products, bias, border, height, width, align_corners);
  const Tensor in = products.contiguous(), out = empty_map(products, g);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, in.scalar_type(), "gather", [&] {
    using A = Acc<scalar_t>;
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const upsample::GatherBias<A> biases{pointer<A>(bias), pointer<A>(border)};
    for_each_pixel(g, [&](int64_t pixel) {
      for (int64_t k = 0; k < g.n; ++k) {
        upsample::gather_item<1>(g, from, biases, relu, to, pixel * g.n + k);
      }
    });
  });
  return out;
}

Tensor gather_dot_cpu(const Tensor& products, const Optional& bias, const Optional& border,
                      const Tensor& dot, const Tensor& dot_bias, int64_t height, int64_t width,
                      bool align_corners, at::ArrayRef<double> inversion) {
  const Gathering g = checked(products, bias, border, height, width, align_corners);
  check_dot(products, dot, dot_bias, inversion);
  const Tensor in = products.contiguous(), out = empty_values(products, g);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, in.scalar_type(), "gather_dot", [&] {
    using A = Acc<scalar_t>;
    const scalar_t* from = in.const_data_ptr<scalar_t>();
    A* to = out.mutable_data_ptr<A>();
    const upsample::GatherBias<A> biases{pointer<A>(bias), pointer<A>(border)};
    upsample::GatherDot<A> end{dot.const_data_ptr<A>(), dot_bias.const_data_ptr<A>(),
                               !inversion.empty(), 1, 0};
    if (end.invert) {
      end.scale = static_cast<A>(inversion[0]);
      end.shift = static_cast<A>(inversion[1]);
    }
    for_each_pixel(g, [&](int64_t pixel) {
      A sum = 0;
      for (int64_t k = 0; k < g.n; ++k) {
        sum += upsample::dot_item<1>(g, from, biases, end, pixel * g.n + k);
      }
      to[pixel] = upsample::finished(end, sum);
    });
  });
  return out;
}

// --- CUDA ---

#ifdef DPT_WITH_CUDA
upsample::GatherLaunch launch_of(const Gathering& g, const Tensor& in, const Optional& bias,
                                 const Optional& border, const Tensor& out) {
  return {.dtype = cuda_dtype(in.scalar_type()),
          .size = g,
          .in = in.const_data_ptr(),
          .bias = bias ? bias->const_data_ptr() : nullptr,
          .border = border ? border->const_data_ptr() : nullptr,
          .out = out.mutable_data_ptr(),
          .stream = c10::cuda::getCurrentCUDAStream()};
}

Tensor gather_cuda(const Tensor& products, const Optional& bias, const Optional& border,
                   int64_t height, int64_t width, bool align_corners, bool relu) {
  const Gathering g = checked(products, bias, border, height, width, align_corners);
  const c10::cuda::CUDAGuard guard(products.device());
  const Tensor in = products.contiguous(), out = empty_map(products, g);
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(upsample::launch_gather(launch_of(g, in, bias, border, out), relu));
  return out;
}

Tensor gather_dot_cuda(const Tensor& products, const Optional& bias, const Optional& border,
                       const Tensor& dot, const Tensor& dot_bias, int64_t height, int64_t width,
                       bool align_corners, at::ArrayRef<double> inversion) {
  const Gathering g = checked(products, bias, border, height, width, align_corners);
  check_dot(products, dot, dot_bias, inversion);
  const c10::cuda::CUDAGuard guard(products.device());
  const Tensor in = products.contiguous(), out = empty_values(products, g);
  if (out.numel() == 0) return out;
  const bool invert = !inversion.empty();
  C10_CUDA_CHECK(upsample::launch_gather_dot(
      launch_of(g, in, bias, border, out), dot.const_data_ptr(), dot_bias.const_data_ptr(), invert,
      invert ? inversion[0] : 1, invert ? inversion[1] : 0));
  return out;
}
#endif

// --- Meta ---

Tensor gather_meta(const Tensor& products, const Optional& bias, const Optional& border,
                   int64_t height, int64_t width, bool align_corners, bool /*relu*/) {
  return empty_map(products, checked(products, bias, border, height, width, align_corners));
}

Tensor gather_dot_meta(const Tensor& products, const Optional& bias, const Optional& border,
                       const Tensor& dot, const Tensor& dot_bias, int64_t height, int64_t width,
                       bool align_corners, at::ArrayRef<double> inversion) {
  const Gathering g = checked(products, bias, border, height, width, align_corners);
  check_dot(products, dot, dot_bias, inversion);
  return empty_values(products, g);
}

}  // namespace

// --- the faces of the operators ---

Tensor upsample_gather(const Tensor& products, const Tensor& bias, const Tensor& border,
                       int64_t height, int64_t width, bool align_corners, bool relu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::upsample_gather", "")
                             .typed<decltype(gather_cpu)>();
  return op.call(products, optional(bias), optional(border), height, width, align_corners, relu);
}

Tensor upsample_gather_dot(const Tensor& products, const Tensor& bias, const Tensor& border,
                           const Tensor& dot, const Tensor& dot_bias, int64_t height, int64_t width,
                           bool align_corners, at::ArrayRef<double> inversion) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::upsample_gather_dot", "")
                             .typed<decltype(gather_dot_cpu)>();
  return op.call(products, optional(bias), optional(border), dot, dot_bias, height, width,
                 align_corners, inversion);
}

// --- registration ---

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "upsample_gather(Tensor products, Tensor? bias, Tensor? border, int height, int width, "
      "bool align_corners, bool relu) -> Tensor");
  m.def(
      "upsample_gather_dot(Tensor products, Tensor? bias, Tensor? border, Tensor dot, "
      "Tensor dot_bias, int height, int width, bool align_corners, float[] inversion) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) {
  m.impl("upsample_gather", gather_cpu);
  m.impl("upsample_gather_dot", gather_dot_cpu);
}
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) {
  m.impl("upsample_gather", gather_cuda);
  m.impl("upsample_gather_dot", gather_dot_cuda);
}
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) {
  m.impl("upsample_gather", gather_meta);
  m.impl("upsample_gather_dot", gather_dot_meta);
}

}  // namespace dpt
