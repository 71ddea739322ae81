// csrc/dpt/common.h -- what every file of the core shares: the export macro and the tensor type.
//
// Letters used in shapes throughout: B batch, H W image, p patch, h w patch grid, N = h*w patch
// tokens, D token width, C feature channels, K classes, s stride to the image.
#pragma once

#include <ATen/ATen.h>

#include "dpt/export.h"

namespace dpt {

using at::Tensor;

}  // namespace dpt
