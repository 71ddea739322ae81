#include "dpt/layers.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "dpt/ops/all_reduce.h"
#include "dpt/ops/conv2d.h"
#include "dpt/ops/linear.h"

namespace dpt {

Init Init::fan_in(int64_t fan_in) {
  return {Kind::kUniform, 1 / std::sqrt(static_cast<double>(fan_in))};
}

namespace {

constexpr double kMomentum = 0.1, kEps = 1e-5;

// Batch normalisation with the statistics of all processes of a group. Two sums, one after the
// other: that of squared differences to the mean loses no digits. How many values there are in all
// is a tensor, never read here; the running statistics stay finite whatever it is, and as they are
// if it is zero.
Tensor synchronised(const BatchNorm2d& norm, const Tensor& x) {
  const Tensor wide = at::isReducedFloatingType(x.scalar_type()) ? x.to(at::kFloat) : x;
  const at::OptionalIntArrayRef all_but_channels({0, 2, 3});
  const Tensor count =
      at::ones({1}, wide.options()) * (wide.sym_size(0) * wide.sym_size(2) * wide.sym_size(3));
  const Tensor sums = all_reduce_sum(at::cat({wide.sum({0, 2, 3}), count}), norm.process_group);
  const Tensor total = sums.slice(0, -1).detach();  // [1]
  const Tensor divisor = total.clamp_min(1);
  const Tensor mean = sums.slice(0, 0, -1) / divisor;
  const Tensor centred = wide - mean.view({1, -1, 1, 1});
  const Tensor variance =
      all_reduce_sum((centred * centred).sum({0, 2, 3}), norm.process_group) / divisor;
  {
    const at::NoGradGuard no_grad;
    const auto move = [&](const Tensor& running, const Tensor& seen) {
      running.lerp_(at::where(total > 0, seen.to(running.scalar_type()), running), kMomentum);
    };
    move(norm.running_mean, mean);
    move(norm.running_var, variance * total / (total - 1).clamp_min(1));
  }
  const Tensor scale = norm.weight * (variance + kEps).rsqrt();
  return (centred * scale.view({1, -1, 1, 1}) + norm.bias.view({1, -1, 1, 1})).to(x.scalar_type());
}

// The running variance of a single value would be 0 / 0. As in torch.nn.functional.batch_norm.
void check_more_than_one_value(const Tensor& x) {
  const c10::SymInt count = x.sym_size(0) * x.sym_size(2) * x.sym_size(3);
  TORCH_CHECK_VALUE(count.sym_ne(1).expect_true(__FILE__, __LINE__),
                    "batch normalisation in training needs more than one value per channel, got a "
                    "map ",
                    x.sym_sizes(),
                    "; pass more images or larger ones, or switch the model to eval()");
}

}  // namespace

Tensor Linear::operator()(const Tensor& x) const { return linear(x, weight, bias); }

Tensor Conv2d::operator()(const Tensor& x) const {
  return conv2d(x, weight, bias, stride, padding, groups);
}

Tensor BatchNorm2d::operator()(const Tensor& x, bool training) const {
  const bool alone = process_group.empty();
  if (training && alone) check_more_than_one_value(x);
  if (training) num_batches_tracked.add_(1);
  if (training && !alone) return synchronised(*this, x);
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
