#include "dpt/layers.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

namespace dpt {

Init Init::fan_in(int64_t fan_in) {
  return {Kind::kUniform, 1 / std::sqrt(static_cast<double>(fan_in))};
}

Tensor BatchNorm2d::operator()(const Tensor& x, bool training) const {
  if (training) num_batches_tracked.add_(1);
  return at::batch_norm(x, weight, bias, running_mean, running_var, training, /*momentum=*/0.1,
                        /*eps=*/1e-5, /*cudnn_enabled=*/true);
}

Tensor make_initial(const TensorInfo& info) {
  const at::NoGradGuard no_grad;
  Tensor tensor = at::empty(info.shape, info.dtype);
  switch (info.init.kind) {
    case Init::Kind::kConstant:
      return tensor.fill_(info.init.value);
    case Init::Kind::kNormal:
      return tensor.normal_(0, info.init.value);
    case Init::Kind::kUniform:
      return tensor.uniform_(-info.init.value, info.init.value);
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace dpt
