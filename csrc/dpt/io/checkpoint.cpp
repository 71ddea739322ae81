#include "dpt/io/checkpoint.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "dpt/io/atomic_file.h"
#include "dpt/io/isl_org.h"
#include "dpt/io/names.h"
#include "dpt/io/safetensors.h"
#include "dpt/io/transformers_config.h"

namespace dpt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kTensorFile = "model.safetensors";
constexpr const char* kConfigKey = "torchdpt.config";
constexpr const char* kZerosKey = "torchdpt.written_as_zeros";

struct Source {
  std::string tensor_file;
  std::map<std::string, Tensor> tensors{};
  Config config{};
  Layout layout = Layout::kTorchdpt;
  NameTable names{};
};

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  TORCH_CHECK_VALUE(stream, "load_checkpoint: could not read '", path.string(),
                    "'; check its permissions");
  return text.str();
}

// Recognises the project that wrote a config.json, and its names.
void parse_config(const std::string& text, const std::string& origin, Source& source) {
  try {
    const json::Value value = json::parse(text);
    if (value.find("format_version") != nullptr) {
      source.config = Config::from_json(value.as_object());
      source.layout = Layout::kTorchdpt;
      source.names = torchdpt_names();
      return;
    }
    const json::Value* type = value.find("model_type");
    TORCH_CHECK_VALUE(type != nullptr && *type == json::Value("dpt"), "load_checkpoint: '", origin,
                      "' is neither a torchdpt config (it would have 'format_version') nor one of "
                      "transformers with model_type 'dpt'",
                      type ? ", but of model_type " + json::dump(*type) : std::string());
    const TransformersConfig theirs = parse_transformers_config(value);
    source.config = theirs.config;
    source.layout = Layout::kTransformers;
    source.names = transformers_names();
    for (int64_t i = source.config.depth; i < theirs.num_layers; ++i) {
      source.names.unused.push_back("dpt.encoder.layer." + std::to_string(i));
    }
  } catch (const json::Error& error) {
    TORCH_CHECK_VALUE(false, "load_checkpoint: '", origin, "': ", error.what());
  }
}

void recognize_config(Source& source) {
  const IslOrgConfig theirs =
      parse_isl_org(source.tensors, "load_checkpoint: '" + source.tensor_file + "'");
  source.config = theirs.config;
  source.layout = Layout::kIslOrg;
  source.names = *theirs.names;
}

Source open_source(const std::string& path) {
  const bool folder = fs::is_directory(path);
  TORCH_CHECK_VALUE(folder || fs::exists(path), "load_checkpoint: '", path,
                    "' does not exist; pass a folder with ", kConfigFile, " and ", kTensorFile,
                    ", or a .safetensors file");
  TORCH_CHECK_VALUE(folder || fs::path(path).extension() == ".safetensors",
                    "load_checkpoint: wanted a folder or a .safetensors file, got '", path,
                    "'; Python's DPTModel.from_pretrained reads .pt files and saves them as such");
  const fs::path tensor_file = folder ? fs::path(path) / kTensorFile : fs::path(path);
  const fs::path config_file = tensor_file.parent_path() / kConfigFile;
  TORCH_CHECK_VALUE(
      fs::exists(tensor_file), "load_checkpoint: the folder '", path, "' has no ", kTensorFile,
      "; pass the folder that save_pretrained wrote, or the .safetensors file itself");
  Safetensors file = read_safetensors(tensor_file.string());
  Source source{.tensor_file = tensor_file.string(), .tensors = std::move(file.tensors)};
  const auto embedded = file.metadata.find(kConfigKey);
  if (fs::exists(config_file)) {
    parse_config(read_text(config_file), config_file.string(), source);
  } else if (embedded != file.metadata.end()) {
    parse_config(embedded->second, tensor_file.string(), source);
  } else {
    TORCH_CHECK_VALUE(is_isl_org(source.tensors), "load_checkpoint: '", tensor_file.string(),
                      "' names no config, and there is no ", kConfigFile,
                      " beside it; put the config.json it was published with into the same folder");
    recognize_config(source);
  }
  return source;
}

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 20;
  std::ostringstream text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text << (i ? ", " : "") << names[i];
  if (names.size() > kShown) text << ", and " << names.size() - kShown << " more";
  return text.str();
}

// Takes tensors from a source and keeps account of their names.
struct Loader {
  const Source& source;
  std::set<std::string> taken{};
  std::vector<std::string> missing{};

