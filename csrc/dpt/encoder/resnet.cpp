#include "dpt/encoder/resnet.h"

#include <algorithm>
#include <cmath>

#include "dpt/encoder/image.h"
#include "dpt/ops/conv2d.h"

namespace dpt {

Tensor StdConv2d::standardised() const {
  // Half types cannot tell the small numbers from zero.
  const bool half = at::isReducedFloatingType(weight.scalar_type());
  const Tensor wide = half ? weight.to(at::kFloat) : weight;
  const Tensor centred = wide - wide.mean({1, 2, 3}, /*keepdim=*/true);
  Tensor deviation;
  if (standardization == WeightStandardization::kStd) {
    // As a norm, whose gradient at a constant filter is zero and not infinite.
    const double count = static_cast<double>(in * kernel * kernel);
    deviation =
        at::linalg_vector_norm(centred, 2, {{1, 2, 3}}, /*keepdim=*/true) / std::sqrt(count) + 1e-5;
  } else {
    deviation = ((centred * centred).mean({1, 2, 3}, /*keepdim=*/true) + 1e-8).sqrt();
  }
  return (centred / deviation).to(weight.scalar_type());
}

Tensor StdConv2d::operator()(const Tensor& x) const {
  const int64_t padding = std::max<int64_t>(kernel - stride, 0);
  const int64_t before = padding / 2, after = padding - before;
  const bool even = before == after;
  const Tensor padded = even ? x : at::constant_pad_nd(x, {before, after, before, after});
  const int64_t rest = even ? before : 0;
  return conv2d(padded, standardised(), /*bias=*/{}, stride, rest, /*groups=*/1);
}

ResNet::ResNet(const ResNetOptions& options)
    : stages({.groups = options.groups,
              .group_width = options.group_width,
              .process_group = options.process_group},
             options.depths) {}

std::vector<Tensor> ResNet::operator()(const Tensor& image, bool training, bool checkpoint) const {
  check_image(image, 32, stages.stem.conv.weight.scalar_type());
  TORCH_CHECK_VALUE(!checkpoint,
                    "encode: activation checkpointing is for encoders with transformer blocks; a "
                    "ResNet has none: leave it off");
  return stages(image, training);
}

}  // namespace dpt
