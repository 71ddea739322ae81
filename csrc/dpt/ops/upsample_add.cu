// csrc/dpt/ops/upsample_add.cu -- CUDA kernel of upsample_add; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::upsample {
namespace {

// One thread makes V neighbouring outputs: V channels of a pixel (channels-last) or V columns of a
// row (contiguous). A warp reads skip and writes out as one run of 32 * V elements, in accesses of
// 16 bytes where V allows; the four inputs of an output are shared with its neighbours and come
// from cache. Bound by bytes: skip and out once each, plus x.
template <int V, bool kChannelsLast, class Index, class T>
__global__ void __launch_bounds__(256)
    upsample_add_kernel(Size size, Acc<T> scale_h, Acc<T> scale_w, Index num_items,
                        const T* __restrict__ x, const T* __restrict__ skip, T* __restrict__ out) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index item = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; item < num_items;
       item += stride) {
    if constexpr (kChannelsLast) {
      channels_last_item<V>(size, scale_h, scale_w, x, skip, out, item);
    } else {
      contiguous_item<V>(size, scale_h, scale_w, x, skip, out, item);
    }
  }
}

template <int V, bool kChannelsLast, class T>
cudaError_t launch_packed(const Size& size, const T* x, const T* skip, T* out,
                          cudaStream_t stream) {
  constexpr int64_t kThreads = 256;
  constexpr int64_t kMaxBlocks = int64_t{1} << 22;  // then a thread takes more than one item
  const int64_t num_items = size.B * size.C * size.H * size.W / V;
  const auto blocks =
      static_cast<unsigned>(std::min((num_items + kThreads - 1) / kThreads, kMaxBlocks));
  const auto scale_h = scale<Acc<T>>(size.h, size.H), scale_w = scale<Acc<T>>(size.w, size.W);
  // Dividing in 64 bits costs several times as much as in 32. Below 2^31 items `item += stride`
  // stays below 2^32.
  if (num_items <= std::numeric_limits<int32_t>::max()) {
    upsample_add_kernel<V, kChannelsLast><<<blocks, kThreads, 0, stream>>>(
        size, scale_h, scale_w, static_cast<uint32_t>(num_items), x, skip, out);
  } else {
    upsample_add_kernel<V, kChannelsLast><<<blocks, kThreads, 0, stream>>>(
        size, scale_h, scale_w, static_cast<uint64_t>(num_items), x, skip, out);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_typed(bool channels_last, const Size& size, const void* x, const void* skip,
                         void* out, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool packed =
      (channels_last ? size.C : size.W) % V == 0 && aligned(x) && aligned(skip) && aligned(out);
  const auto run = [&](auto kernel) {
    return kernel(size, static_cast<const T*>(x), static_cast<const T*>(skip), static_cast<T*>(out),
                  stream);
  };
  if (channels_last) return run(packed ? launch_packed<V, true, T> : launch_packed<1, true, T>);
  return run(packed ? launch_packed<V, false, T> : launch_packed<1, false, T>);
}

}  // namespace

cudaError_t launch(Dtype dtype, bool channels_last, const Size& size, const void* x,
                   const void* skip, void* out, cudaStream_t stream) {
  switch (dtype) {
    case Dtype::kFloat:
      return launch_typed<float>(channels_last, size, x, skip, out, stream);
    case Dtype::kDouble:
      return launch_typed<double>(channels_last, size, x, skip, out, stream);
    case Dtype::kHalf:
      return launch_typed<__half>(channels_last, size, x, skip, out, stream);
    case Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(channels_last, size, x, skip, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::upsample
