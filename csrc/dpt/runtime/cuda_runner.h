// csrc/dpt/runtime/cuda_runner.h -- a frozen network on a GPU, one CUDA graph for each shape of
// images.
#pragma once

#include <array>
#include <memory>

#include "dpt/runtime/network.h"

namespace dpt::runtime {

// Calls from several threads and on several streams are in order on the GPU, each behind the one
// before it; the host waits for the GPU only when a shape comes that has no graph yet.
class CudaRunner {
 public:
  // Pixels are normalised by mean and std. Throws (ValueError in Python) in a build without CUDA.
  CudaRunner(const Network& network, at::Device device, at::ScalarType dtype,
             const std::array<double, 3>& mean, const std::array<double, 3>& std);
  ~CudaRunner();

  // With its index.
  at::Device device() const;

  // images: float32 or uint8 [B, 3, H, W] on the device, of a size that fits. Work is on the
  // current stream; where that is being captured, it becomes part of the caller's graph.
  Output operator()(const Tensor& images);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dpt::runtime
