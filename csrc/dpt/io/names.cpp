#include "dpt/io/names.h"

#include <algorithm>
#include <optional>

namespace dpt {

namespace {

// Whether `name` is `pattern` with a number for '#'; gives the number (0 if there is no '#').
std::optional<int> match(const std::string& pattern, const std::string& name) {
  const size_t hash = pattern.find('#');
  if (hash == std::string::npos) return name == pattern ? std::optional(0) : std::nullopt;
  const size_t tail = pattern.size() - hash - 1;
  if (name.size() <= hash + tail || name.compare(0, hash, pattern, 0, hash) != 0 ||
      name.compare(name.size() - tail, tail, pattern, hash + 1, tail) != 0) {
    return std::nullopt;
  }
  int index = 0;
  for (size_t i = hash; i < name.size() - tail; ++i) {
    if (name[i] < '0' || name[i] > '9') return std::nullopt;
    index = 10 * index + (name[i] - '0');
  }
  return index;
}

std::string expand(std::string pattern, int index) {
  const size_t mark = pattern.find_first_of("#~+");
  if (mark == std::string::npos) return pattern;
  const int theirs = pattern[mark] == '#' ? index : pattern[mark] == '~' ? 3 - index : index + 1;
  return pattern.replace(mark, 1, std::to_string(theirs));
}

// The layouts of isl-org differ in the three layers of reassemble alone.
NameTable isl_org_table(const char* read, const char* project, const char* resample) {
  return {
      .rules =
          {
              {"encoder.cls_token", {"pretrained.model.cls_token"}},
              {"encoder.dist_token", {"pretrained.model.dist_token"}},
              {"encoder.pos_embed", {"pretrained.model.pos_embed"}},
              {"encoder.patch_embed", {"pretrained.model.patch_embed.proj"}},
              {"encoder.blocks.#.norm1", {"pretrained.model.blocks.#.norm1"}},
              {"encoder.blocks.#.attn.qkv", {"pretrained.model.blocks.#.attn.qkv"}},
              {"encoder.blocks.#.attn.proj", {"pretrained.model.blocks.#.attn.proj"}},
              {"encoder.blocks.#.norm2", {"pretrained.model.blocks.#.norm2"}},
              {"encoder.blocks.#.mlp.fc1", {"pretrained.model.blocks.#.mlp.fc1"}},
              {"encoder.blocks.#.mlp.fc2", {"pretrained.model.blocks.#.mlp.fc2"}},
              {"reassemble.#.read.project", {read}},
              {"reassemble.#.project", {project}},
              {"reassemble.#.resample", {resample}},
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
              {"head.conv1", {"scratch.output_conv.0"}},
              {"head.conv2", {"scratch.output_conv.2"}},
              {"head.conv3", {"scratch.output_conv.4"}},
          },
      // The final norm and the classifiers of the encoder, and the residual unit of the coarsest
      // level, which is called with one argument.
      .unused = {"pretrained.model.norm", "pretrained.model.head", "pretrained.model.head_dist",
                 "scratch.refinenet4.resConfUnit1"},
  };
}

}  // namespace

std::vector<std::string> NameTable::names_of(const std::string& ours) const {
  if (rules.empty()) return {ours};
  // A rule names a tensor or the layer that holds it.
  const size_t dot = ours.rfind('.');
  const std::string layer = ours.substr(0, dot), leaf = ours.substr(dot);
  for (const NameRule& rule : rules) {
    std::vector<std::string> names;
    if (const auto index = match(rule.ours, ours)) {
      for (const std::string& theirs : rule.theirs) names.push_back(expand(theirs, *index));
      return names;
    }
    if (const auto index = match(rule.ours, layer)) {
      for (const std::string& theirs : rule.theirs) names.push_back(expand(theirs, *index) + leaf);
      return names;
    }
  }
  return {};
}

bool NameTable::is_unused(const std::string& theirs) const {
  return std::any_of(unused.begin(), unused.end(),
                     [&](const std::string& layer) { return theirs.starts_with(layer + "."); });
}

const NameTable& torchdpt_names() {
  static const NameTable kTable;
  return kTable;
}

const NameTable& transformers_names() {
  static const NameTable kTable{
      .rules =
          {
              {"encoder.cls_token", {"dpt.embeddings.cls_token"}},
              {"encoder.pos_embed", {"dpt.embeddings.position_embeddings"}},
              {"encoder.patch_embed", {"dpt.embeddings.patch_embeddings.projection"}},
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
              {"head.conv1", {"head.head.0"}},
              {"head.conv2", {"head.head.2"}},
              {"head.conv3", {"head.head.4"}},
          },
      // The final norm, and the residual unit of the coarsest level, which has nothing from below
      // to work on.
      .unused = {"dpt.layernorm", "neck.fusion_stage.layers.0.residual_layer1"},
  };
  return kTable;
}

const NameTable& isl_org_names() {
  static const NameTable kTable =
      isl_org_table("pretrained.act_postprocess+.0.project.0", "pretrained.act_postprocess+.3",
                    "pretrained.act_postprocess+.4");
  return kTable;
}

const NameTable& isl_org_scriptable_names() {
  static const NameTable kTable =
      isl_org_table("pretrained.readout_oper+.0.project.0", "pretrained.act_postprocess+.0",
                    "pretrained.act_postprocess+.1");
  return kTable;
}

}  // namespace dpt
