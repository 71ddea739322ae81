// csrc/dpt/loss/silog.h -- scale-invariant logarithmic error of metric depth (Eigen et al. 2014).
#pragma once

#include <optional>

#include "dpt/loss/scale_and_shift.h"

namespace dpt::loss {

// With d = log prediction - log target over the n valid pixels, and mean squares E[d^2]:
enum class SilogVariant {
  kEigen,          // E[d^2] - 0.5 E[d]^2
  kBts,            // 10 sqrt(E[d^2] - 0.85 E[d]^2)
  kAdabins,        // 10 sqrt(unbiased variance of d + 0.15 E[d]^2)
  kDepthAnything,  // sqrt(E[d^2] - 0.5 E[d]^2)
};

struct SilogOptions {
  SilogVariant variant = SilogVariant::kEigen;
  // kBatch: the pixels of all images are one set. None: as published, kImage for kEigen, kBatch for
  // the others.
  std::optional<Reduction> reduction = std::nullopt;
};

// prediction and target [B, H, W]: positive depth; what else is said of maps in
// scale_and_shift.h. Predictions below 1e-6 count as 1e-6 and get no gradient; an image with a
// valid target that is not positive is dropped as kNotFinite. The square root's derivative at 0 is
// taken as 0. In the result scale is 1 and shift is 0.
DPT_API LossResult silog(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                         const SilogOptions& options = {});

}  // namespace dpt::loss
