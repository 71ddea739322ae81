#include "dpt/layers.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "dpt/ops/all_reduce.h"

namespace dpt {

Init Init::fan_in(int64_t fan_in) {
  return {Kind::kUniform, 1 / std::sqrt(static_cast<double>(fan_in))};
}

namespace {

constexpr double kMomentum = 0.1, kEps = 1e-5;

// Batch normalisation with the statistics of all processes of a group. Two sums, one after the
// other: that of squared differences to the mean loses no digits.
Tensor synchronised(const BatchNorm2d& norm, const Tensor& x) {
  const Tensor wide = at::isReducedFloatingType(x.scalar_type()) ? x.to(at::kFloat) : x;
  const at::OptionalIntArrayRef all_but_channels({0, 2, 3});
  const Tensor count =
      at::ones({1}, wide.options()) * (wide.sym_size(0) * wide.sym_size(2) * wide.sym_size(3));
  const Tensor sums = all_reduce_sum(at::cat({wide.sum({0, 2, 3}), count}), norm.process_group);
  const Tensor total = sums.slice(0, -1).detach();  // [1]
  const Tensor mean = sums.slice(0, 0, -1) / total;
  const Tensor centred = wide - mean.view({1, -1, 1, 1});
  const Tensor variance =
      all_reduce_sum((centred * centred).sum({0, 2, 3}), norm.process_group) / total;
  {
    const at::NoGradGuard no_grad;
    const Tensor unbiased = variance * total / (total - 1);
    norm.running_mean.lerp_(mean.to(norm.running_mean.scalar_type()), kMomentum);
    norm.running_var.lerp_(unbiased.to(norm.running_var.scalar_type()), kMomentum);
  }
  const Tensor scale = norm.weight * (variance + kEps).rsqrt();
  return (centred * scale.view({1, -1, 1, 1}) + norm.bias.view({1, -1, 1, 1})).to(x.scalar_type());
}

}  // namespace

Tensor BatchNorm2d::operator()(const Tensor& x, bool training) const {
  if (training) num_batches_tracked.add_(1);
  if (training && !process_group.empty()) return synchronised(*this, x);
  return at::batch_norm(x, weight, bias, running_mean, running_var, training, kMomentum, kEps,
                        /*cudnn_enabled=*/true);
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
