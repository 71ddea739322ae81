// csrc/dpt/ops/autocast.h -- autocast around an autograd function of our own.
#pragma once

#include <ATen/autocast_mode.h>

#include "dpt/common.h"

namespace dpt {

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
