// csrc/dpt/ops/readout.h -- the readout token, read into the patches, in one pass.
#pragma once

#include "dpt/common.h"

namespace dpt {

// tokens [B, P + N, D] and token [B, D], what a linear layer made of the patches and of the readout
// token, both dense -> GELU (by erf) of the sum of each patch and its image's token, without the
// first P = `prefix` tokens, dense [B, N, D]. Sums are float32 (of float64: float64). Without
// gradients.
DPT_API Tensor readout(const Tensor& tokens, const Tensor& token, int64_t prefix);

}  // namespace dpt
