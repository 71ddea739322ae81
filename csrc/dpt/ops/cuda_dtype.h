// csrc/dpt/ops/cuda_dtype.h -- the type of a tensor, for a launch of a CUDA kernel.
#pragma once

#include "dpt/common.h"
#include "dpt/ops/upsample_add_cuda.h"

namespace dpt {

// Of a floating type of two bytes or more.
inline upsample::Dtype cuda_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return upsample::Dtype::kFloat;
    case at::kDouble:
      return upsample::Dtype::kDouble;
    case at::kHalf:
      return upsample::Dtype::kHalf;
    default:
      return upsample::Dtype::kBFloat16;
  }
}

}  // namespace dpt
