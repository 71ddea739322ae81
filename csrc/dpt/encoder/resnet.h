// csrc/dpt/encoder/resnet.h -- residual networks of bottlenecks: ResNet and ResNeXt (He et al.
// 2016, Xie et al. 2017), which are encoders by themselves, and the stages before the transformer
// of ViT-Hybrid.
#pragma once

#include "dpt/layers.h"

namespace dpt {

// What the convolutions of the two kinds are made of. `pool` is the max-pooling of the stem.

// torchvision's: batch normalisation, symmetric padding.
struct DPT_API BatchNormLayers {
  using Conv = Conv2d;
  using Norm = BatchNorm2d;
  int64_t groups = 1, group_width = 64;
  std::string process_group{};

  Conv conv(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t groups = 1) const {
    return {.in = in,
            .out = out,
            .kernel = kernel,
            .stride = stride,
            .padding = kernel / 2,
            .has_bias = false,
            .groups = groups};
  }
  Norm norm(int64_t channels) const {
    return {.channels = channels, .process_group = process_group};
  }
  static Tensor pool(const Tensor& x) { return at::max_pool2d(x, {3, 3}, {2, 2}, {1, 1}, {1, 1}); }
  static Tensor normalise(const Norm& norm, const Tensor& x, bool training) {
    return norm(x, training);
  }
};

// Where the small number stands in (w - mean) / deviation: kStd adds 1e-5 to the deviation, as timm
// 0.4.5, with which the released weights of DPT-Hybrid were trained; kVariance adds 1e-8 to its
// square, as later timm and transformers.
enum class WeightStandardization { kStd, kVariance };

// Convolution with standardised weights (Qiao et al. 2019), without bias, and TensorFlow's SAME
// padding, of which the odd pixel is at the bottom and on the right. H and W are multiples of
// `stride`.
struct DPT_API StdConv2d {
  int64_t in = 0, out = 0, kernel = 1, stride = 1;
  WeightStandardization standardization = WeightStandardization::kStd;
  Tensor weight{};

  Tensor operator()(const Tensor& x) const;
  // The weights that it convolves with.
  Tensor standardised() const;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("weight", weight, TensorInfo{{out, in, kernel, kernel}, Init::fan_in(in * kernel * kernel)});
  }
};

// timm's BiT: group normalisation, weight standardisation.
struct DPT_API StandardizedLayers {
  using Conv = StdConv2d;
  using Norm = GroupNorm;
  WeightStandardization standardization = WeightStandardization::kStd;
  static constexpr int64_t groups = 1, group_width = 64;

  Conv conv(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t /*groups*/ = 1) const {
    return {.in = in,
            .out = out,
            .kernel = kernel,
            .stride = stride,
            .standardization = standardization};
  }
  Norm norm(int64_t channels) const { return {.channels = channels}; }
  // Zeros as padding: the pixels are not negative, after a ReLU.
  static Tensor pool(const Tensor& x) {
    return at::max_pool2d(at::constant_pad_nd(x, {0, 1, 0, 1}), {3, 3}, {2, 2}, {0, 0}, {1, 1});
  }
  static Tensor normalise(const Norm& norm, const Tensor& x, bool /*training*/) { return norm(x); }
};

// A convolution and the normalisation behind it.
template <class Layers>
struct ConvNorm {
  typename Layers::Conv conv;
  typename Layers::Norm norm;

  Tensor operator()(const Tensor& x, bool training) const {
    return Layers::normalise(norm, conv(x), training);
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv", conv);
    v("norm", norm);
  }
};

// 1x1, 3x3 with the stride, 1x1, each normalised, plus the input or its projection.
// [B, in, H, W] -> [B, out, H / stride, W / stride].
template <class Layers>
struct Bottleneck {
  typename Layers::Conv conv1, conv2, conv3;
  typename Layers::Norm norm1, norm2, norm3;
  std::optional<ConvNorm<Layers>> downsample{};

