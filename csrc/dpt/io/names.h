// csrc/dpt/io/names.h -- what the tensors of other projects are called.
#pragma once

#include <string>
#include <vector>

#include "dpt/config.h"

namespace dpt {

// One of our layers and its name elsewhere. '#' stands for an index, '~' for 3 minus it, '+' for 1
// plus it. Several names: their tensors, one after the other along the first dimension, are ours.
struct NameRule {
  std::string ours;
  std::vector<std::string> theirs;
};

struct NameTable {
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
const NameTable& torchdpt_names();
// transformers' DPTForDepthEstimation (convert_dpt_to_pytorch.py).
const NameTable& transformers_names();
// isl-org/DPT, release 1_0 (dpt/vit.py, dpt/models.py); MiDaS 3.0 has the same.
const NameTable& isl_org_names();
// Its branch dpt_scriptable, where the readout is a module of its own.
const NameTable& isl_org_scriptable_names();

}  // namespace dpt