  void load(const std::string& name, Tensor& tensor, const TensorInfo& info) {
    std::vector<Tensor> parts;
    std::string where;
    for (const std::string& theirs : source.names.names_of(name)) {
      const auto found = source.tensors.find(theirs);
      if (found == source.tensors.end()) {
        missing.push_back(theirs);
        continue;
      }
      taken.insert(theirs);
      parts.push_back(found->second);
      where += (where.empty() ? "" : " + ") + theirs;
    }
    if (parts.size() != source.names.names_of(name).size()) return;
    std::vector<int64_t> shape = parts[0].sizes().vec();
    for (size_t i = 1; i < parts.size(); ++i) {
      TORCH_CHECK_VALUE(parts[i].sizes() == parts[0].sizes() && parts[0].dim() > 0,
                        "load_checkpoint: '", source.tensor_file, "': ", where,
                        " must have one shape, got ", parts[0].sizes(), " and ", parts[i].sizes());
      shape[0] += parts[i].size(0);
    }
    TORCH_CHECK_VALUE(at::IntArrayRef(shape) == at::IntArrayRef(info.shape), "load_checkpoint: '",
                      source.tensor_file, "': tensor '", where, "' has shape ",
                      at::IntArrayRef(shape), ", the config wants ", at::IntArrayRef(info.shape),
                      source.layout == Layout::kIslOrg
                          ? ", which it has by the shapes of other tensors of the file"
                          : "; the file and its config.json do not belong together");
    TORCH_CHECK_VALUE(at::isFloatingType(parts[0].scalar_type()) == at::isFloatingType(info.dtype),
                      "load_checkpoint: '", source.tensor_file, "': tensor '", where,
                      "' has dtype ", parts[0].scalar_type(), ", wanted ",
                      at::isFloatingType(info.dtype) ? "a floating point one" : "int64");
    tensor = parts.size() == 1 ? parts[0] : at::cat(parts, 0);
    if (info.role == Role::kParameter) tensor.set_requires_grad(true);
  }

  // The names that were not taken.
  std::vector<std::string> rest() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : source.tensors) {
      if (!taken.contains(name)) names.push_back(name);
    }
    return names;
  }

  void refuse(const std::vector<std::string>& unexpected) const {
    TORCH_CHECK_VALUE(missing.empty() && unexpected.empty(), "load_checkpoint: '",
                      source.tensor_file, "' does not fit its config (", to_string(source.layout),
                      " layout): ", missing.size(), " missing [", listed(missing), "], ",
                      unexpected.size(), " unexpected [", listed(unexpected), "]");
  }
};

std::vector<std::string> keys_of(const std::map<std::string, Tensor>& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(name);
  return names;
}

Checkpoint read(const Source& source) {
  Checkpoint checkpoint{.model = Model(source.config), .layout = source.layout};
  Loader loader{source};
  for_each_tensor(checkpoint.model,
                  [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
                    loader.load(name, tensor, info);
                  });
  std::vector<std::string> unexpected;
  for (std::string& name : loader.rest()) {
    if (source.names.is_unused(name)) {
      checkpoint.ignored.emplace(name, source.tensors.at(name));
    } else {
      unexpected.push_back(std::move(name));
    }
  }
  loader.refuse(unexpected);
  return checkpoint;
}

// Refuses a model that a reader of the layout, which finds no config in it, would take for another.
void check_isl_org(const Config& config,
                   const std::vector<std::pair<std::string, Tensor>>& tensors) {
  const std::string origin = "save_checkpoint: layout 'isl-org'";
  Config recognized = parse_isl_org({tensors.begin(), tensors.end()}, origin).config;
  // transformers has 1e-12 for weights that were trained with 1e-6; both lose to rounding.
  if (config.layer_norm_eps <= recognized.layer_norm_eps) {
    recognized.layer_norm_eps = config.layer_norm_eps;
  }
  const json::Value ours = json::parse(config.to_json());
  const json::Value theirs = json::parse(recognized.to_json());
  for (const auto& [name, value] : ours.as_object()) {
    const json::Value& other = *theirs.find(name);
    TORCH_CHECK_VALUE(value == other, origin, " holds no config, and a reader would take ", name,
                      " for ", json::dump(other), ", where this model has ", json::dump(value),
                      "; use layout 'torchdpt'");
  }
}

}  // namespace

std::string_view to_string(Layout layout) {
  constexpr std::string_view kNames[] = {"torchdpt", "transformers", "isl-org"};
  return kNames[static_cast<size_t>(layout)];
}

Layout parse_layout(std::string_view name) {
  for (const Layout layout : {Layout::kTorchdpt, Layout::kTransformers, Layout::kIslOrg}) {
    if (name == to_string(layout)) return layout;
  }
  TORCH_CHECK_VALUE(false, "layout must be 'torchdpt', 'transformers' or 'isl-org', got '", name,
                    "'");
}

Checkpoint load_checkpoint(const std::string& path) { return read(open_source(path)); }

Checkpoint recognize(const std::map<std::string, Tensor>& tensors, const std::string& origin) {
  TORCH_CHECK_VALUE(is_isl_org(tensors), "load_checkpoint: '", origin,
                    "' names no config, and its tensors are not called as isl-org calls them "
                    "(pretrained.model.cls_token), but [",
                    listed(keys_of(tensors)),
                    "]; make the model with its DPTConfig and call load_state_dict, or pass the "
                    "folder with config.json and model.safetensors that it was published with");
  Source source{.tensor_file = origin};
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided &&
                          tensor.device().is_cpu() && !tensor.is_quantized(),
                      "load_checkpoint: '", origin, "': tensor '", name,
                      "' must be dense and on the CPU");
    source.tensors.emplace(name, tensor.detach());
  }
  recognize_config(source);
  return read(source);
}

