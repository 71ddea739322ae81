// csrc/dpt/runtime/evaluate.h -- the forward pass of a rewritten network by ATen's operators, on
// any device and in any floating type.
#pragma once

#include <array>
#include <map>
#include <set>

#include "dpt/runtime/network.h"

namespace dpt::runtime {

// What depends on the size of the images alone. The first pass fills it.
struct SizeCache {
  Tensor pos_embed{};                         // [h * w, D]
  std::map<const Product*, Tensor> border{};  // bias and border of each output pixel, [1, n, H, W]
  std::set<const Product*> unfused{};         // cuDNN has no kernel that does its ReLU, too
  bool find_algorithms = true;                // cuDNN tries which is the fastest, once a size
};

// Whether cuDNN is asked for one kernel that does a convolution, its bias and the ReLU behind it:
// for a map of such a type and a convolution that keeps its size and channels. What it takes is not
// deterministic.
DPT_API bool fuses_relu(const Product& product, at::DeviceType device, at::ScalarType dtype,
                        bool deterministic);

// By which pixels are normalised.
struct PixelStatistics {
  std::array<double, 3> mean, std;
};

// The output for images [B, 3, H, W] of a size that fits, on the device of a prepared network:
// normalised and dense, or uint8 in any layout. Depth is float32 [B, H, W] (of a float64 network:
// float64), logits [B, K, H, W] likewise. All work is on the current stream, and the host waits for
// none of it. Products of float32 follow PyTorch's switches of TF32.
DPT_API Output evaluate(const Network& network, SizeCache& cache, const Tensor& images,
                        const PixelStatistics& pixels = {});

}  // namespace dpt::runtime
