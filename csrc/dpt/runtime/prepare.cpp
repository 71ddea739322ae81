#include "dpt/runtime/prepare.h"

#include <ATen/core/grad_mode.h>

#include "dpt/ops/quantize_rows.h"

namespace dpt::runtime {

namespace {

struct Preparation {
  at::Device device;
  at::ScalarType dtype;
  bool float8 = false;  // the transformer's linear layers

  Tensor placed(const Tensor& tensor, at::ScalarType type) const {
    return tensor.defined() ? tensor.to(device, type) : tensor;
  }
  void wide(Tensor& tensor) const { tensor = placed(tensor, type_of_sums(dtype)); }

  // The border is added in the type of sums.
  void prepare(Product& product) const {
    product.weight = placed(product.weight, dtype).contiguous(at::MemoryFormat::ChannelsLast);
    product.bias = placed(product.bias, dtype);
    wide(product.border);
  }
  void prepare(std::optional<Product>& product) const {
    if (product) prepare(*product);
  }

  // Of a resized map.
  void prepare_resized(Product& product, bool products_first) const {
    if (!products_first) return prepare(product);
    const int64_t n = product.n(), channels = product.channels();
    product.weight = placed(product.weight, dtype)
                         .permute({2, 3, 0, 1})
                         .reshape({9 * n, channels, 1, 1})
                         .contiguous();
    wide(product.bias);
    wide(product.border);
  }

  void prepare(NormedProduct& product) const {
    prepare(product.conv);
    wide(product.weight);
    wide(product.bias);
  }

  void prepare(Stages& stages) const {
    prepare(stages.stem);
    for (auto& stage : stages.stages) {
      for (Bottleneck& block : stage) {
        prepare(block.conv1);
        prepare(block.conv2);
        prepare(block.conv3);
        if (block.downsample) prepare(*block.downsample);
      }
    }
  }

  void prepare(Transformer& transformer) const {
    transformer.prefix = placed(transformer.prefix, dtype);
    wide(transformer.pos_embed);
    transformer.patch_embed.weight = placed(transformer.patch_embed.weight, dtype);
    transformer.patch_embed.bias = placed(transformer.patch_embed.bias, dtype);
    for (Block& block : transformer.blocks) {
      for (Product* product : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) {
        float8&& takes_float8(*product) ? quantize(*product) : prepare(*product);
      }
    }
  }

  // What torch._scaled_mm wants.
  static bool takes_float8(const Product& product) {
    return product.n() % 16 == 0 && product.channels() % 16 == 0;
  }

  void quantize(Product& product) const {
    const auto [codes, scale] =
        quantize_rows(placed(product.weight, at::kFloat).flatten(1).contiguous());
    product.weight = codes;
    product.scale = scale.view({1, -1});
    product.bias = placed(product.bias, dtype);
  }

  // The phases side by side: the taps of each in a 3x3 kernel, and zeros.
  static Product merged(const std::vector<Product>& phases) {
    std::vector<Tensor> weights, biases, borders;
    for (const Product& phase : phases) {
      const int64_t top = 1 - phase.above, left = 1 - phase.left;
      const int64_t bottom = 3 - top - phase.weight.size(2),
                    right = 3 - left - phase.weight.size(3);
      weights.push_back(at::constant_pad_nd(phase.weight, {left, right, top, bottom}));
      if (phase.bias.defined()) biases.push_back(phase.bias);
      borders.push_back(phase.border);
    }
    Product all{.weight = at::cat(weights), .border = at::cat(borders, 1), .above = 1, .left = 1};
    if (!biases.empty()) all.bias = at::cat(biases);
    return all;
  }

  void prepare(Level& level) const {
    if (level.read.defined()) prepare(level.read);
    if (level.read_token.defined()) prepare(level.read_token);
    prepare(level.project);
    prepare(level.down);
    level.up = placed(level.up, dtype);
    level.up_bias = placed(level.up_bias, dtype);
    if (!level.phases.empty()) level.phases = {merged(level.phases)};
    for (Product& phase : level.phases) prepare(phase);
    if (level.input.defined()) prepare(level.input);
  }

  void prepare(Unit& unit) const {
    prepare(unit.conv1);
    prepare(unit.conv2);
  }
};

}  // namespace

at::ScalarType type_of_sums(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

at::ScalarType type_of_maps(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn ? at::kBFloat16 : dtype;
}

Network prepare(const Network& network, at::Device device, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const bool float8 = dtype == at::kFloat8_e4m3fn;
  const Preparation to{device, type_of_maps(dtype), float8};
  Network ready = network;
  if (ready.stages) to.prepare(*ready.stages);
  if (ready.transformer) to.prepare(*ready.transformer);
  for (Level& level : ready.levels) to.prepare(level);
  for (FusionLevel& level : ready.fusion) {
    if (level.unit1) to.prepare(*level.unit1);
    to.prepare(level.unit2);
    to.prepare(level.project);
  }
  const bool products_first = ready.rewrites.products_first;
  if (ready.depth) {
    to.prepare_resized(ready.depth->conv1, products_first);
    to.prepare_resized(ready.depth->conv2, products_first);
    to.wide(ready.depth->dot);
    to.wide(ready.depth->dot_bias);
  }
  if (ready.segmentation) {
    to.prepare_resized(ready.segmentation->conv, products_first);
    to.prepare(ready.segmentation->classify);
  }
  return ready;
}

}  // namespace dpt::runtime
