// csrc/dpt/ops/add_layer_norm_cuda.h -- launches the CUDA kernel of add_layer_norm.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::norm {

// x, y and out are dense [rows, D] of `dtype`, not empty; x changes. On `stream`.
cudaError_t launch_add_layer_norm(upsample::Dtype dtype, void* x, const void* y, void* out,
                                  int64_t rows, int64_t D, double eps, cudaStream_t stream);

}  // namespace dpt::norm
