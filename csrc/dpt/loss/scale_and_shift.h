// csrc/dpt/loss/scale_and_shift.h -- losses of depth up to scale and shift (Ranftl et al. 2020,
// "Towards Robust Monocular Depth Estimation", Sec. 5); docs/losses.md has every formula.
#pragma once

#include "dpt/common.h"
#include "dpt/loss/terms.h"

namespace dpt::loss {

// Mean over images, or sums over the batch divided by sums of pixels.
enum class Reduction { kImage, kBatch };
// kPaper: as the paper has it; kPublished: as the code does that its authors published;
// kRecommended: the paper's, with the gradient term's divisor of the code.
enum class Definition { kRecommended, kPaper, kPublished };

struct LossResult {
  Tensor loss;       // []; differentiable
  Tensor per_image;  // [B]; differentiable, by each image's own divisors, 0 where dropped
  Tensor scale;      // [B]; scale * prediction + shift is aligned to the target; no gradient
  Tensor shift;      // [B]
  Tensor dropped;    // [B], int64: see Dropped
};

struct ScaleAndShiftOptions {
  Alignment alignment = Alignment::kRobust;
  DataTerm data = DataTerm::kTrimmed;
  double trim = 0.2;   // share of the valid pixels, in millionths, whose residuals do not count
  double alpha = 0.5;  // weight of the gradient term
  int64_t scales = 4;  // of the gradient term; 0: none
  Reduction reduction = Reduction::kImage;
  Definition definition = Definition::kRecommended;
};

// prediction, target [B, H, W]: float32 or float64, half types are converted to float32. mask [B,
// H, W]: bool, true where the target is valid. What is outside the mask never matters. Sums are
// float64; results have the maps' type. Gradients flow to the prediction alone, through scale and
// shift, too. Throws ValueError for maps that do not fit, options out of range, and a target that
// requires a gradient; RuntimeError for second derivatives and transforms of torch.func.
DPT_API LossResult scale_and_shift_invariant(const Tensor& prediction, const Tensor& target,
                                             const Tensor& mask,
                                             const ScaleAndShiftOptions& options = {});

// The gradient term alone, of prediction - target as they are.
struct GradientMatchingOptions {
  int64_t scales = 4;
  Reduction reduction = Reduction::kImage;
  Definition definition = Definition::kRecommended;
};
DPT_API LossResult gradient_matching(const Tensor& prediction, const Tensor& target,
                                     const Tensor& mask,
                                     const GradientMatchingOptions& options = {});

// Scale and shift, [B], such that scale * prediction + shift is aligned to the target; no gradient.
// Constant maps: scale 0, shift the target's centre. Empty and not finite ones: NaN.
struct AlignmentResult {
  Tensor scale, shift, dropped;
};
DPT_API AlignmentResult align(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                              Alignment mode = Alignment::kRobust);

}  // namespace dpt::loss
