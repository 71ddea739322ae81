#include "dpt/io/source.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "dpt/io/isl_org.h"
#include "dpt/io/safetensors.h"
#include "dpt/io/shapes.h"
#include "dpt/io/transformers_config.h"

namespace dpt {

namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path, const char* function) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  TORCH_CHECK_VALUE(stream, function, ": could not read '", path.string(),
                    "'; check its permissions");
  return text.str();
}

// DataParallel and DistributedDataParallel put this before the names of all tensors.
void strip_module(Tensors& tensors) {
  constexpr std::string_view kModule = "module.";
  for (const auto& [name, tensor] : tensors) {
    if (!name.starts_with(kModule)) return;
  }
  Tensors stripped;
  for (const auto& [name, tensor] : tensors) stripped.emplace(name.substr(kModule.size()), tensor);
  tensors = std::move(stripped);
}

// By its config.
void identify_config(Source& source, const char* function) {
  const std::string& origin = source.file.config_name;
  try {
    const json::Value value = json::parse(*source.file.config);
    if (value.find("format_version") != nullptr) {
      source.config = Config::from_json(value.as_object());
      source.layout = Layout::kTorchdpt;
      source.names = torchdpt_names();
      return;
    }
    const json::Value* type = value.find("model_type");
    TORCH_CHECK_VALUE(type != nullptr && *type == json::Value("dpt"), function, ": '", origin,
                      "' is neither a torchdpt config (it would have 'format_version') nor one of "
                      "transformers with model_type 'dpt'",
                      type ? ", but of model_type " + json::dump(*type) : std::string());
    const TransformersConfig theirs = parse_transformers_config(value);
    source.config = theirs.config;
    source.layout = Layout::kTransformers;
    source.names = transformers_names(source.config.encoder);
    for (int64_t i = source.config.depth; i < theirs.num_layers; ++i) {
      source.names.unused.push_back("dpt.encoder.layer." + std::to_string(i));
    }
  } catch (const json::Error& error) {
    TORCH_CHECK_VALUE(false, function, ": '", origin, "': ", error.what());
  }
}

// By its tensors.
void identify_tensors(Source& source, const Config* given, const char* function) {
  const TensorFile& file = source.file;
  if (!is_isl_org(file.tensors)) {
    if (!file.mapped) {
      TORCH_CHECK_VALUE(false, function, ": '", file.name,
                        "' names no config, and there is no config.json beside it; put the "
                        "config.json it was published with into the same folder");
    }
    std::vector<std::string> names;
    for (const auto& [name, tensor] : file.tensors) names.push_back(name);
    TORCH_CHECK_VALUE(false, function, ": '", file.name,
                      "' names no config, and its tensors are not called as isl-org calls them "
                      "(pretrained.model.cls_token), but [",
                      listed(names),
                      "]; make the model with its DPTConfig and call load_state_dict, or pass the "
                      "folder with config.json and model.safetensors that it was published with");
  }
  const IslOrgConfig theirs =
      parse_isl_org(file.tensors, std::string(function) + ": '" + file.name + "'", given);
  source.config = theirs.config;
  source.layout = theirs.layout;
  source.names = theirs.names;
}

}  // namespace

TensorFile open_file(const std::string& path, const char* function) {
  const bool folder = fs::is_directory(path);
  TORCH_CHECK_VALUE(folder || fs::exists(path), function, ": '", path,
                    "' does not exist; pass a folder with ", kConfigFile, " and ", kTensorFile,
                    ", or a .safetensors file");
  TORCH_CHECK_VALUE(folder || fs::path(path).extension() == ".safetensors", function,
                    ": wanted a folder or a .safetensors file, got '", path,
                    "'; Python's DPTModel.from_pretrained reads .pt files and saves them as such");
  const fs::path tensor_file = folder ? fs::path(path) / kTensorFile : fs::path(path);
  const fs::path config_file = tensor_file.parent_path() / kConfigFile;
  TORCH_CHECK_VALUE(
      fs::exists(tensor_file), function, ": the folder '", path, "' has no ", kTensorFile,
      "; pass the folder that save_pretrained wrote, or the .safetensors file itself");
  Safetensors read = read_safetensors(tensor_file.string());
  TensorFile file{.name = tensor_file.string(), .tensors = std::move(read.tensors)};
  strip_module(file.tensors);
  const auto embedded = read.metadata.find(kConfigKey);
  if (fs::exists(config_file)) {
    file.config = read_text(config_file, function);
    file.config_name = config_file.string();
  } else if (embedded != read.metadata.end()) {
    file.config = embedded->second;
    file.config_name = file.name;
  }
  return file;
}

