// csrc/dpt/optim/min_norm.h -- the weights of a multi-objective step.
#pragma once

#include "dpt/common.h"
#include "dpt/optim/min_norm_solver.h"

namespace dpt {

// min_norm of min_norm_solver.h on gram [T, T] (any floating dtype, any device): weights [T] of the
// same dtype on the same device. Computed on the host in float64; no gradient.
DPT_API Tensor min_norm(const Tensor& gram);

}  // namespace dpt