std::vector<std::string> load_encoder(Model& model, const std::string& path) {
  const Source source = open_source(path);
  // What no tensor's shape shows.
  const auto same = [&](const char* name, const json::Value& theirs, const json::Value& ours) {
    TORCH_CHECK_VALUE(theirs == ours, "load_encoder: '", source.tensor_file,
                      "' has an encoder with ", name, " = ", json::dump(theirs),
                      ", this model has ", json::dump(ours), "; change the config of one");
  };
  same("heads", source.config.heads, model.config.heads);
  same("depth", source.config.depth, model.config.depth);
  same("qkv_bias", source.config.qkv_bias, model.config.qkv_bias);
  same("distilled", source.config.distilled, model.config.distilled);
  same("layer_norm_eps", source.config.layer_norm_eps, model.config.layer_norm_eps);
  Loader loader{source};
  for_each_tensor(
      model.encoder,
      [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
        loader.load(name, tensor, info);
      },
      "encoder.");
  loader.refuse({});
  return loader.rest();
}

NamedTensors named_tensors(const Model& model, Layout layout) {
  const NameTable& names = layout == Layout::kTransformers ? transformers_names()
                           : layout == Layout::kIslOrg     ? isl_org_names()
                                                           : torchdpt_names();
  NamedTensors named;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    const std::vector<std::string> parts = names.names_of(name);
    TORCH_INTERNAL_ASSERT(!parts.empty(), "no name for ", name);
    const std::vector<Tensor> split =
        parts.size() == 1 ? std::vector<Tensor>{tensor}
                          : tensor.detach().chunk(static_cast<int64_t>(parts.size()), 0);
    for (size_t i = 0; i < parts.size(); ++i) named.tensors.emplace_back(parts[i], split[i]);
  };
  Model copy = model;  // handles, not data
  for_each_tensor(
      copy, [&](const std::string& name, Tensor& tensor, const TensorInfo&) { add(name, tensor); });
  if (layout == Layout::kTorchdpt) return named;
  if (layout == Layout::kIslOrg) check_isl_org(model.config, named.tensors);

  const size_t used = named.tensors.size();
  const auto options = model.head.conv1.weight.options().device(at::kCPU).requires_grad(false);
  const auto add_zeros = [&](const std::string& theirs, at::IntArrayRef shape) {
    named.tensors.emplace_back(theirs, at::zeros(shape, options));
  };
  const int64_t width = model.config.width;
  if (layout == Layout::kTransformers) {
    for (const char* leaf : {"weight", "bias"}) {
      add_zeros(std::string("dpt.layernorm.") + leaf, {width});
    }
  } else {
    // timm's ViT has a final norm and classifies the 1000 classes of ImageNet.
    add_zeros("pretrained.model.norm.weight", {width});
    add_zeros("pretrained.model.norm.bias", {width});
    std::vector<std::string> heads{"pretrained.model.head"};
    if (model.config.distilled) heads.push_back("pretrained.model.head_dist");
    for (const std::string& head : heads) {
      add_zeros(head + ".weight", {1000, width});
      add_zeros(head + ".bias", {1000});
    }
  }
  // The unit that the coarsest level lacks has the shape of any other.
  ResidualConvUnit unit = copy.fusion.blocks[0].unit1;
  for_each_tensor(
      unit,
      [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
        add(name, at::zeros(info.shape, tensor.options().device(at::kCPU).requires_grad(false)));
      },
      "fusion.3.unit1.");
  for (size_t i = used; i < named.tensors.size(); ++i) {
    named.zeros.push_back(named.tensors[i].first);
  }
  return named;
}

std::vector<std::string> save_checkpoint(const Model& model, const std::string& folder,
                                         Layout layout) {
  TORCH_CHECK_VALUE(layout != Layout::kIslOrg,
                    "save_checkpoint: the files of isl-org are pickles, which Python's "
                    "save_pretrained(folder, layout=\"isl-org\") writes; save in layout 'torchdpt' "
                    "here and convert it there");
  const bool theirs = layout == Layout::kTransformers;
  // Refuses what the layout cannot express, before anything is written.
  const std::string config =
      theirs ? to_transformers_config(model.config) : model.config.to_json(2) + "\n";
  const NamedTensors named = named_tensors(model, layout);
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (theirs) {
    std::string list;
    for (const std::string& name : named.zeros) list += (list.empty() ? "" : ",") + name;
    metadata.emplace(kZerosKey, list);
  } else {
    metadata.emplace(kConfigKey, model.config.to_json());
  }

  std::error_code error;
  fs::create_directories(folder, error);
  TORCH_CHECK_VALUE(!error && fs::is_directory(folder),
                    "save_checkpoint: could not create the folder '", folder, "' (",
                    error.message(), "); check the path and its permissions");
  write_safetensors((fs::path(folder) / kTensorFile).string(), named.tensors, metadata);
  AtomicFile file((fs::path(folder) / kConfigFile).string(), "save_checkpoint");
  file.write(config);
  file.commit();
  return named.zeros;
}

}  // namespace dpt
