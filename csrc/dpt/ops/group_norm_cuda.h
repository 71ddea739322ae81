// csrc/dpt/ops/group_norm_cuda.h -- launches the CUDA kernels of group_norm.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/group_norm_math.h"
#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::norm {

// Into how many runs of pixels the sums of a group are divided.
int64_t parts_of(const Groups& n);

// x, add (or null) and out are dense [B, pixels, C] of `dtype`, not empty; weight and bias [C] and
// `partial` [B, groups, parts, 2], which is written, of the type of sums. On `stream`.
cudaError_t launch_group_norm(upsample::Dtype dtype, const Groups& n, const void* x,
                              const void* add, const void* weight, const void* bias, double eps,
                              bool relu, void* partial, void* out, cudaStream_t stream);

}  // namespace dpt::norm
