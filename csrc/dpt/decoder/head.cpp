#include "dpt/decoder/head.h"

#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_conv2d.h"

namespace dpt {

namespace {

Tensor twice_as_large(const Tensor& map) {
  return resize_bilinear(map, map.sym_size(2) * 2, map.sym_size(3) * 2, /*align_corners=*/true);
}

}  // namespace

DepthHead::DepthHead(const DepthHeadOptions& options)
    : conv1{.in = options.channels, .out = options.channels / 2, .kernel = 3, .padding = 1},
      conv2{.in = options.channels / 2, .out = options.hidden, .kernel = 3, .padding = 1},
      // Above zero: with PyTorch's default the last ReLU starts below zero everywhere about half of
      // the time, and then no gradient ever passes it.
      conv3{.in = options.hidden, .out = 1, .initial_bias = 1},
      align_corners(options.align_corners),
      inversion(options.inversion) {}

Tensor DepthHead::operator()(const Tensor& map) const {
  // No ReLU before the upsampling: isl-org/DPT dpt/models.py.
  const Tensor x = upsample_conv2d(conv1(map), conv2.weight, conv2.bias, map.sym_size(2) * 2,
                                   map.sym_size(3) * 2, align_corners);
  const Tensor depth = conv3(x.relu()).relu().squeeze(1);
  if (!inversion) return depth;
  // Half types cannot tell 1e-8 from zero.
  const bool half = at::isReducedFloatingType(depth.scalar_type());
  const Tensor inverse =
      (half ? depth.to(at::kFloat) : depth) * inversion->scale + inversion->shift;
  return inverse.clamp_min(1e-8).reciprocal().to(depth.scalar_type());
}

SegmentationHead::SegmentationHead(const SegmentationHeadOptions& options)
    : dropout(options.dropout),
      conv{.in = options.channels,
           .out = options.channels,
           .kernel = 3,
           .padding = 1,
           .has_bias = false},
      norm{.channels = options.channels, .process_group = options.process_group},
      classify{.in = options.channels, .out = options.num_classes} {}

Tensor SegmentationHead::operator()(const Tensor& map, bool training) const {
  Tensor x = norm(conv(map), training).relu();
  if (training && dropout > 0) x = at::dropout(x, dropout, /*train=*/true);
  return classify(x);
}

Head::Head(const HeadOptions& options) : auxiliary_map(options.auxiliary) {
  if (options.depth) depth.emplace(*options.depth);
  if (options.segmentation) segmentation.emplace(*options.segmentation);
  if (options.auxiliary != AuxiliaryHead::kNone) auxiliary.emplace(options.segmentation.value());
}

Output Head::operator()(at::TensorList maps, bool training) const {
  const size_t wanted = training && auxiliary_map == AuxiliaryHead::kPenultimate ? 2 : 1;
  TORCH_CHECK_VALUE(maps.size() == wanted, "head: needs ", wanted, " maps, got ", maps.size(),
                    "; pass what fusion returns in the same mode");
  for (const Tensor& map : maps) {
    TORCH_CHECK_VALUE(map.dim() == 4, "head: a fused map must be [B, C, H/2, W/2], got ",
                      map.sym_sizes(), "; pass what fusion returns");
  }
  Output output;
  if (depth) output.depth = (*depth)(maps[0]);
  if (segmentation) {
    output.logits = twice_as_large((*segmentation)(maps[0], training));
  }
  if (training && auxiliary) output.aux_logits = (*auxiliary)(maps.back(), training);
  return output;
}

}  // namespace dpt
