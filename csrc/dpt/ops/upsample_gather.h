// csrc/dpt/ops/upsample_gather.h -- the second half of a 3x3 convolution of an upsampled map, when
// the products with the weights were made before the upsampling.
#pragma once

#include "dpt/common.h"

namespace dpt {

// products [B, h, w, 9 * n], dense: those of the nine taps, number 3 * (dy + 1) + dx + 1, of a
// convolution with zero padding. Resized bilinearly to height x width, moved by (dy, dx) and summed
// with bias [n] and border [16, n] (by where the pixel is: see runtime::Product; both may be
// undefined), perhaps with a ReLU -> [B, height, width, n]. bias, border and all sums are float32
// (of float64: float64). Without gradients.
DPT_API Tensor upsample_gather(const Tensor& products, const Tensor& bias, const Tensor& border,
                               int64_t height, int64_t width, bool align_corners, bool relu);

// relu(sum over channels of dot [n] * relu(x) + dot_bias [1]) of the same x, [B, height, width] in
// the type of sums; with `inversion`, a scale and a shift, 1 / max(scale * that + shift, 1e-8).
DPT_API Tensor upsample_gather_dot(const Tensor& products, const Tensor& bias, const Tensor& border,
                                   const Tensor& dot, const Tensor& dot_bias, int64_t height,
                                   int64_t width, bool align_corners,
                                   at::ArrayRef<double> inversion);

}  // namespace dpt
