// csrc/dpt/io/checkpoint.h -- networks in files: a config and tensors, in the layouts of several
// projects.
#pragma once

#include <map>
#include <utility>

#include "dpt/io/names.h"
#include "dpt/model.h"

namespace dpt {

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
// names the tensor and both shapes. `given` says what a file without a config cannot (the scale and
// shift of metric depth); it must agree with the shapes, and with the config of a file that has
// one.
DPT_API Checkpoint load_checkpoint(const std::string& path, const Config* given = nullptr);

// The network whose tensors these are, by their names and shapes: those of isl-org/DPT and MiDaS,
// which come without a config. What the shapes do not tell is as published, or as in `given`: see
// docs/checkpoints.md. `origin`, the name of the file, stands in the errors, which are those of
// load_checkpoint.
DPT_API Checkpoint recognize(const std::map<std::string, Tensor>& tensors,
                             const std::string& origin, const Config* given = nullptr);

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

// The tensors of a model under the names of a layout. Throws
// where the layout has no such network.
DPT_API NamedTensors named_tensors(const Model& model, Layout layout);

}  // namespace dpt
