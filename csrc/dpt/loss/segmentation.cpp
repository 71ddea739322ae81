#include "dpt/loss/segmentation.h"

#include <torch/library.h>

#include "dpt/ops/resize.h"

namespace dpt::loss {
namespace {

// Summed apart from the loss, which on CUDA would do it by atomic additions.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels, int64_t ignore_index) {
  const Tensor each =
      at::cross_entropy_loss_symint(logits, labels, {}, at::Reduction::None, ignore_index);
  return each.sum() / (labels != ignore_index).sum().clamp_min(1);
}

Tensor as_float(const Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
}

void check(const char* what, const Tensor& logits, const Tensor& labels) {
  TORCH_CHECK_VALUE(logits.dim() == 4 && at::isFloatingType(logits.scalar_type()),
                    "segmentation: ", what,
                    " must be [B, K, H, W] in float32, float64, float16 or "
                    "bfloat16, got ",
                    logits.sym_sizes(), " in ", logits.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 3 && labels.scalar_type() == at::kLong,
                    "segmentation: labels must be int64 [B, H, W], got ", labels.scalar_type(), " ",
                    labels.sym_sizes(), "; convert them with labels.long()");
  TORCH_CHECK_VALUE(logits.sym_size(0) == labels.sym_size(0), "segmentation: ", what,
                    " and labels must have one batch size, got ", logits.sym_sizes(), " and ",
                    labels.sym_sizes());
  TORCH_CHECK_VALUE(logits.device() == labels.device(), "segmentation: ", what,
                    " and labels must be on one device, got ", logits.device(), " and ",
                    labels.device(), "; move one with to()");
}

}  // namespace

Tensor segmentation(const Tensor& logits, const Tensor& labels, const Tensor& auxiliary_logits,
                    const SegmentationOptions& options) {
  check("logits", logits, labels);
  TORCH_CHECK_VALUE(
      logits.sym_size(2) == labels.sym_size(1) && logits.sym_size(3) == labels.sym_size(2),
      "segmentation: logits and labels must have one size, got ", logits.sym_sizes(), " and ",
      labels.sym_sizes(), "; resize the labels to the image that the network saw");
  const Tensor loss = cross_entropy(as_float(logits), labels, options.ignore_index);
  if (!auxiliary_logits.defined()) return loss;
  TORCH_CHECK_VALUE(options.auxiliary_weight >= 0,
                    "segmentation: auxiliary_weight must be 0 or more, got ",
                    options.auxiliary_weight);
  check("auxiliary_logits", auxiliary_logits, labels);
  TORCH_CHECK_VALUE(auxiliary_logits.sym_size(1) == logits.sym_size(1),
                    "segmentation: auxiliary_logits must have the classes of logits, got ",
                    auxiliary_logits.sym_sizes(), " and ", logits.sym_sizes());
  const Tensor resized = resize_bilinear(as_float(auxiliary_logits), labels.sym_size(1),
                                         labels.sym_size(2), /*align_corners=*/false);
  return loss + options.auxiliary_weight * cross_entropy(resized, labels, options.ignore_index);
}

namespace {

Tensor segmentation_op(const Tensor& logits, const Tensor& labels,
                       const std::optional<Tensor>& auxiliary_logits, double auxiliary_weight,
                       int64_t ignore_index) {
  return segmentation(logits, labels, auxiliary_logits.value_or(Tensor()),
                      {auxiliary_weight, ignore_index});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "segmentation_loss(Tensor logits, Tensor labels, Tensor? auxiliary_logits=None, *, float "
      "auxiliary_weight=0.2, int ignore_index=255) -> Tensor",
      segmentation_op);
}

}  // namespace dpt::loss
