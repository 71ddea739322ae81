// csrc/dpt/ops/quantize_rows_cuda.h -- launches the CUDA kernel of quantize_rows.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::float8 {

// x is dense [rows, D] of `dtype` (not double), not empty; out has its size, scale [rows]. On
// `stream`.
cudaError_t launch_quantize_rows(upsample::Dtype dtype, const void* x, uint8_t* out, float* scale,
                                 int64_t rows, int64_t D, cudaStream_t stream);

}  // namespace dpt::float8
