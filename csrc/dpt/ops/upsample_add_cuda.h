// csrc/dpt/ops/upsample_add_cuda.h -- launches the CUDA kernel of upsample_add.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/upsample_add_math.h"

namespace dpt::upsample {

enum class Dtype { kFloat, kDouble, kHalf, kBFloat16 };

// out = upsample(x) + skip, on `stream`. x, skip and out are dense, in the same layout, and out is
// not empty.
cudaError_t launch(Dtype dtype, bool channels_last, const Size& size, const void* x,
                   const void* skip, void* out, cudaStream_t stream);

}  // namespace dpt::upsample
