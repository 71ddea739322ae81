// csrc/dpt/loss/scale_and_shift_cuda.h -- launches the CUDA kernels of the scale- and
// shift-invariant losses. All pointers are of the device; maps are dense [B, H, W].
#pragma once

#include <cuda_runtime_api.h>

#include "dpt/loss/terms.h"

namespace dpt::loss {

struct Shape {
  int64_t B, H, W;
};

template <class T>
cudaError_t launch_forward(const Terms& terms, const Shape& shape, const T* prediction,
                           const T* target, const uint8_t* mask, T* residual, Stats* stats,
                           double* scale, double* shift, int64_t* dropped, double* sums,
                           double* counts, cudaStream_t stream);

template <class T>
cudaError_t launch_backward(const Terms& terms, const Shape& shape, const double* grad_terms,
                            const Stats* stats, const T* prediction, const T* target,
                            const T* residual, T* grad, cudaStream_t stream);

}  // namespace dpt::loss
