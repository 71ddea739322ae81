// csrc/dpt/common.h -- what every file of the core shares: the export macro and the tensor type.
//
// Letters used in shapes throughout: B batch, H W image, p patch, h w patch grid, N = h*w patch
// tokens, D token width, C feature channels, K classes, s stride to the image.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

#include "dpt/export.h"

namespace dpt {

using at::Tensor;

inline std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// Whether a transform of torch.func runs: grad, jvp, vmap. C++ autograd functions are refused then;
// plain ATen calls work.
inline bool in_torch_func() {
  constexpr c10::DispatchKeySet modes({c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                       c10::DispatchKey::FuncTorchDynamicLayerBackMode});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(modes);
}

}  // namespace dpt
