// csrc/dpt/io/names.h -- what the tensors of other projects are called.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dpt/config.h"

namespace dpt {

enum class Layout {
  kTorchdpt,      // our names; config.json is Config::to_json
  kTransformers,  // Hugging Face transformers: DPTForDepthEstimation or DPTForSemanticSegmentation
                  // on a plain ViT or a hybrid (Intel/dpt-large, dpt-hybrid-midas, dpt-large-ade)
  kIslOrg,        // isl-org/DPT, release 1_0, and MiDaS v2.1; no config, the shapes tell
  kIslOrgScriptable,  // the same, branch dpt_scriptable
};

DPT_API std::string_view to_string(Layout layout);
DPT_API Layout parse_layout(std::string_view name);

// One of our layers and its name elsewhere. Each '#' in ours stands for an index; the marks in
// theirs stand for these, in order: '#' for the index, '~' for 3 minus it, '+' for 1 plus it.
// Several names: their tensors, one after the other along the first dimension, are ours.
struct NameRule {
  std::string ours;
  std::vector<std::string> theirs;
};

struct NameTable {
  std::string project;  // for errors
  std::vector<NameRule> rules;
  // Layers that the layout declares and the network never runs.
  std::vector<std::string> unused;

  // The names in the other layout of one of our tensors, "encoder.blocks.3.attn.qkv.weight". Empty:
  // it has none there.
  std::vector<std::string> names_of(const std::string& ours) const;
  // Whether a name of the other layout is one of an unused layer.
  bool is_unused(const std::string& theirs) const;
};

// Our own layout: every name stands for itself.
NameTable torchdpt_names();
// transformers (convert_dpt_to_pytorch.py, convert_dpt_hybrid_to_pytorch.py).
NameTable transformers_names(EncoderKind encoder);
// isl-org/DPT, release 1_0 (dpt/vit.py, dpt/models.py), MiDaS 3.0 has the same; or its branch
// dpt_scriptable, where the readout is a module of its own. A resnet is that of MiDaS v2.1.
NameTable isl_org_names(EncoderKind encoder, bool scriptable = false);

using Tensors = std::map<std::string, Tensor>;

bool has_prefix(const Tensors& tensors, const std::string& prefix);

// An encoder alone, as it comes from training on ImageNet.
struct EncoderNames {
  EncoderKind encoder;
  NameTable names;
};

// Which one these tensors are of: timm's ViT, DeiT (also the authors' own files) or ViT-Hybrid, or
// torchvision's ResNet or ResNeXt.
std::optional<EncoderNames> find_encoder_names(const Tensors& tensors);

}  // namespace dpt
