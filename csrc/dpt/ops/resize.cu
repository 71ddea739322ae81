// csrc/dpt/ops/resize.cu -- CUDA kernel of resize_bilinear_backward; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "dpt/ops/resize_cuda.h"
#include "dpt/ops/resize_math.h"

namespace dpt::resize {
namespace {

// One thread makes V channels of an input pixel, or one value: no atomic additions, so that the sum
// has one order. Of twice as large a map it reads up to 16 pixels, which its neighbours read, too,
// from cache. Bound by bytes: grad once, out once.
template <int V, bool kChannelsLast, class T>
__global__ void __launch_bounds__(256)
    backward_kernel(Size size, Axis<Acc<T>> rows, Axis<Acc<T>> columns, int64_t num_items,
                    const T* __restrict__ grad, T* __restrict__ out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < num_items;
       item += stride) {
    backward_item<V, kChannelsLast>(size, rows, columns, grad, out, item);
  }
}

template <class T>
cudaError_t launch_typed(bool channels_last, const Size& size, bool align_corners, const void* grad,
                         void* out, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  constexpr int64_t kThreads = 256;
  constexpr int64_t kMaxBlocks = int64_t{1} << 22;  // then a thread takes more than one item
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool packed = channels_last && size.C % V == 0 && aligned(grad) && aligned(out);
  const int64_t num_items = size.B * size.C * size.h * size.w / (packed ? V : 1);
  const auto blocks =
      static_cast<unsigned>(std::min((num_items + kThreads - 1) / kThreads, kMaxBlocks));
  const auto kernel = packed          ? backward_kernel<V, true, T>
                      : channels_last ? backward_kernel<1, true, T>
                                      : backward_kernel<1, false, T>;
  kernel<<<blocks, kThreads, 0, stream>>>(size, axis<Acc<T>>(size.h, size.H, align_corners),
                                          axis<Acc<T>>(size.w, size.W, align_corners), num_items,
                                          static_cast<const T*>(grad), static_cast<T*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward(upsample::Dtype dtype, bool channels_last, const Size& size,
                            bool align_corners, const void* grad, void* out, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(channels_last, size, align_corners, grad, out, stream);
    case upsample::Dtype::kDouble:
      return launch_typed<double>(channels_last, size, align_corners, grad, out, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(channels_last, size, align_corners, grad, out, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(channels_last, size, align_corners, grad, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::resize
