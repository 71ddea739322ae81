// csrc/dpt/ops/group_norm.cu -- CUDA kernels of group_norm; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "dpt/ops/group_norm_cuda.h"

namespace dpt::norm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kPixelsOfPart = 1024;
constexpr int64_t kItems = 8;  // of a thread that normalises

// In a fixed order; thread 0 has the sum.
template <class A>
__device__ Moments<A> block_sum(Moments<A> value) {
  __shared__ Moments<A> of_warps[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value.add({__shfl_down_sync(0xFFFFFFFFU, value.sum, step),
               __shfl_down_sync(0xFFFFFFFFU, value.squares, step)});
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / kWarp; ++i) value.add(of_warps[i]);
  }
  return value;
}

// A block sums one group of an image over a run of pixels; a thread takes pixels of it. What
// neighbouring groups read of a cache line comes from cache. Bound by bytes: x is read once. All
// blocks lie along x, where a grid has 2^31 - 1 of them and not 65535.
template <class T>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(Groups n, int64_t parts, const T* __restrict__ x,
                   Moments<Acc<T>>* __restrict__ partial) {
  const int64_t part = blockIdx.x % parts, row = blockIdx.x / parts;
  const int64_t group = row % n.groups, image = row / n.groups;
  const int64_t begin = n.pixels * part / parts, end = n.pixels * (part + 1) / parts;
  const auto total = block_sum(
      moments<Acc<T>>(n, x + image * n.pixels * n.C, group, begin, end, threadIdx.x, kThreads));
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// A block takes a run of values of one image, a thread V neighbours at a time; before that it finds
// what becomes of each channel. Bound by bytes: x and add are read and out written once.
template <int V, class T>
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(Groups n, int64_t parts, int64_t runs, const T* __restrict__ x,
                     const T* __restrict__ add, const Acc<T>* __restrict__ weight,
                     const Acc<T>* __restrict__ bias, Acc<T> eps, bool relu,
                     const Moments<Acc<T>>* __restrict__ partial, T* __restrict__ out) {
  using A = Acc<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* channels = reinterpret_cast<Affine<A>*>(memory);
  const int64_t image = blockIdx.x / runs, run = blockIdx.x % runs;
  x += image * n.pixels * n.C;
  out += image * n.pixels * n.C;
  if (add != nullptr) add += image * n.pixels * n.C;
  for (int64_t c = threadIdx.x; c < n.C; c += kThreads) {
    const auto* of_group = partial + (image * n.groups + c / n.width()) * parts;
    Moments<A> total = of_group[0];
    for (int64_t part = 1; part < parts; ++part) total.add(of_group[part]);
    channels[c] = affine(n, x, c, total, weight, bias, eps);
  }
  __syncthreads();
  const int64_t items = n.pixels * n.C / V, per_pixel = n.C / V;
  const int64_t begin = run * kThreads * kItems;
  const int64_t end = begin + kThreads * kItems < items ? begin + kThreads * kItems : items;
  const int64_t step = kThreads % per_pixel;
  int64_t place = (begin + threadIdx.x) % per_pixel;  // of the item in its pixel
  for (int64_t item = begin + threadIdx.x; item < end; item += kThreads) {
    auto values = load<V>(x + item * V);
    Pack<T, V> more{};
    if (add != nullptr) more = load<V>(add + item * V);
    for (int v = 0; v < V; ++v) {
      values.at[v] = static_cast<T>(
          channels[place * V + v](static_cast<A>(values.at[v]), static_cast<A>(more.at[v]), relu));
    }
    *reinterpret_cast<Pack<T, V>*>(out + item * V) = values;
    place += place + step < per_pixel ? step : step - per_pixel;
  }
}

template <class T>
cudaError_t launch_typed(const Groups& n, const void* x, const void* add, const void* weight,
                         const void* bias, double eps, bool relu, void* partial, void* out,
                         cudaStream_t stream) {
  using A = Acc<T>;
  const auto* from = static_cast<const T*>(x);
  auto* sums = static_cast<Moments<A>*>(partial);
  const int64_t parts = parts_of(n);
  moments_kernel<<<static_cast<unsigned>(n.B * n.groups * parts), kThreads, 0, stream>>>(
      n, parts, from, sums);
  constexpr int V = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool packed = n.C % V == 0 && aligned(x) && aligned(add) && aligned(out);
  const int64_t items = n.pixels * n.C / (packed ? V : 1);
  const int64_t runs = (items + kThreads * kItems - 1) / (kThreads * kItems);
  const auto kernel = packed ? normalize_kernel<V, T> : normalize_kernel<1, T>;
  kernel<<<static_cast<unsigned>(n.B * runs), kThreads, n.C * sizeof(Affine<A>), stream>>>(
      n, parts, runs, from, static_cast<const T*>(add), static_cast<const A*>(weight),
      static_cast<const A*>(bias), static_cast<A>(eps), relu, sums, static_cast<T*>(out));
  return cudaGetLastError();
}

}  // namespace

int64_t parts_of(const Groups& n) { return std::clamp<int64_t>(n.pixels / kPixelsOfPart, 1, 32); }

cudaError_t launch_group_norm(upsample::Dtype dtype, const Groups& n, const void* x,
                              const void* add, const void* weight, const void* bias, double eps,
                              bool relu, void* partial, void* out, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(n, x, add, weight, bias, eps, relu, partial, out, stream);
    case upsample::Dtype::kDouble:
      return launch_typed<double>(n, x, add, weight, bias, eps, relu, partial, out, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(n, x, add, weight, bias, eps, relu, partial, out, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(n, x, add, weight, bias, eps, relu, partial, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::norm
