// csrc/dpt/ops/normalize_pixels_cuda.h -- launches the CUDA kernel of normalize_pixels.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/normalize_pixels_math.h"
#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::pixels {

// out is of `dtype` (not double), and nothing is empty. On `stream`.
cudaError_t launch_normalize_pixels(upsample::Dtype dtype, const Map& map, const Normalization& by,
                                    const uint8_t* in, void* out, cudaStream_t stream);

}  // namespace dpt::pixels
