// csrc/dpt/ops/autocast.h -- autocast around an autograd function of our own.
#pragma once

#include <ATen/autocast_mode.h>

#include "dpt/common.h"

namespace dpt {

// The type in which autocast runs a product or a convolution with this weight.
inline at::ScalarType autocast_dtype(const Tensor& weight) {
  const auto device = weight.device().type();
  const bool lowers = at::autocast::is_autocast_available(device) &&
                      at::autocast::is_autocast_enabled(device) &&
                      weight.scalar_type() != at::kDouble;
  return lowers ? at::autocast::get_autocast_dtype(device) : weight.scalar_type();
}

// `tensor` as autocast hands it to a matrix product or a convolution; itself where autocast is off.
// It is called before an autograd function: a weight cast inside would enter autocast's cache
// without its gradient.
inline Tensor autocast_to_lower(const Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  const auto device = tensor.device().type();
  if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device)) {
    return tensor;
  }
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

// In whose life autocast leaves all calls alone.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

}  // namespace dpt
