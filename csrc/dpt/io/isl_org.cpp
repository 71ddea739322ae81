#include "dpt/io/isl_org.h"

#include "dpt/io/shapes.h"

namespace dpt {

namespace {

constexpr int64_t kHeadWidth = 64;  // of every published network

// Names that only other networks have, and what these are.
struct Other {
  const char* prefix;
  const char* what;
};
constexpr Other kOthers[] = {
    {"pretrained.model.blocks.0.attn.q_bias", "a DPT on BEiT"},
    {"pretrained.model.layers.", "a DPT on a Swin transformer"},
    {"pretrained.model.stages.", "a DPT on a convolutional or mixed encoder (LeViT, Next-ViT)"},
    // In the place of a ResNet's pooling.
    {"pretrained.layer1.3.", "a convolutional MiDaS on EfficientNet-Lite3"},
    {"depth_head.", "a Depth Anything"},
};

EncoderKind encoder_of(const Tensors& tensors) {
  if (has_prefix(tensors, "pretrained.layer1.")) return EncoderKind::kResNet;
  return has_prefix(tensors, "pretrained.model.patch_embed.backbone.") ? EncoderKind::kHybrid
                                                                       : EncoderKind::kViT;
}

// The published network on such an encoder.
Config published(EncoderKind encoder) {
  return Config::preset(encoder == EncoderKind::kResNet   ? "midas_resnet50"
                        : encoder == EncoderKind::kHybrid ? "dpt_hybrid"
                                                          : "dpt_base");
}

// What is known of published transformers: how wide their heads are, and which blocks feed the
// decoder.
void set_published_fields(Config& config, const std::string& origin) {
  TORCH_CHECK_VALUE(config.width % kHeadWidth == 0, origin,
                    ": the width must be a multiple of 64, since a head has 64 channels in every "
                    "network of isl-org, got ",
                    config.width, "; name another network by its config");
  config.heads = config.width / kHeadWidth;
  if (config.encoder == EncoderKind::kHybrid) {
    TORCH_CHECK_VALUE(config.depth == 12 && config.conv_levels == 2, origin,
                      ": the encoder is a hybrid with ", config.depth, " blocks, of which ",
                      4 - config.conv_levels,
                      " feed the decoder, and only for two of 12 is it known which; name the "
                      "network by its config");
    return;
  }
  for (const char* name : {"dpt_base", "dpt_large"}) {
    const Config known = Config::preset(name);
    if (known.depth != config.depth) continue;
    config.taps = known.taps;
    return;
  }
  TORCH_CHECK_VALUE(false, origin, ": the encoder has ", config.depth,
                    " blocks, and only for 12 (ViT-B) and 24 (ViT-L) is it known which four the "
                    "decoder reads; name the network by its config, or use layout 'torchdpt', "
                    "whose files hold one");
}

void set_decoder_fields(const Shapes& shapes, Config& config) {
  const bool project = shapes.find("reassemble.3.read.project.weight") != nullptr;
  if (project) {
    config.readout = ReadMode::kProject;
  } else if (config.readout == ReadMode::kProject) {
    config.readout = ReadMode::kIgnore;
  }
  for (int64_t i = 0; i < 4; ++i) {
    const std::string name = "reassemble." + std::to_string(i) + ".project.weight";
    config.channels[i] = i < config.conv_levels ? kStageChannels[i] : shapes.size(name, 4, 0);
  }
}

void set_head_fields(const Shapes& shapes, Config& config) {
  config.features = shapes.size("fusion.0.input.weight", 4, 0);
  const bool batch_norm = shapes.find("fusion.0.unit2.norm1.weight") != nullptr;
  config.fusion_norm = batch_norm ? FusionNorm::kBatch : FusionNorm::kNone;
  // Batch normalisation stands in the heads for segmentation only.
  const bool segmentation = has_prefix(shapes.tensors, "scratch.output_conv.1.") ||
                            has_prefix(shapes.tensors, "auxlayer.");
  config.depth_head = !segmentation;
  config.num_classes = segmentation ? shapes.size("head.segmentation.classify.weight", 4, 0) : 0;
  if (!segmentation) config.head_features = shapes.size("head.depth.conv2.weight", 4, 0);
  if (!has_prefix(shapes.tensors, "auxlayer.")) {
    config.auxiliary_head = AuxiliaryHead::kNone;
  } else if (config.auxiliary_head == AuxiliaryHead::kNone) {
    config.auxiliary_head = AuxiliaryHead::kPenultimate;
  }
}

}  // namespace

bool is_isl_org(const Tensors& tensors) {
  return has_prefix(tensors, "pretrained.") || has_prefix(tensors, "scratch.") ||
         has_prefix(tensors, "depth_head.");
}

IslOrgConfig parse_isl_org(const Tensors& tensors, const std::string& origin, const Config* given) {
  std::string others;
  for (const Other& other : kOthers) {
    if (has_prefix(tensors, other.prefix)) {
      others += (others.empty() ? "" : " and ") + std::string(other.what);
    }
  }
  TORCH_CHECK_VALUE(others.empty(), origin, " is ", others,
                    ", which torchdpt does not have; of isl-org's networks it has those on ViT, "
                    "DeiT and ViT-Hybrid, and MiDaS v2.1 on ResNet and ResNeXt");

  const EncoderKind encoder = encoder_of(tensors);
  TORCH_CHECK_VALUE(given == nullptr || given->encoder == encoder, origin, " has encoder = \"",
                    to_string(encoder), "\", the given config has \"",
                    to_string(given ? given->encoder : encoder), "\"");
  // Level 3 is never a convolutional one of these.
  const bool scriptable = has_prefix(tensors, "pretrained.act_postprocess3.0.weight");
  const NameTable names = isl_org_names(encoder, scriptable);
  const Shapes shapes{tensors, names, origin};
  Config config = given ? *given : published(encoder);
  set_encoder_fields(shapes, config);
  if (encoder != EncoderKind::kResNet) {
    if (encoder == EncoderKind::kHybrid) {
      const std::string first = names.names_of("reassemble.0.project.weight").front();
      config.conv_levels = tensors.contains(first) ? 0 : 2;
    }
    if (!given) set_published_fields(config, origin);
    set_decoder_fields(shapes, config);
  }
  set_head_fields(shapes, config);
  if (given) {
    const auto difference = find_difference(config, *given);
    TORCH_CHECK_VALUE(!difference, origin, " has ", difference->field, " = ", difference->first,
                      " by the shapes of its tensors, the given config has ", difference->second);
  }
  return {config, scriptable ? Layout::kIslOrgScriptable : Layout::kIslOrg, names};
}

}  // namespace dpt
