// csrc/dpt/io/checkpoint.h -- networks in files: a config and tensors, in the layouts of several
// projects.
#pragma once

#include "dpt/model.h"

namespace dpt {

enum class Layout {
  kTorchdpt,      // our names; config.json is Config::to_json
  kTransformers,  // Hugging Face transformers, DPTForDepthEstimation with a plain ViT
                  // (Intel/dpt-large)
};

struct Checkpoint {
  Model model;
  Layout layout;
  // Tensors of the file that belong to its layout and that the network never runs.
  std::vector<std::string> ignored{};
};

// `path` is a folder with config.json and model.safetensors, or such a file; a file finds its
// config in its own metadata or in the config.json beside it. Tensors keep the dtype of the file
// and are mapped, not read; parameters require gradients. Throws (ValueError in Python) and lists
// the names if tensors are missing or unexpected; a wrong shape names the tensor and both shapes.
DPT_API Checkpoint load_checkpoint(const std::string& path);

// The encoder's tensors alone, into `model` (whose other tensors stay). The file may be any that
// load_checkpoint reads; its encoder must be the same network. Returns the names that were not
// used.
DPT_API std::vector<std::string> load_encoder(Model& model, const std::string& path);

// Writes config.json and model.safetensors, each to a temporary name first; creates the folder.
// Tensors that the layout declares and the network never runs are written as zeros; their names are
// returned and stand in the file's metadata.
DPT_API std::vector<std::string> save_checkpoint(const Model& model, const std::string& folder,
                                                 Layout layout = Layout::kTorchdpt);

DPT_API std::string_view to_string(Layout layout);
DPT_API Layout parse_layout(std::string_view name);

}  // namespace dpt
