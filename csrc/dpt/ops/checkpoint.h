// csrc/dpt/ops/checkpoint.h -- activation checkpointing (Chen et al. 2016): a part keeps only its
// input for the backward pass, which runs its forward pass again. Less memory for about a third
// more time.
#pragma once

#include <functional>

#include "dpt/layers.h"

namespace dpt {

using Segment = std::function<Tensor(const Tensor& x, at::TensorList parameters)>;

// segment(x, parameters), with nothing but `x` and `parameters` kept for the backward pass.
// `segment` must be deterministic. Differentiable once; a second derivative is refused. Inside a
// transform of torch.func everything is kept.
DPT_API Tensor checkpoint(Segment segment, const Tensor& x, at::TensorList parameters);

// The same for a layer without buffers.
template <class Part>
Tensor checkpoint(const Part& part, const Tensor& x) {
  Part copy = part;  // handles, not data
  std::vector<Tensor> parameters;
  for_each_tensor(copy, [&](const std::string&, Tensor& tensor, const TensorInfo&) {
    parameters.push_back(tensor);
  });
  return checkpoint(
      [copy](const Tensor& x, at::TensorList parameters) mutable {
        bind(copy, parameters, {}, "checkpoint");
        return copy(x);
      },
      x, parameters);
}

}  // namespace dpt