  Bottleneck(const Layers& layers, int64_t in, int64_t hidden, int64_t out, int64_t stride)
      : conv1(layers.conv(in, hidden, 1, 1)),
        conv2(layers.conv(hidden, hidden, 3, stride, layers.groups)),
        conv3(layers.conv(hidden, out, 1, 1)),
        norm1(layers.norm(hidden)),
        norm2(layers.norm(hidden)),
        norm3(layers.norm(out)) {
    if (in != out || stride != 1) downsample = {layers.conv(in, out, 1, stride), layers.norm(out)};
  }

  Tensor operator()(const Tensor& x, bool training) const {
    Tensor y = Layers::normalise(norm1, conv1(x), training).relu();
    y = Layers::normalise(norm2, conv2(y), training).relu();
    y = Layers::normalise(norm3, conv3(y), training);
    return (y + (downsample ? (*downsample)(x, training) : x)).relu();
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("conv1", conv1);
    v("norm1", norm1);
    v("conv2", conv2);
    v("norm2", norm2);
    v("conv3", conv3);
    v("norm3", norm3);
    if (downsample) v("downsample", *downsample);
  }
};

template <class Layers>
struct Stage {
  std::vector<Bottleneck<Layers>> blocks;

  Tensor operator()(Tensor x, bool training) const {
    for (const auto& block : blocks) x = block(x, training);
    return x;
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    visit_each(blocks, v);
  }
};

template <class Layers>
struct ConvStages {
  ConvNorm<Layers> stem;
  std::vector<Stage<Layers>> stages;

  // `depths`: the number of bottlenecks in each stage.
  ConvStages(const Layers& layers, at::IntArrayRef depths)
      : stem{layers.conv(3, 64, 7, 2), layers.norm(64)} {
    int64_t in = 64;
    for (size_t s = 0; s < depths.size(); ++s) {
      const int64_t out = out_channels(s), hidden = (layers.groups * layers.group_width) << s;
      Stage<Layers> stage;
      for (int64_t b = 0; b < depths[s]; ++b) {
        stage.blocks.emplace_back(layers, in, hidden, out, s > 0 && b == 0 ? 2 : 1);
        in = out;
      }
      stages.push_back(std::move(stage));
    }
  }

  static int64_t out_channels(size_t stage) { return int64_t{256} << stage; }

  // image [B, 3, H, W] -> the maps of all stages, [B, 256 * 2^s, H / (4 * 2^s), W / (4 * 2^s)].
  std::vector<Tensor> operator()(const Tensor& image, bool training) const {
    std::vector<Tensor> maps;
    Tensor x = Layers::pool(stem(image, training).relu());  // [B, 64, H / 4, W / 4]
    for (const auto& stage : stages) maps.push_back(x = stage(x, training));
    return maps;
  }

  template <class Visitor>
  void visit(Visitor&& v) {
    v("stem", stem);
    StageList list{stages};
    v("stages", list);
  }

 private:
  struct StageList {
    std::vector<Stage<Layers>>& stages;
    template <class Visitor>
    void visit(Visitor&& v) {
      visit_each(stages, v);
    }
  };
};

struct ResNetOptions {
  std::array<int64_t, 4> depths;
  int64_t groups, group_width;
  std::string process_group;
};

struct DPT_API ResNet {
  ConvStages<BatchNormLayers> stages;

  explicit ResNet(const ResNetOptions& options);

  // image [B, 3, H, W] -> the maps of its four stages, of 256, 512, 1024 and 2048 channels and
  // strides 4, 8, 16 and 32. H and W are multiples of 32. `checkpoint` is refused: batch
  // normalisation would see each batch twice.
  std::vector<Tensor> operator()(const Tensor& image, bool training = false,
                                 bool checkpoint = false) const;

  template <class Visitor>
  void visit(Visitor&& v) {
    stages.visit(v);
  }
};

}  // namespace dpt
