// csrc/dpt/ops/normalize_pixels.cu -- CUDA kernel of normalize_pixels; no torch header here.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "dpt/ops/normalize_pixels_cuda.h"

namespace dpt::pixels {
namespace {

constexpr int kThreads = 128;

// A block takes a row, a thread pixels of it; a warp reads and writes a run where channels lie next
// to each other, and three where they are planes. Bound by bytes: each is read and written once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    normalize_pixels_kernel(Map map, Normalization by, const uint8_t* __restrict__ in,
                            T* __restrict__ out) {
  normalize_row(map, by, in, out, blockIdx.x, threadIdx.x, kThreads);
}

template <class T>
cudaError_t launch_typed(const Map& map, const Normalization& by, const uint8_t* in, void* out,
                         cudaStream_t stream) {
  normalize_pixels_kernel<<<static_cast<unsigned>(map.B * map.H), kThreads, 0, stream>>>(
      map, by, in, static_cast<T*>(out));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_normalize_pixels(upsample::Dtype dtype, const Map& map, const Normalization& by,
                                    const uint8_t* in, void* out, cudaStream_t stream) {
  switch (dtype) {
    case upsample::Dtype::kFloat:
      return launch_typed<float>(map, by, in, out, stream);
    case upsample::Dtype::kHalf:
      return launch_typed<__half>(map, by, in, out, stream);
    case upsample::Dtype::kBFloat16:
      return launch_typed<__nv_bfloat16>(map, by, in, out, stream);
    case upsample::Dtype::kDouble:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace dpt::pixels
