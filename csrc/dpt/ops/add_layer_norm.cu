// csrc/dpt/ops/add_layer_norm.cu -- CUDA kernel of add_layer_norm; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "dpt/ops/add_layer_norm_cuda.h"
#include "dpt/ops/add_layer_norm_math.h"

namespace dpt::norm {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 4;  // of a block

// In every lane, in a fixed order.
struct WarpSum {
  template <class A>
  __device__ A operator()(A value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      value += __shfl_xor_sync(0xFFFFFFFFU, value, step);
    }
    return value;
  }
};

// A warp takes a row; it reads and writes runs of 32 * V values. Bound by bytes: x and y are read
// and x and out written once; what a lane reads again comes from cache.
template <int V, class T>
__global__ void __launch_bounds__(kWarp* kRows)
    add_layer_norm_kernel(T* x, const T* __restrict__ y, T* __restrict__ out, int64_t rows,
                          int64_t D, Acc<T> eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (row >= rows) return;  // a whole warp
  const int64_t at = row * D;
  add_layer_norm_row<V>(x + at, y + at, out + at, D, eps, threadIdx.x % kWarp, kWarp, WarpSum());
}

template <class T>
cudaError_t launch_typed(void* x, const void* y, void* out, int64_t rows, int64_t D, double eps,
                         cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const auto blocks = static_cast<unsigned>((rows + kRows - 1) / kRows);
  const bool packed = D % V == 0 && aligned(x) && aligned(y) && aligned(out);
  const auto kernel = packed ? add_layer_norm_kernel<V, T> : add_layer_norm_kernel<1, T>;
  kernel<<<blocks, kWarp * kRows, 0, stream>>>(static_cast<T*>(x), static_cast<const T*>(y),
                                               static_cast<T*>(out), rows, D,
                                               static_cast<Acc<T>>(eps));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_add_layer_norm(upsample::Dtype dtype, void* x, const void* y, void* out,
                                  int64_t rows, int64_t D, double eps, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(x, y, out, rows, D, eps, stream);
    case upsample::Dtype::kDouble:
      return launch_typed<double>(x, y, out, rows, D, eps, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(x, y, out, rows, D, eps, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(x, y, out, rows, D, eps, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::norm
