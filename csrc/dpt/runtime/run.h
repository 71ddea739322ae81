// csrc/dpt/runtime/run.h -- the forward pass of a packed network.
#pragma once

#include "dpt/runtime/arena.h"
#include "dpt/runtime/kernels.h"
#include "dpt/runtime/network.h"
#include "dpt/runtime/profile.h"

namespace dpt::runtime {

// What depends on the size of the patch grid alone.
struct Geometry {
  Tensor pos_embed;  // [h * w, D]
};

// The output for images [B, 3, H, W], float32 and contiguous, of a size that fits. Adds to
// `profile` where there is one.
Output run(const Network& network, const Kernels& kernels, const Geometry& geometry, Arena& arena,
           int threads, const Tensor& images, Profile* profile = nullptr);

}  // namespace dpt::runtime
