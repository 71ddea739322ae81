#include "dpt/io/shapes.h"

#include <algorithm>
#include <cmath>

namespace dpt {

namespace {

// Far above any network; keeps sums of what a file says from overflow.
constexpr int64_t kMany = 1 << 16;

std::string stage(size_t s, const char* layer) {
  return "encoder.stages." + std::to_string(s) + ".0." + layer + ".weight";
}

void set_stage_depths(const Shapes& shapes, size_t num_stages, Config& config) {
  for (size_t s = 0; s < num_stages; ++s) {
    const std::string sequence = "encoder.stages." + std::to_string(s) + ".";
    config.stage_depths[s] = shapes.count(sequence, stage(s, "conv1"));
  }
}

void set_transformer_fields(const Shapes& shapes, Config& config) {
  config.distilled = shapes.find("encoder.dist_token") != nullptr;
  config.width = shapes.size("encoder.pos_embed", 3, 2);
  const bool hybrid = config.encoder == EncoderKind::kHybrid;
  config.patch_size = shapes.size("encoder.patch_embed.weight", 4, 2) * (hybrid ? 16 : 1);
  const int64_t grid = pos_embed_grid(shapes, config.distilled);
  TORCH_CHECK_VALUE(grid <= kMany && config.patch_size <= kMany, shapes.origin, ": a grid of ",
                    grid, " patches of ", config.patch_size, " pixels is too large");
  config.image_size = grid * config.patch_size;
  config.depth = shapes.count("encoder.blocks.", "encoder.blocks.0.norm1.weight");
  config.mlp_width = shapes.size("encoder.blocks.0.mlp.fc1.weight", 2, 0);
  config.qkv_bias = shapes.find("encoder.blocks.0.attn.qkv.bias") != nullptr;
}

}  // namespace

const Tensor* Shapes::find(const std::string& ours) const {
  const auto found = tensors.find(names.names_of(ours).front());
  return found == tensors.end() ? nullptr : &found->second;
}

int64_t Shapes::size(const std::string& ours, int64_t dims, int64_t dim) const {
  const Tensor* tensor = find(ours);
  const std::string theirs = names.names_of(ours).front();
  TORCH_CHECK_VALUE(tensor != nullptr, origin, ": 1 missing [", theirs,
                    "], whose shape says what the network is");
  TORCH_CHECK_VALUE(tensor->dim() == dims, origin, ": tensor '", theirs, "' has shape ",
                    tensor->sizes(), ", wanted ", dims, " dimensions");
  return tensor->size(dim);
}

int64_t Shapes::count(const std::string& sequence, const std::string& first) const {
  const std::string theirs = names.names_of(first).front();
  const std::string tail = first.substr(sequence.size());  // "0.norm1.weight", the same in theirs
  TORCH_INTERNAL_ASSERT(theirs.ends_with(tail), theirs, " does not end as ", first);
  const std::string prefix = theirs.substr(0, theirs.size() - tail.size());
  int64_t count = 0;
  for (auto i = tensors.lower_bound(prefix); i != tensors.end() && i->first.starts_with(prefix);
       ++i) {
    int64_t index = 0;
    for (size_t at = prefix.size(); at < i->first.size() && i->first[at] != '.'; ++at) {
      const char digit = i->first[at];
      if (digit < '0' || digit > '9' || index > kMany) break;
      index = 10 * index + (digit - '0');
    }
    count = std::max(count, index + 1);
  }
  TORCH_CHECK_VALUE(count > 0, origin, ": 1 missing [", theirs,
                    "], and all others that begin with ", prefix);
  return count;
}

int64_t pos_embed_grid(const Shapes& shapes, bool distilled) {
  const int64_t positions = shapes.size("encoder.pos_embed", 3, 1) - (distilled ? 2 : 1);
  const auto grid = static_cast<int64_t>(
      std::lround(std::sqrt(static_cast<double>(std::max<int64_t>(positions, 0)))));
  TORCH_CHECK_VALUE(grid > 0 && grid * grid == positions, shapes.origin,
                    ": the position embedding must be that of a square grid and ",
                    distilled ? "two tokens" : "one token", ", got ", positions, " patches");
  return grid;
}

void set_encoder_fields(const Shapes& shapes, Config& config) {
  switch (config.encoder) {
    case EncoderKind::kViT:
      return set_transformer_fields(shapes, config);
    case EncoderKind::kHybrid:
      set_stage_depths(shapes, 3, config);
      return set_transformer_fields(shapes, config);
    case EncoderKind::kResNet: {
      set_stage_depths(shapes, 4, config);
      const int64_t hidden = shapes.size(stage(0, "conv1"), 4, 0);
      config.group_width = shapes.size(stage(0, "conv2"), 4, 1);  // the input channels of a group
      TORCH_CHECK_VALUE(config.group_width > 0 && hidden % config.group_width == 0, shapes.origin,
                        ": the 3x3 convolution of the first block cannot have ", hidden,
                        " channels in groups of ", config.group_width);
      config.groups = hidden / config.group_width;
      return;
    }
  }
}

Config canonical(Config config) {
  const Config unset;
  config.batch_norm_group = unset.batch_norm_group;
  if (config.encoder == EncoderKind::kResNet) {
    config.image_size = unset.image_size;
    config.patch_size = unset.patch_size;
    config.width = unset.width;
    config.depth = unset.depth;
    config.heads = unset.heads;
    config.mlp_width = unset.mlp_width;
    config.qkv_bias = unset.qkv_bias;
    config.distilled = unset.distilled;
    config.layer_norm_eps = unset.layer_norm_eps;
    config.readout = unset.readout;
  } else {
    config.groups = unset.groups;
    config.group_width = unset.group_width;
  }
  if (config.encoder == EncoderKind::kHybrid) {
    config.stage_depths[3] = unset.stage_depths[3];
  } else {
    config.weight_standardization = unset.weight_standardization;
  }
  if (config.encoder == EncoderKind::kViT) config.stage_depths = unset.stage_depths;
  if (!config.depth_head) {
    config.head_features = unset.head_features;
    config.head_align_corners = unset.head_align_corners;
  }
  if (!config.metric) {
    config.depth_scale = unset.depth_scale;
    config.depth_shift = unset.depth_shift;
  }
  if (config.num_classes == 0) config.dropout = unset.dropout;
  return config;
}

std::optional<Difference> find_difference(const Config& first, const Config& second) {
  const json::Value ours = json::parse(first.to_json()), theirs = json::parse(second.to_json());
  for (const auto& [name, value] : ours.as_object()) {
    const json::Value& other = *theirs.find(name);
    if (value != other) return Difference{name, json::dump(value), json::dump(other)};
  }
  return std::nullopt;
}

}  // namespace dpt
