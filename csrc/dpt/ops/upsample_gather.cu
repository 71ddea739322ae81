// csrc/dpt/ops/upsample_gather.cu -- CUDA kernels of upsample_gather; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "dpt/ops/upsample_gather_cuda.h"

namespace dpt::upsample {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// One thread makes V channels of a pixel from four corners of nine taps. Neighbouring threads read
// neighbouring channels, 16 bytes each, and write as one run; a pixel of the input is read by about
// 36 / 4 pixels of the output, from cache. Bound by the bytes of `in`, once, and `out`.
template <int V, class Index, class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Gathering size, Index num_items, const T* __restrict__ in,
                  GatherBias<Acc<T>> bias, bool relu, T* __restrict__ out) {
  const Index item = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (item < num_items) gather_item<V>(size, in, bias, relu, out, item);
}

// `lanes` neighbouring threads of a warp, a power of two, make a pixel: n / V items, one or more
// each. Their shares are added in a fixed order.
template <int V, class Index, class T>
__global__ void __launch_bounds__(kThreads)
    gather_dot_kernel(Gathering size, Index num_pixels, int lanes, const T* __restrict__ in,
                      GatherBias<Acc<T>> bias, GatherDot<Acc<T>> to, Acc<T>* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const Index pixel = static_cast<Index>(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  const auto groups = static_cast<Index>(size.n / V);
  Acc<T> sum = 0;
  if (pixel < num_pixels) {
    for (Index group = lane; group < groups; group += lanes) {
      sum += dot_item<V>(size, in, bias, to, pixel * groups + group);
    }
  }
  // All threads of the warp take part.
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, step);
  if (lane == 0 && pixel < num_pixels) out[pixel] = finished(to, sum);
}

// f(index) with a zero of a type that holds `count`: dividing in 64 bits costs several times as
// much as in 32.
template <class F>
void with_index(int64_t count, const F& f) {
  if (count <= std::numeric_limits<int32_t>::max()) {
    f(uint32_t{0});
  } else {
    f(uint64_t{0});
  }
}

template <int V, class T>
void gather(const GatherLaunch& launch, bool relu) {
  const Gathering& g = launch.size;
  const int64_t num_items = g.B * g.H * g.W * (g.n / V);
  const auto blocks = static_cast<unsigned>((num_items + kThreads - 1) / kThreads);
  const GatherBias<Acc<T>> bias{static_cast<const Acc<T>*>(launch.bias),
                                static_cast<const Acc<T>*>(launch.border)};
  with_index(num_items, [&](auto zero) {
    using Index = decltype(zero);
    gather_kernel<V><<<blocks, kThreads, 0, launch.stream>>>(g, static_cast<Index>(num_items),
                                                             static_cast<const T*>(launch.in), bias,
                                                             relu, static_cast<T*>(launch.out));
  });
}

template <int V, class T>
void gather_dot(const GatherLaunch& launch, const GatherDot<Acc<T>>& to) {
  const Gathering& g = launch.size;
  const int64_t num_pixels = g.B * g.H * g.W;
  int lanes = 1;
  while (lanes < kWarp && lanes < g.n / V) lanes *= 2;
  const int64_t per_block = kThreads / lanes;
  const auto blocks = static_cast<unsigned>((num_pixels + per_block - 1) / per_block);
  const GatherBias<Acc<T>> bias{static_cast<const Acc<T>*>(launch.bias),
                                static_cast<const Acc<T>*>(launch.border)};
  with_index(num_pixels * (g.n / V), [&](auto zero) {
    using Index = decltype(zero);
    gather_dot_kernel<V><<<blocks, kThreads, 0, launch.stream>>>(
        g, static_cast<Index>(num_pixels), lanes, static_cast<const T*>(launch.in), bias, to,
        static_cast<Acc<T>*>(launch.out));
  });
}

// f(zero, width): a zero of the type, and how many of them a thread takes at once.
template <class F>
cudaError_t dispatch(const GatherLaunch& launch, bool packed_out, const F& f) {
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    if (launch.size.n % V == 0 && aligned(launch.in) && (!packed_out || aligned(launch.out))) {
      f(zero, std::integral_constant<int, V>());
    } else {
      f(zero, std::integral_constant<int, 1>());
    }
    return cudaGetLastError();
  };
  switch (launch.dtype) {
    case Dtype::kFloat:
      return typed(float{});
    case Dtype::kDouble:
      return typed(double{});
    case Dtype::kHalf:
      return typed(__half{});
    case Dtype::kBFloat16:
      return typed(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_gather(const GatherLaunch& launch, bool relu) {
  return dispatch(launch, /*packed_out=*/true,
                  [&](auto zero, auto width) { gather<width(), decltype(zero)>(launch, relu); });
}

cudaError_t launch_gather_dot(const GatherLaunch& launch, const void* dot, const void* dot_bias,
                              bool invert, double scale, double shift) {
  return dispatch(launch, /*packed_out=*/false, [&](auto zero, auto width) {
    using A = Acc<decltype(zero)>;
    gather_dot<width(), decltype(zero)>(
        launch, {static_cast<const A*>(dot), static_cast<const A*>(dot_bias), invert,
                 static_cast<A>(scale), static_cast<A>(shift)});
  });
}

}  // namespace dpt::upsample
