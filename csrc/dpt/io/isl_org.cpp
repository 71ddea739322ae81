#include "dpt/io/isl_org.h"

#include <algorithm>
#include <cmath>

namespace dpt {

namespace {

using Tensors = std::map<std::string, Tensor>;

constexpr const char* kBlocks = "pretrained.model.blocks.";
constexpr int64_t kHeadWidth = 64;  // of every published network

// Names that only other networks have, and what these are.
struct Other {
  const char* prefix;
  const char* what;
};
constexpr Other kOthers[] = {
    {"pretrained.model.patch_embed.backbone.", "a DPT-Hybrid (ViT on a ResNet-50)"},
    {"pretrained.model.blocks.0.attn.q_bias", "a DPT on BEiT"},
    {"pretrained.model.layers.", "a DPT on a Swin transformer"},
    {"pretrained.model.stages.", "a DPT on a convolutional or mixed encoder (LeViT, Next-ViT)"},
    {"pretrained.layer1.", "a convolutional MiDaS (ResNeXt-101, EfficientNet-Lite3)"},
    {"depth_head.", "a Depth Anything"},
    {"auxlayer.", "a DPT for segmentation"},
    {"scratch.output_conv.1.", "a DPT with the head for segmentation"},
};

bool has_prefix(const Tensors& tensors, const std::string& prefix) {
  const auto found = tensors.lower_bound(prefix);
  return found != tensors.end() && found->first.starts_with(prefix);
}

// One more than the greatest index of a block.
int64_t num_blocks(const Tensors& tensors) {
  int64_t count = 0;
  const std::string prefix = kBlocks;
  for (auto i = tensors.lower_bound(prefix); i != tensors.end() && i->first.starts_with(prefix);
       ++i) {
    int64_t index = 0;
    for (size_t at = prefix.size(); at < i->first.size() && i->first[at] != '.'; ++at) {
      const char digit = i->first[at];
      if (digit < '0' || digit > '9' || index > 1024) break;
      index = 10 * index + (digit - '0');
    }
    count = std::max(count, index + 1);
  }
  return count;
}

// Looks tensors up by our names.
struct Shapes {
  const Tensors& tensors;
  const NameTable& names;
  const std::string& origin;

  const Tensor* find(const std::string& ours) const {
    const auto found = tensors.find(names.names_of(ours).front());
    return found == tensors.end() ? nullptr : &found->second;
  }
  int64_t size(const std::string& ours, int64_t dims, int64_t dim) const {
    const Tensor* tensor = find(ours);
    TORCH_CHECK_VALUE(tensor != nullptr, origin, ": 1 missing [", names.names_of(ours).front(),
                      "], whose shape says what the network is");
    TORCH_CHECK_VALUE(tensor->dim() == dims, origin, ": tensor '", names.names_of(ours).front(),
                      "' has shape ", tensor->sizes(), ", wanted ", dims, " dimensions");
    return tensor->size(dim);
  }
};

void set_depth(Config& config, int64_t depth, const std::string& origin) {
  for (const char* name : {"dpt_base", "dpt_large"}) {
    const Config published = Config::preset(name);
    if (published.depth != depth) continue;
    config.depth = depth;
    config.taps = published.taps;
    return;
  }
  TORCH_CHECK_VALUE(false, origin, ": the encoder has ", depth,
                    " blocks, and only for 12 (ViT-B) and 24 (ViT-L) is it known which four the "
                    "decoder reads; use layout 'torchdpt', whose config says it");
}

}  // namespace

bool is_isl_org(const Tensors& tensors) {
  return has_prefix(tensors, "pretrained.") || has_prefix(tensors, "scratch.") ||
         has_prefix(tensors, "depth_head.");
}

IslOrgConfig parse_isl_org(const Tensors& tensors, const std::string& origin) {
  std::string others;
  for (const Other& other : kOthers) {
    if (has_prefix(tensors, other.prefix)) {
      others += (others.empty() ? "" : " and ") + std::string(other.what);
    }
  }
  TORCH_CHECK_VALUE(others.empty(), origin, " is ", others,
                    ", which torchdpt does not support yet; of isl-org's networks it has those "
                    "for depth on a plain ViT (dpt_large, ViT-B, DeiT)");

  const bool scriptable = has_prefix(tensors, "pretrained.act_postprocess1.0.weight");
  const NameTable& names = scriptable ? isl_org_scriptable_names() : isl_org_names();
  const Shapes shapes{tensors, names, origin};
  Config config;
  config.distilled = shapes.find("encoder.dist_token") != nullptr;
  config.width = shapes.size("encoder.pos_embed", 3, 2);
  config.patch_size = shapes.size("encoder.patch_embed.weight", 4, 2);
  const int64_t positions = shapes.size("encoder.pos_embed", 3, 1) - (config.distilled ? 2 : 1);
  const auto grid = static_cast<int64_t>(
      std::lround(std::sqrt(static_cast<double>(std::max<int64_t>(positions, 0)))));
  TORCH_CHECK_VALUE(grid > 0 && grid * grid == positions, origin,
                    ": the position embedding must be that of a square grid and ",
                    config.distilled ? "two tokens" : "one token", ", got ", positions, " patches");
  TORCH_CHECK_VALUE(grid <= 1 << 16 && config.patch_size <= 1 << 16, origin, ": a grid of ", grid,
                    " patches of ", config.patch_size, " pixels is too large");
  config.image_size = grid * config.patch_size;
  TORCH_CHECK_VALUE(config.width % kHeadWidth == 0, origin,
                    ": the width must be a multiple of 64, since a head has 64 channels in every "
                    "network of isl-org, got ",
                    config.width);
  config.heads = config.width / kHeadWidth;
  set_depth(config, num_blocks(tensors), origin);
  config.mlp_width = shapes.size("encoder.blocks.0.mlp.fc1.weight", 2, 0);
  config.qkv_bias = shapes.find("encoder.blocks.0.attn.qkv.bias") != nullptr;
  const bool project = shapes.find("reassemble.0.read.project.weight") != nullptr;
  config.readout = project ? ReadMode::kProject : ReadMode::kIgnore;
  for (size_t i = 0; i < 4; ++i) {
    config.channels[i] = shapes.size("reassemble." + std::to_string(i) + ".project.weight", 4, 0);
  }
  config.features = shapes.size("fusion.0.input.weight", 4, 0);
  const bool batch_norm = shapes.find("fusion.0.unit2.norm1.weight") != nullptr;
  config.fusion_norm = batch_norm ? FusionNorm::kBatch : FusionNorm::kNone;
  config.head_features = shapes.size("head.conv2.weight", 4, 0);
  return {config, &names};
}

}  // namespace dpt
