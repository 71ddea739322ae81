#include "dpt/io/names.h"

#include <algorithm>

namespace dpt {

namespace {

using Rules = std::vector<NameRule>;

// The numbers that stand for the '#' of `pattern`, if `name` is one of its names.
std::optional<std::vector<int>> match(const std::string& pattern, const std::string& name) {
  std::vector<int> indices;
  size_t at = 0;
  for (const char mark : pattern) {
    if (mark != '#') {
      if (at == name.size() || name[at++] != mark) return std::nullopt;
      continue;
    }
    const size_t begin = at;
    int index = 0;
    for (; at < name.size() && name[at] >= '0' && name[at] <= '9'; ++at) {
      index = 10 * index + (name[at] - '0');
    }
    if (at == begin) return std::nullopt;
    indices.push_back(index);
  }
  return at == name.size() ? std::optional(indices) : std::nullopt;
}

std::string expand(const std::string& pattern, const std::vector<int>& indices) {
  std::string name;
  size_t next = 0;
  for (const char mark : pattern) {
    if (mark == '#') {
      name += std::to_string(indices[next++]);
    } else if (mark == '~') {
      name += std::to_string(3 - indices[next++]);
    } else if (mark == '+') {
      name += std::to_string(indices[next++] + 1);
    } else {
      name += mark;
    }
  }
  return name;
}

void append(Rules& rules, const Rules& more) {
  rules.insert(rules.end(), more.begin(), more.end());
}

// The bottlenecks whose names begin with these. BiT (timm, transformers) calls the layers inside as
// we do, torchvision does not.
enum class Inside { kBiT, kTorchvision };

Rules bottleneck_rules(const std::string& ours, const std::string& theirs, Inside inside) {
  const bool bit = inside == Inside::kBiT;
  Rules rules;
  for (const char* i : {"1", "2", "3"}) {
    rules.push_back({ours + "conv" + i, {theirs + "conv" + i}});
    rules.push_back({ours + "norm" + i, {theirs + (bit ? "norm" : "bn") + i}});
  }
  rules.push_back({ours + "downsample.conv", {theirs + "downsample." + (bit ? "conv" : "0")}});
  rules.push_back({ours + "downsample.norm", {theirs + "downsample." + (bit ? "norm" : "1")}});
  return rules;
}

// timm's ViT, DeiT and ViT-Hybrid.
Rules timm_rules(const std::string& prefix) {
  const std::string backbone = prefix + "patch_embed.backbone.";
  Rules rules{
      {"encoder.cls_token", {prefix + "cls_token"}},
      {"encoder.dist_token", {prefix + "dist_token"}},
      {"encoder.pos_embed", {prefix + "pos_embed"}},
      {"encoder.patch_embed", {prefix + "patch_embed.proj"}},
      {"encoder.stem.conv", {backbone + "stem.conv"}},
      {"encoder.stem.norm", {backbone + "stem.norm"}},
  };
  for (const char* layer : {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}) {
    const std::string name = std::string("blocks.#.") + layer;
    rules.push_back({"encoder." + name, {prefix + name}});
  }
  append(rules,
         bottleneck_rules("encoder.stages.#.#.", backbone + "stages.#.blocks.#.", Inside::kBiT));
  return rules;
}

// torchvision's ResNet and ResNeXt, in which the stem and the first stage have these names.
Rules torchvision_rules(const std::string& conv, const std::string& norm, const std::string& first,
                        const std::string& others) {
  Rules rules{{"encoder.stem.conv", {conv}}, {"encoder.stem.norm", {norm}}};
  append(rules, bottleneck_rules("encoder.stages.0.#.", first + "#.", Inside::kTorchvision));
  append(rules, bottleneck_rules("encoder.stages.#.#.", others + "+.#.", Inside::kTorchvision));
  return rules;
}

// The heads: `main` is the sequence of layers of the network's only head.
Rules head_rules(const std::string& main, const std::string& auxiliary) {
  Rules rules{
      {"head.depth.conv1", {main + "0"}},
      {"head.depth.conv2", {main + "2"}},
      {"head.depth.conv3", {main + "4"}},
  };
  for (const auto& [ours, theirs] :
       {std::pair("head.segmentation.", &main), std::pair("head.auxiliary.", &auxiliary)}) {
    rules.push_back({std::string(ours) + "conv", {*theirs + "0"}});
    rules.push_back({std::string(ours) + "norm", {*theirs + "1"}});
    rules.push_back({std::string(ours) + "classify", {*theirs + "4"}});
  }
  return rules;
}

Rules isl_org_fusion_rules() {
  return {
      {"fusion.#.input", {"scratch.layer+_rn"}},
      {"fusion.#.unit1.conv1", {"scratch.refinenet+.resConfUnit1.conv1"}},
      {"fusion.#.unit1.conv2", {"scratch.refinenet+.resConfUnit1.conv2"}},
      {"fusion.#.unit1.norm1", {"scratch.refinenet+.resConfUnit1.bn1"}},
      {"fusion.#.unit1.norm2", {"scratch.refinenet+.resConfUnit1.bn2"}},
      {"fusion.#.unit2.conv1", {"scratch.refinenet+.resConfUnit2.conv1"}},
      {"fusion.#.unit2.conv2", {"scratch.refinenet+.resConfUnit2.conv2"}},
      {"fusion.#.unit2.norm1", {"scratch.refinenet+.resConfUnit2.bn1"}},
      {"fusion.#.unit2.norm2", {"scratch.refinenet+.resConfUnit2.bn2"}},
      {"fusion.#.project", {"scratch.refinenet+.out_conv"}},
  };
}

Rules transformers_fusion_rules() {
  return {
      {"fusion.#.input", {"neck.convs.#"}},
      {"fusion.#.unit1.conv1", {"neck.fusion_stage.layers.~.residual_layer1.convolution1"}},
      {"fusion.#.unit1.conv2", {"neck.fusion_stage.layers.~.residual_layer1.convolution2"}},
      {"fusion.#.unit1.norm1", {"neck.fusion_stage.layers.~.residual_layer1.batch_norm1"}},
      {"fusion.#.unit1.norm2", {"neck.fusion_stage.layers.~.residual_layer1.batch_norm2"}},
      {"fusion.#.unit2.conv1", {"neck.fusion_stage.layers.~.residual_layer2.convolution1"}},
      {"fusion.#.unit2.conv2", {"neck.fusion_stage.layers.~.residual_layer2.convolution2"}},
      {"fusion.#.unit2.norm1", {"neck.fusion_stage.layers.~.residual_layer2.batch_norm1"}},
      {"fusion.#.unit2.norm2", {"neck.fusion_stage.layers.~.residual_layer2.batch_norm2"}},
      {"fusion.#.project", {"neck.fusion_stage.layers.~.projection"}},
  };
}

}  // namespace

std::string_view to_string(Layout layout) {
  constexpr std::string_view kNames[] = {"torchdpt", "transformers", "isl-org",
                                         "isl-org-scriptable"};
  return kNames[static_cast<size_t>(layout)];
}

Layout parse_layout(std::string_view name) {
  for (const Layout layout :
       {Layout::kTorchdpt, Layout::kTransformers, Layout::kIslOrg, Layout::kIslOrgScriptable}) {
    if (name == to_string(layout)) return layout;
  }
  TORCH_CHECK_VALUE(
      false, "layout must be 'torchdpt', 'transformers', 'isl-org' or 'isl-org-scriptable', got '",
      name, "'");
}

std::vector<std::string> NameTable::names_of(const std::string& ours) const {
  if (rules.empty()) return {ours};
  // A rule names a tensor or the layer that holds it.
  const size_t dot = ours.rfind('.');
  const std::string layer = ours.substr(0, dot), leaf = ours.substr(dot);
  for (const NameRule& rule : rules) {
    std::vector<std::string> names;
    if (const auto indices = match(rule.ours, ours)) {
      for (const std::string& theirs : rule.theirs) names.push_back(expand(theirs, *indices));
      return names;
    }
    if (const auto indices = match(rule.ours, layer)) {
      for (const std::string& theirs : rule.theirs) {
        names.push_back(expand(theirs, *indices) + leaf);
      }
      return names;
    }
  }
  return {};
}

bool NameTable::is_unused(const std::string& theirs) const {
  return std::any_of(unused.begin(), unused.end(),
                     [&](const std::string& layer) { return theirs.starts_with(layer + "."); });
}

NameTable torchdpt_names() { return {.project = "torchdpt", .rules = {}, .unused = {}}; }

NameTable transformers_names(EncoderKind encoder) {
  const bool hybrid = encoder == EncoderKind::kHybrid;
  const std::string bit = "dpt.embeddings.backbone.bit.";
  Rules rules{
      {"encoder.cls_token", {"dpt.embeddings.cls_token"}},
      {"encoder.pos_embed", {"dpt.embeddings.position_embeddings"}},
      {"encoder.patch_embed",
       {hybrid ? "dpt.embeddings.projection" : "dpt.embeddings.patch_embeddings.projection"}},
      {"encoder.stem.conv", {bit + "embedder.convolution"}},
      {"encoder.stem.norm", {bit + "embedder.norm"}},
      {"encoder.blocks.#.norm1", {"dpt.encoder.layer.#.layernorm_before"}},
      {"encoder.blocks.#.attn.qkv",
       {"dpt.encoder.layer.#.attention.attention.query",
        "dpt.encoder.layer.#.attention.attention.key",
        "dpt.encoder.layer.#.attention.attention.value"}},
      {"encoder.blocks.#.attn.proj", {"dpt.encoder.layer.#.attention.output.dense"}},
      {"encoder.blocks.#.norm2", {"dpt.encoder.layer.#.layernorm_after"}},
      {"encoder.blocks.#.mlp.fc1", {"dpt.encoder.layer.#.intermediate.dense"}},
      {"encoder.blocks.#.mlp.fc2", {"dpt.encoder.layer.#.output.dense"}},
      {"reassemble.#.read.project", {"neck.reassemble_stage.readout_projects.#.0"}},
      {"reassemble.#.project", {"neck.reassemble_stage.layers.#.projection"}},
      {"reassemble.#.resample", {"neck.reassemble_stage.layers.#.resize"}},
  };
  append(rules,
         bottleneck_rules("encoder.stages.#.#.", bit + "encoder.stages.#.layers.#.", Inside::kBiT));
  append(rules, transformers_fusion_rules());
  append(rules, head_rules("head.head.", "auxiliary_head.head."));
  // The final norm, and the residual unit of the coarsest level, which has nothing from below to
  // work on.
  return {.project = "transformers",
          .rules = std::move(rules),
          .unused = {"dpt.layernorm", "neck.fusion_stage.layers.0.residual_layer1"}};
}

NameTable isl_org_names(EncoderKind encoder, bool scriptable) {
  // The residual unit of the coarsest level is called with one argument.
  NameTable table{.project = "isl-org", .rules = {}, .unused = {"scratch.refinenet4.resConfUnit1"}};
  if (encoder == EncoderKind::kResNet) {
    // layer1 is a sequence: convolution, norm, ReLU, pooling, the first stage.
    table.rules = torchvision_rules("pretrained.layer1.0", "pretrained.layer1.1",
                                    "pretrained.layer1.4.", "pretrained.layer");
  } else {
    table.rules = timm_rules("pretrained.model.");
    // The final norm and the classifiers of the encoder.
    for (const char* layer : {"norm", "head", "head_dist"}) {
      table.unused.push_back(std::string("pretrained.model.") + layer);
    }
    const std::string read =
        scriptable ? "readout_oper+.0.project.0" : "act_postprocess+.0.project.0";
    append(table.rules,
           {{"reassemble.#.read.project", {"pretrained." + read}},
            {"reassemble.#.project",
             {std::string("pretrained.act_postprocess+.") + (scriptable ? "0" : "3")}},
            {"reassemble.#.resample",
             {std::string("pretrained.act_postprocess+.") + (scriptable ? "1" : "4")}}});
  }
  append(table.rules, isl_org_fusion_rules());
  append(table.rules, head_rules("scratch.output_conv.", "auxlayer."));
  return table;
}

bool has_prefix(const Tensors& tensors, const std::string& prefix) {
  const auto found = tensors.lower_bound(prefix);
  return found != tensors.end() && found->first.starts_with(prefix);
}

std::optional<EncoderNames> find_encoder_names(const Tensors& tensors) {
  if (has_prefix(tensors, "patch_embed.") && has_prefix(tensors, "blocks.")) {
    const bool hybrid = has_prefix(tensors, "patch_embed.backbone.");
    return EncoderNames{hybrid ? EncoderKind::kHybrid : EncoderKind::kViT,
                        {.project = "timm",
                         .rules = timm_rules(""),
                         .unused = {"norm", "fc_norm", "pre_logits", "head", "head_dist"}}};
  }
  if (has_prefix(tensors, "layer1.") && has_prefix(tensors, "layer4.")) {
    return EncoderNames{EncoderKind::kResNet,
                        {.project = "torchvision",
                         .rules = torchvision_rules("conv1", "bn1", "layer1.", "layer"),
                         .unused = {"fc"}}};
  }
  return std::nullopt;
}

}  // namespace dpt
