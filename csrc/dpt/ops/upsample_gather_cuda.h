// csrc/dpt/ops/upsample_gather_cuda.h -- launches the CUDA kernels of upsample_gather.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/upsample_add_cuda.h"
#include "dpt/ops/upsample_gather_math.h"

namespace dpt::upsample {

// On `stream`; `in` and `out` are dense and of `dtype`, all else is of the type that sums have
// (float32, of float64 itself), and nothing is empty.
struct GatherLaunch {
  Dtype dtype;
  Gathering size;
  const void *in, *bias, *border;  // bias and border may be null
  void* out;
  cudaStream_t stream;
};

// out [B, H, W, n].
cudaError_t launch_gather(const GatherLaunch& launch, bool relu);

// out [B, H, W], of the type of sums.
cudaError_t launch_gather_dot(const GatherLaunch& launch, const void* dot, const void* dot_bias,
                              bool invert, double scale, double shift);

}  // namespace dpt::upsample
