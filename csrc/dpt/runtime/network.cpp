#include "dpt/runtime/network.h"

#include <ATen/core/grad_mode.h>

#include "dpt/runtime/rewrites.h"

namespace dpt::runtime {

namespace {

// A copy next to each other of another type.
Tensor converted(const Tensor& tensor, at::ScalarType dtype) {
  if (!tensor.defined()) return tensor;
  return tensor.is_meta() ? shape_of(tensor.sizes(), dtype) : tensor.to(dtype).contiguous();
}

Tensor wide(const Tensor& tensor) {
  return tensor.defined() ? converted(tensor.detach(), at::kDouble) : tensor;
}

// --- from the model's layers ---

Product product(const Linear& linear) {
  return {.weight = wide(linear.weight).view({linear.out, linear.in, 1, 1}),
          .bias = wide(linear.bias)};
}

Product product(const Conv2d& conv) {
  return {.weight = wide(conv.weight),
          .bias = wide(conv.bias),
          .stride = conv.stride,
          .above = conv.padding,
          .left = conv.padding,
          .groups = conv.groups};
}

Product product(const StdConv2d& conv) {
  const int64_t before = std::max<int64_t>(conv.kernel - conv.stride, 0) / 2;
  StdConv2d exact = conv;
  exact.weight = wide(conv.weight);
  return {.weight = exact.weight.is_meta() ? exact.weight : exact.standardised(),
          .stride = conv.stride,
          .above = before,
          .left = before};
}

NormedProduct normed(const Conv2d& conv, const BatchNorm2d& norm) {
  return {.conv = fold_norm(product(conv), norm)};
}

NormedProduct normed(const StdConv2d& conv, const GroupNorm& norm) {
  return {.conv = product(conv),
          .weight = wide(norm.weight),
          .bias = wide(norm.bias),
          .norm_groups = norm.groups};
}

template <class Layers>
Stages stages_of(const ConvStages<Layers>& from) {
  Stages to{.stem = normed(from.stem.conv, from.stem.norm),
            .zero_padded_pool = std::is_same_v<Layers, StandardizedLayers>};
  for (const auto& stage : from.stages) {
    auto& blocks = to.stages.emplace_back();
    for (const auto& block : stage.blocks) {
      Bottleneck& bottleneck =
          blocks.emplace_back(Bottleneck{.conv1 = normed(block.conv1, block.norm1),
                                         .conv2 = normed(block.conv2, block.norm2),
                                         .conv3 = normed(block.conv3, block.norm3)});
      if (block.downsample) {
        bottleneck.downsample = normed(block.downsample->conv, block.downsample->norm);
      }
    }
  }
  return to;
}

Transformer transformer_of(const ViT& vit) {
  const Tensor position = wide(vit.pos_embed)[0];  // [P + grid * grid, D]
  const int64_t prefix = vit.num_prefix_tokens();
  Tensor tokens = wide(vit.cls_token)[0];
  if (tokens.is_meta()) {
    tokens = shape_of({prefix, tokens.size(1)});
  } else {
    if (vit.distilled) tokens = at::cat({tokens, wide(vit.dist_token)[0]});
    tokens = tokens + position.slice(0, 0, prefix);
  }
  Transformer to{.heads = vit.blocks.front().attn.heads,
                 .grid = vit.grid,
                 .patch_size = vit.patch_size,
                 .eps = vit.blocks.front().norm1.eps,
                 .taps = vit.taps,
                 .prefix = tokens,
                 .pos_embed = position.slice(0, prefix),
                 .patch_embed = product(vit.patch_embed)};
  return to;
}

Block block_of(const dpt::Block& from) {
  Block to{.qkv = fold_norm(from.norm1, product(from.attn.qkv)),
           .proj = product(from.attn.proj),
           .fc1 = fold_norm(from.norm2, product(from.mlp.fc1)),
           .fc2 = product(from.mlp.fc2)};
  fold_attention(to.qkv, to.proj, from.attn.heads);
  return to;
}

// Whether the two cost more multiplications than the one that they fold into.
bool saves(const Product& project, const Product& conv) {
  const int64_t taps = conv.weight.size(2) * conv.weight.size(3);
  const int64_t in = project.channels(), middle = project.n(), out = conv.n();
  return taps * in * out < conv.stride * conv.stride * in * middle + taps * middle * out;
}

Level level_of(const ReassembleLevel& from, const Conv2d& input, const Rewrites& rewrites) {
  Level level{.convolutional = from.convolutional, .input = product(input)};
  if (from.convolutional) return level;
  level.readout = from.read.mode;
  if (level.readout == ReadMode::kProject) {
    const Product read = product(from.read.project);  // of (patch, readout token)
    const int64_t width = read.n();
    level.read = {.weight = read.weight.slice(1, 0, width)};
    level.read_token = {.weight = read.weight.slice(1, width), .bias = read.bias};
  }
  level.project = product(from.project);
  const Resample& resample = from.resample;
  if (resample.stride > resample.patch_size) level.down = product(resample.down);
  if (resample.stride < resample.patch_size) {
    level.factor = resample.patch_size / resample.stride;
    level.up = wide(resample.up.weight);
    level.up_bias = wide(resample.up.bias);
  }
  if (rewrites.phases && level.up.defined()) {
    level.phases = fold_up(level.up, level.up_bias, level.input);
    level.up = level.up_bias = Tensor();
    level.input = {};
  }
  if (rewrites.fold_level_project && level.factor == 1) {
    Product& next = level.down ? *level.down : level.input;
    if (saves(*level.project, next)) {
      next = fold_project(*level.project, next);
      level.project.reset();
    }
  }
  return level;
}

Unit unit_of(const ResidualConvUnit& from) {
  Unit unit{.conv1 = product(from.conv1), .conv2 = product(from.conv2)};
  if (from.norm == FusionNorm::kBatch) {
    unit.conv1 = fold_norm(unit.conv1, from.norm1);
    unit.conv2 = fold_norm(unit.conv2, from.norm2);
  }
  return unit;
}

FusionLevel fusion_of(const FusionBlock& from) {
  FusionLevel level{.unit2 = unit_of(from.unit2)};
  if (!from.coarsest) level.unit1 = unit_of(from.unit1);
  if (from.has_project) level.project = product(from.project);
  return level;
}

// To the type of the frozen network; as soon as a part is made, since float64 takes twice the
// memory.
template <class Part>
Part narrowed(Part part, at::ScalarType dtype) {
  const auto narrow = [&](const std::string&, Tensor& tensor) {
    tensor = converted(tensor, dtype);
  };
  part.visit(detail::NetworkVisitor<decltype(narrow)>{narrow, ""});
  return part;
}

}  // namespace

Network rewrite(const Model& model, const Rewrites& rewrites) {
  const at::NoGradGuard no_grad;
  Network network{.config = model.config, .rewrites = rewrites};
  network.config.batch_norm_group.clear();
  at::ScalarType dtype = at::kFloat;
  Model named = model;
  dpt::for_each_tensor(named, [&](const std::string&, Tensor& tensor, const TensorInfo&) {
    if (tensor.scalar_type() == at::kDouble) dtype = at::kDouble;
  });

  const auto read_transformer = [&](const ViT& vit) {
    network.transformer = narrowed(transformer_of(vit), dtype);
    for (const auto& block : vit.blocks) {
      network.transformer->blocks.push_back(narrowed(block_of(block), dtype));
    }
  };
  if (const auto* vit = std::get_if<ViT>(&model.encoder.network)) read_transformer(*vit);
  if (const auto* hybrid = std::get_if<Hybrid>(&model.encoder.network)) {
    network.stages = narrowed(stages_of(hybrid->stages), dtype);
    read_transformer(hybrid->vit);
  }
  if (const auto* resnet = std::get_if<ResNet>(&model.encoder.network)) {
    network.stages = narrowed(stages_of(resnet->stages), dtype);
  }

  for (size_t i = 0; i < model.reassemble.levels.size(); ++i) {
    const FusionBlock& block = model.fusion.blocks[i];
    network.levels.push_back(
        narrowed(level_of(model.reassemble.levels[i], block.input, rewrites), dtype));
    network.fusion.push_back(fusion_of(block));
  }
  network.relu_skip = model.fusion.blocks[0].unit2.skip == UnitSkip::kRelu;

  if (const auto& head = model.head.depth) {
    network.depth = DepthHead{.conv1 = product(head->conv1),
                              .conv2 = product(head->conv2),
                              .dot = wide(head->conv3.weight).flatten(),
                              .dot_bias = wide(head->conv3.bias),
                              .align_corners = head->align_corners,
                              .inversion = head->inversion};
  }
  if (const auto& head = model.head.segmentation) {
    network.segmentation = SegmentationHead{.conv = fold_norm(product(head->conv), head->norm),
                                            .classify = product(head->classify)};
  }
  // Interpolation and the 1x1 convolution commute: the weights of an interpolation sum to one.
  std::optional<Product>& last = network.fusion[0].project;
  if (rewrites.fold_project && last) {
    if (network.depth) network.depth->conv1 = fold_project(*last, network.depth->conv1);
    if (network.segmentation) {
      network.segmentation->conv = fold_project(*last, network.segmentation->conv);
    }
    last.reset();
  }
  for (FusionLevel& level : network.fusion) level = narrowed(std::move(level), dtype);
  if (network.depth) network.depth = narrowed(std::move(*network.depth), dtype);
  if (network.segmentation)
    network.segmentation = narrowed(std::move(*network.segmentation), dtype);
  return network;
}

}  // namespace dpt::runtime
