// csrc/dpt/ops/form.h -- who is given the ATen form of an operation instead of our own.
#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "dpt/common.h"

namespace dpt {

// FakeTensor, DTensor, other subclasses, modes, torch.func and batches of gradients
// (is_grads_batched): they are given ATen operators, which they know.
inline bool traced(const Tensor& tensor) {
  return tensor.key_set().has_any(
             c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Batched})) ||
         c10::impl::dispatch_mode_enabled() || in_torch_func();
}

// Whether autograd will record what is done with this tensor.
inline bool wants_gradient(const Tensor& tensor) {
  return at::GradMode::is_enabled() && tensor.defined() && tensor.requires_grad();
}

// Whether a layer of this weight may be an autograd function of our own.
inline bool takes_own_gradient(const Tensor& x, const Tensor& weight) {
  return wants_gradient(weight) && !traced(x) && !traced(weight);
}

}  // namespace dpt
