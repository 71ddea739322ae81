// csrc/dpt/ops/resize_cuda.h -- launches the CUDA kernel of resize_bilinear_backward.
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/ops/upsample_add_cuda.h"

namespace dpt::resize {

// grad [B, C, H, W] and out [B, C, h, w] are dense, of `dtype`, in one layout; out is not empty. On
// `stream`.
cudaError_t launch_backward(upsample::Dtype dtype, bool channels_last, const upsample::Size& size,
                            bool align_corners, const void* grad, void* out, cudaStream_t stream);

}  // namespace dpt::resize