TensorFile from_tensors(const Tensors& tensors, const std::string& origin, const char* function) {
  TensorFile file{.name = origin, .mapped = true};
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided &&
                          tensor.device().is_cpu() && !tensor.is_quantized(),
                      function, ": '", origin, "': tensor '", name,
                      "' must be dense and on the CPU");
    file.tensors.emplace(name, tensor.detach());
  }
  strip_module(file.tensors);
  return file;
}

Source identify(TensorFile file, const Config* given, const char* function) {
  Source source{.file = std::move(file)};
  const std::string& name = source.file.name;
  if (const auto encoder = find_encoder_names(source.file.tensors)) {
    TORCH_CHECK_VALUE(false, function, ": '", name, "' holds an encoder alone, as ",
                      encoder->names.project,
                      " names its tensors; start a network from it by DPTModel(config, "
                      "encoder_weights=path) (C++: load_encoder)");
  }
  if (!source.file.config) {
    identify_tensors(source, given, function);
    return source;
  }
  identify_config(source, function);
  if (given) {
    const auto difference = find_difference(source.config, *given);
    TORCH_CHECK_VALUE(!difference, function, ": '", name, "' has a config of its own, in which ",
                      difference->field, " is ", difference->first, ", and the given one has ",
                      difference->second,
                      "; give none, and change a network that was loaded by its state dict");
  }
  return source;
}

void Loader::load(const std::string& name, Tensor& tensor, const TensorInfo& info) {
  const TensorFile& file = source.file;
  const std::vector<std::string> names = source.names.names_of(name);
  TORCH_INTERNAL_ASSERT(!names.empty(), "no name for ", name);
  std::vector<Tensor> parts;
  std::string where;
  for (const std::string& theirs : names) {
    const auto found = file.tensors.find(theirs);
    if (found == file.tensors.end()) {
      // torch before 0.4.1 did not count batches, and torchvision still has its files.
      if (!file.config && name.ends_with(".num_batches_tracked")) {
        tensor = at::zeros({}, at::kLong);
        return;
      }
      missing.push_back(theirs);
      continue;
    }
    taken.insert(theirs);
    parts.push_back(found->second);
    where += (where.empty() ? "" : " + ") + theirs;
  }
  if (parts.size() != names.size()) return;
  std::vector<int64_t> shape = parts[0].sizes().vec();
  for (size_t i = 1; i < parts.size(); ++i) {
    TORCH_CHECK_VALUE(parts[i].sizes() == parts[0].sizes() && parts[0].dim() > 0, function, ": '",
                      file.name, "': ", where, " must have one shape, got ", parts[0].sizes(),
                      " and ", parts[i].sizes());
    shape[0] += parts[i].size(0);
  }
  TORCH_CHECK_VALUE(at::IntArrayRef(shape) == at::IntArrayRef(info.shape), function, ": '",
                    file.name, "': tensor '", where, "' has shape ", at::IntArrayRef(shape),
                    ", the config wants ", at::IntArrayRef(info.shape), advice);
  TORCH_CHECK_VALUE(at::isFloatingType(parts[0].scalar_type()) == at::isFloatingType(info.dtype),
                    function, ": '", file.name, "': tensor '", where, "' has dtype ",
                    parts[0].scalar_type(), ", wanted ",
                    at::isFloatingType(info.dtype) ? "a floating point one" : "int64");
  tensor = parts.size() == 1 ? parts[0] : at::cat(parts, 0);
  if (info.role == Role::kParameter) tensor.set_requires_grad(true);
}

std::vector<std::string> Loader::rest() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : source.file.tensors) {
    if (!taken.contains(name)) names.push_back(name);
  }
  return names;
}

void Loader::refuse(const std::vector<std::string>& unexpected) const {
  TORCH_CHECK_VALUE(missing.empty() && unexpected.empty(), function, ": '", source.file.name,
                    "' does not fit the config (", source.names.project,
                    " layout): ", missing.size(), " missing [", listed(missing), "], ",
                    unexpected.size(), " unexpected [", listed(unexpected), "]");
}

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 20;
  std::ostringstream text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text << (i ? ", " : "") << names[i];
  if (names.size() > kShown) text << ", and " << names.size() - kShown << " more";
  return text.str();
}

}  // namespace dpt
