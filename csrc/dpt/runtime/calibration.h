// csrc/dpt/runtime/calibration.h -- which layers of a network may be int8.
//
// A row of the left factor has 255 steps up to its largest value, and so has a channel of the
// weights. Where a few values are far larger than the others, those are lost; whether that matters
// to the result only a prediction tells.
#pragma once

#include <functional>

#include "dpt/runtime/packed.h"

namespace dpt::runtime {

// Half of what int8 may cost: the mean error of depth and of logits over their range is to stay
// below 1 % for other images, too.
constexpr double kInt8Error = 0.005;

// Packs a network of float32, in int8 what pays: linear layers, 1x1 convolutions, and products that
// are made before a map is resized. 3x3 convolutions have Winograd's algorithm instead, or are int8
// where that gains more, with VNNI or AMX. What is not int8 becomes `kernels.beside_int8`. While
// the mean error over `num_images` images, against the network in float32, is above kInt8Error,
// layers fall back to that, first those that bring the largest error alone, on the image that had
// the largest. `predict(i)` gives what the network, as it is packed then, makes of image i.
//
// Returns the names of the layers that fell back, in that order. Throws (ValueError in Python) if
// the network predicts numbers that are not finite.
std::vector<std::string> pack_calibrated(Network& network, const Kernels& kernels,
                                         size_t num_images,
                                         const std::function<Output(size_t)>& predict);

}  // namespace dpt::runtime
