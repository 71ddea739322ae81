// csrc/dpt/io/source.h -- tensors from outside: whose they are, and how they become those of a
// network.
#pragma once

#include <set>

#include "dpt/io/names.h"
#include "dpt/model.h"

namespace dpt {

// The names of a folder's files, and of a config that stands in the tensors' file.
constexpr const char* kConfigFile = "config.json";
constexpr const char* kTensorFile = "model.safetensors";
constexpr const char* kConfigKey = "torchdpt.config";

// A file as it is, or a map of tensors in its place.
struct TensorFile {
  std::string name;
  Tensors tensors{};
  std::optional<std::string> config{};  // text, and where it stands
  std::string config_name{};
  bool mapped = false;  // the tensors came without a file
};

// `path` is a folder with config.json and model.safetensors, or such a file; its config stands in
// the config.json beside it or in its own metadata. `function` is named in errors.
TensorFile open_file(const std::string& path, const char* function);
// Tensors that something else read. Throws unless they are dense and on the CPU.
TensorFile from_tensors(const Tensors& tensors, const std::string& origin, const char* function);

// A network, or an encoder, and how a file calls its tensors.
struct Source {
  TensorFile file;
  Config config{};
  Layout layout = Layout::kTorchdpt;
  NameTable names{};
};

// Recognises the project that wrote a file. `given` says what a file without a config of its own
// does not; another file must have that very one.
Source identify(TensorFile file, const Config* given, const char* function);

// Takes tensors from a source and keeps account of their names.
struct Loader {
  const Source& source;
  const char* function;  // named in errors
  const char* advice;    // the end of an error about a shape
  std::set<std::string> taken{};
  std::vector<std::string> missing{};

  void load(const std::string& name, Tensor& tensor, const TensorInfo& info);
  // The names that were not taken.
  std::vector<std::string> rest() const;
  // Throws if any are missing or unexpected.
  void refuse(const std::vector<std::string>& unexpected) const;
};

// "a, b, c, and 7 more".
std::string listed(const std::vector<std::string>& names);

}  // namespace dpt
