// csrc/dpt/loss/segmentation.h -- cross-entropy, with the auxiliary head's share.
#pragma once

#include "dpt/common.h"

namespace dpt::loss {

struct SegmentationOptions {
  double auxiliary_weight = 0.2;  // Ranftl et al. 2021, Sec. 4.2
  int64_t ignore_index = 255;
};

// Mean cross-entropy over the labelled pixels of the batch, plus auxiliary_weight times that of the
// auxiliary logits; 0 where no pixel is labelled. logits [B, K, H, W]; labels [B, H, W], int64,
// classes in [0, K) or ignore_index; auxiliary_logits, if defined, [B, K, h, w], resized to the
// labels' size (bilinear, half-pixel centres: transformers' DPT). Computed in float32, or float64
// if the logits are. Throws ValueError for tensors that do not fit.
DPT_API Tensor segmentation(const Tensor& logits, const Tensor& labels,
                            const Tensor& auxiliary_logits = {},
                            const SegmentationOptions& options = {});

}  // namespace dpt::loss
