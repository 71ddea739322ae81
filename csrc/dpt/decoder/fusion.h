// csrc/dpt/decoder/fusion.h -- the convolutional decoder: RefineNet-style fusion (Ranftl et al.
// 2021, Fig. 1 right).
#pragma once

#include "dpt/layers.h"

namespace dpt {

enum class FusionNorm { kNone, kBatch };
// What a residual unit adds to its convolutions: its input, or (MiDaS v2.1, whose first ReLU works
// in place) the ReLU of it.
enum class UnitSkip { kInput, kRelu };
// The map that an auxiliary head reads in training: the fused map of the penultimate level (the
// paper), or the last one (transformers).
enum class AuxiliaryHead { kNone, kPenultimate, kLast };

struct UnitOptions {
  int64_t channels;
  FusionNorm norm;
  UnitSkip skip;
  std::string process_group;  // see BatchNorm2d
};

// ReLU, 3x3 convolution, ReLU, 3x3 convolution, plus the input; [B, C, H, W] -> [B, C, H, W].
// With batch normalisation each convolution is followed by one and has no bias.
struct DPT_API ResidualConvUnit {
  FusionNorm norm;
  UnitSkip skip;
  Conv2d conv1, conv2;
  BatchNorm2d norm1, norm2;

  explicit ResidualConvUnit(const UnitOptions& options);

  Tensor operator()(const Tensor& x, bool training) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    if (norm == FusionNorm::kBatch) v("norm1", norm1);
    v("conv2", conv2);
    if (norm == FusionNorm::kBatch) v("norm2", norm2);
  }
};

// One level of fusion. Its result is not upsampled yet: the 1x1 projection and bilinear upsampling
// commute (both are linear, and the weights of an interpolation sum to one), and before it the
// projection costs a quarter.
struct DPT_API FusionBlock {
  bool coarsest;     // nothing comes from below: unit1 does not exist
  bool has_project;  // MiDaS v2.1 has none
  Conv2d input;      // 3x3 without bias, C_i -> C
  ResidualConvUnit unit1, unit2;
  Conv2d project;  // 1x1

  FusionBlock(int64_t in, const UnitOptions& unit, bool has_project, bool coarsest);

  // map [B, C_i, H, W]; below: the result of the next coarser level, [B, C, any, any], undefined
  // for the coarsest. Returns [B, C, H, W].
  Tensor operator()(const Tensor& map, const Tensor& below, bool training) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("input", input);
    if (!coarsest) v("unit1", unit1);
    v("unit2", unit2);
    if (has_project) v("project", project);
  }
};

struct FusionOptions {
  std::array<int64_t, 4> in_channels;  // finest level first
  UnitOptions unit;
  bool has_project;
  AuxiliaryHead auxiliary;
};

struct DPT_API Fusion {
  AuxiliaryHead auxiliary;
  std::vector<FusionBlock> blocks;  // finest first

  explicit Fusion(const FusionOptions& options);

  // Four of [B, C_i, H_i, W_i], finest first -> the fused map [B, C, 2 * H_0, 2 * W_0], and in
  // training for an auxiliary head on the penultimate level that one, [B, C, H_0, W_0]. Each level
  // is upsampled to the size of the next finer one, which is twice its own at image sizes that are
  // multiples of 32.
  std::vector<Tensor> operator()(at::TensorList maps, bool training) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    visit_each(blocks, v);
  }
};

}  // namespace dpt
