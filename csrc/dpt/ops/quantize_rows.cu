// csrc/dpt/ops/quantize_rows.cu -- CUDA kernel of quantize_rows; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "dpt/ops/quantize_rows_cuda.h"
#include "dpt/ops/quantize_rows_math.h"

namespace dpt::float8 {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 4;  // of a block

// In every lane.
struct WarpLargest {
  __device__ float operator()(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, step));
    }
    return value;
  }
};

// A warp takes a row; it reads runs of 32 * V values. Bound by bytes: x is read once (the second
// time from cache), one byte a value is written.
template <int V, class T>
__global__ void __launch_bounds__(kWarp* kRows)
    quantize_rows_kernel(const T* __restrict__ x, uint8_t* __restrict__ out,
                         float* __restrict__ scale, int64_t rows, int64_t D) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (row >= rows) return;  // a whole warp
  const int lane = threadIdx.x % kWarp;
  const float step = quantize_row<V>(x + row * D, out + row * D, D, lane, kWarp, WarpLargest());
  if (lane == 0) scale[row] = step;
}

template <class T>
cudaError_t launch_typed(const void* x, uint8_t* out, float* scale, int64_t rows, int64_t D,
                         cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const auto blocks = static_cast<unsigned>((rows + kRows - 1) / kRows);
  const bool packed = D % V == 0 && aligned(x) && aligned(out);
  const auto kernel = packed ? quantize_rows_kernel<V, T> : quantize_rows_kernel<1, T>;
  kernel<<<blocks, kWarp * kRows, 0, stream>>>(static_cast<const T*>(x), out, scale, rows, D);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_quantize_rows(upsample::Dtype dtype, const void* x, uint8_t* out, float* scale,
                                 int64_t rows, int64_t D, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(x, out, scale, rows, D, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(x, out, scale, rows, D, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(x, out, scale, rows, D, stream);
    case upsample::Dtype::kDouble:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::float8
