#include "dpt/decoder/fusion.h"

#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_add.h"

namespace dpt {

ResidualConvUnit::ResidualConvUnit(int64_t channels, FusionNorm norm)
    : norm(norm), norm1{.channels = channels}, norm2{.channels = channels} {
  conv1 = {.in = channels,
           .out = channels,
           .kernel = 3,
           .padding = 1,
           .has_bias = norm == FusionNorm::kNone};
  conv2 = conv1;
}

Tensor ResidualConvUnit::operator()(const Tensor& x, bool training) const {
  const bool batch_norm = norm == FusionNorm::kBatch;
  Tensor y = conv1(x.relu());
  if (batch_norm) y = norm1(y, training);
  y = conv2(y.relu());
  if (batch_norm) y = norm2(y, training);
  return y + x;
}

FusionBlock::FusionBlock(int64_t in, int64_t channels, FusionNorm norm, bool coarsest)
    : coarsest(coarsest),
      input{.in = in, .out = channels, .kernel = 3, .padding = 1, .has_bias = false},
      unit1(channels, norm),
      unit2(channels, norm),
      project{.in = channels, .out = channels} {}

Tensor FusionBlock::operator()(const Tensor& map, const Tensor& below, bool training) const {
  Tensor x = input(map);  // [B, C, H, W]
  if (!coarsest) x = upsample_add(below, unit1(x, training));
  return project(unit2(x, training));
}

Fusion::Fusion(const FusionOptions& options) {
  for (size_t i = 0; i < 4; ++i) {
    blocks.emplace_back(options.in_channels[i], options.channels, options.norm,
                        /*coarsest=*/i == 3);
  }
}

Tensor Fusion::operator()(at::TensorList maps, bool training) const {
  TORCH_CHECK_VALUE(maps.size() == blocks.size(), "fuse: needs ", blocks.size(),
                    " maps, finest level first, got ", maps.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    TORCH_CHECK_VALUE(maps[i].dim() == 4 && maps[i].sym_size(1) == blocks[i].input.in, "fuse: map ",
                      i, " must be [B, ", blocks[i].input.in, ", H, W], got ", maps[i].sym_sizes(),
                      "; the config's `channels` give the width of each level, finest first");
  }
  Tensor x;
  for (size_t i = blocks.size(); i-- > 0;) x = blocks[i](maps[i], x, training);
  return resize_bilinear(x, x.sym_size(2) * 2, x.sym_size(3) * 2, /*align_corners=*/true);
}

}  // namespace dpt
