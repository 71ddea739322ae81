#include "dpt/decoder/fusion.h"

#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_add.h"

namespace dpt {

ResidualConvUnit::ResidualConvUnit(const UnitOptions& options)
    : norm(options.norm),
      skip(options.skip),
      norm1{.channels = options.channels, .process_group = options.process_group},
      norm2(norm1) {
  conv1 = {.in = options.channels,
           .out = options.channels,
           .kernel = 3,
           .padding = 1,
           .has_bias = norm == FusionNorm::kNone};
  conv2 = conv1;
}

Tensor ResidualConvUnit::operator()(const Tensor& x, bool training) const {
  const bool batch_norm = norm == FusionNorm::kBatch;
  const Tensor active = x.relu();
  Tensor y = conv1(active);
  if (batch_norm) y = norm1(y, training);
  y = conv2(y.relu());
  if (batch_norm) y = norm2(y, training);
  return y + (skip == UnitSkip::kRelu ? active : x);
}

FusionBlock::FusionBlock(int64_t in, const UnitOptions& unit, bool has_project, bool coarsest)
    : coarsest(coarsest),
      has_project(has_project),
      input{.in = in, .out = unit.channels, .kernel = 3, .padding = 1, .has_bias = false},
      unit1(unit),
      unit2(unit),
      project{.in = unit.channels, .out = unit.channels} {}

Tensor FusionBlock::operator()(const Tensor& map, const Tensor& below, bool training) const {
  Tensor x = input(map);  // [B, C, H, W]
  if (!coarsest) x = upsample_add(below, unit1(x, training));
  x = unit2(x, training);
  return has_project ? project(x) : x;
}

Fusion::Fusion(const FusionOptions& options) : auxiliary(options.auxiliary) {
  for (size_t i = 0; i < 4; ++i) {
    blocks.emplace_back(options.in_channels[i], options.unit, options.has_project,
                        /*coarsest=*/i == 3);
  }
}

std::vector<Tensor> Fusion::operator()(at::TensorList maps, bool training) const {
  TORCH_CHECK_VALUE(maps.size() == blocks.size(), "fuse: needs ", blocks.size(),
                    " maps, finest level first, got ", maps.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    TORCH_CHECK_VALUE(maps[i].dim() == 4 && maps[i].sym_size(1) == blocks[i].input.in, "fuse: map ",
                      i, " must be [B, ", blocks[i].input.in, ", H, W], got ", maps[i].sym_sizes(),
                      "; the config's `channels` give the width of each level, finest first");
  }
  Tensor x, penultimate;
  for (size_t i = blocks.size(); i-- > 0;) {
    x = blocks[i](maps[i], x, training);
    if (i == 1) penultimate = x;
  }
  const auto upsample = [](const Tensor& map, const c10::SymInt& height, const c10::SymInt& width) {
    return resize_bilinear(map, height, width, /*align_corners=*/true);
  };
  std::vector<Tensor> fused{upsample(x, x.sym_size(2) * 2, x.sym_size(3) * 2)};
  if (training && auxiliary == AuxiliaryHead::kPenultimate) {
    fused.push_back(upsample(penultimate, maps[0].sym_size(2), maps[0].sym_size(3)));
  }
  return fused;
}

}  // namespace dpt
