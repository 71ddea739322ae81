// csrc/dpt/runtime/prepare.h -- a rewritten network as `evaluate` takes it.
#pragma once

#include "dpt/runtime/network.h"

namespace dpt::runtime {

// Of sums, of what is added after them, and of results.
at::ScalarType type_of_sums(at::ScalarType dtype);

// Of maps, where products are of `dtype`: bfloat16 of float8_e4m3fn.
DPT_API at::ScalarType type_of_maps(at::ScalarType dtype);

// A copy of `network` for `evaluate`, on `device`: weights of `dtype` with channels next to each
// other (of float8_e4m3fn: bfloat16, and the transformer's linear layers in float8, with scales);
// those of a convolution of a resized map as [9 * n, c, 1, 1], the taps one after another; the
// phases of a level as one 3x3 convolution, of s * s * n channels.
DPT_API Network prepare(const Network& network, at::Device device, at::ScalarType dtype);

}  // namespace dpt::runtime
