// csrc/dpt/ops/readout.cu -- CUDA kernel of readout; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "dpt/ops/readout_cuda.h"

namespace dpt::patches {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 4;  // of a block

// A warp takes a patch; it reads and writes runs of 32 * V values. Bound by bytes: patches are read
// and written once, an image's token comes from cache.
template <int V, class T>
__global__ void __launch_bounds__(kWarp* kRows)
    readout_kernel(Shape n, const T* __restrict__ tokens, const T* __restrict__ token,
                   T* __restrict__ out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kWarp;
  if (row >= n.B * n.N) return;
  readout_row<V>(n, tokens, token, out, row, threadIdx.x % kWarp, kWarp);
}

template <class T>
cudaError_t launch_typed(const Shape& n, const void* tokens, const void* token, void* out,
                         cudaStream_t stream) {
  constexpr int V = 16 / sizeof(T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool packed = n.D % V == 0 && aligned(tokens) && aligned(token) && aligned(out);
  const auto blocks = static_cast<unsigned>((n.B * n.N + kRows - 1) / kRows);
  const auto kernel = packed ? readout_kernel<V, T> : readout_kernel<1, T>;
  kernel<<<blocks, kWarp * kRows, 0, stream>>>(n, static_cast<const T*>(tokens),
                                               static_cast<const T*>(token), static_cast<T*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_readout(upsample::Dtype dtype, const Shape& n, const void* tokens,
                           const void* token, void* out, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(n, tokens, token, out, stream);
    case upsample::Dtype::kDouble:
      return launch_typed<double>(n, tokens, token, out, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(n, tokens, token, out, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(n, tokens, token, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::patches
