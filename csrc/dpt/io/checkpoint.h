// csrc/dpt/io/checkpoint.h -- networks in files: a config and tensors, in the layouts of several
// projects.
#pragma once

#include <map>
#include <utility>

#include "dpt/model.h"

namespace dpt {

enum class Layout {
  kTorchdpt,      // our names; config.json is Config::to_json
  kTransformers,  // Hugging Face transformers, DPTForDepthEstimation with a plain ViT
                  // (Intel/dpt-large)
  kIslOrg,        // isl-org/DPT, of which there are two; no config, the shapes tell it
};

struct Checkpoint {
  Model model;
  Layout layout;
  // Tensors of the file that belong to its layout and that the network never runs.
  std::map<std::string, Tensor> ignored{};
};

// `path` is a folder with config.json and model.safetensors, or such a file; a file finds its
// config in its own metadata or in the config.json beside it, or is recognised (below). Tensors
// keep the dtype of the file and are mapped, not read; parameters require gradients. Throws
// (ValueError in Python) and lists the names if tensors are missing or unexpected; a wrong shape
// names the tensor and both shapes.
DPT_API Checkpoint load_checkpoint(const std::string& path);

// The network whose tensors these are, by their names and shapes: those of isl-org/DPT, which come
// without a config. What the shapes do not tell is as published: 64 channels a head, taps (2, 5, 8,
// 11) or (5, 11, 17, 23), layer_norm_eps 1e-6; readout is `project` where there are read
// projections, and otherwise `ignore`. `origin`, the name of the file, stands in the errors, which
// are those of load_checkpoint.
DPT_API Checkpoint recognize(const std::map<std::string, Tensor>& tensors,
                             const std::string& origin);

// The encoder's tensors alone, into `model` (whose other tensors stay). The file may be any that
// load_checkpoint reads; its encoder must be the same network. Returns the names that were not
// used.
DPT_API std::vector<std::string> load_encoder(Model& model, const std::string& path);

// Writes config.json and model.safetensors, each to a temporary name first; creates the folder.
// Tensors that the layout declares and the network never runs are written as zeros; their names are
// returned and stand in the file's metadata. isl-org's files are pickles, which Python's
// save_pretrained writes.
DPT_API std::vector<std::string> save_checkpoint(const Model& model, const std::string& folder,
                                                 Layout layout = Layout::kTorchdpt);

struct NamedTensors {
  std::vector<std::pair<std::string, Tensor>> tensors;
  // Of these, the ones that the layout declares and the network never runs; they are zeros.
  std::vector<std::string> zeros{};
};

// The tensors of a model under the names of a layout (of isl-org's: that of release 1_0). Throws
// where the layout has no such network.
DPT_API NamedTensors named_tensors(const Model& model, Layout layout);

DPT_API std::string_view to_string(Layout layout);
DPT_API Layout parse_layout(std::string_view name);

}  // namespace dpt
