// csrc/dpt/ops/readout_cuda.h -- launches the CUDA kernel of readout.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/readout_math.h"
#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::patches {

// tokens [B, P + N, D], token [B, D] and out [B, N, D] are dense, of `dtype`; out is not empty. On
// `stream`.
cudaError_t launch_readout(upsample::Dtype dtype, const Shape& n, const void* tokens,
                           const void* token, void* out, cudaStream_t stream);

}  // namespace dpt::patches
