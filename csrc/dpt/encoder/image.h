// csrc/dpt/encoder/image.h -- the checks that every encoder makes of its images.
#pragma once

#include "dpt/common.h"

namespace dpt {

// Throws unless image is [B, 3, H, W] of type `dtype` (or any floating point one under autocast),
// H and W positive multiples of `multiple`.
DPT_API void check_image(const Tensor& image, int64_t multiple, at::ScalarType dtype);

}  // namespace dpt
