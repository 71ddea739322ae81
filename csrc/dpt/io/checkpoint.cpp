#include "dpt/io/checkpoint.h"

#include <filesystem>

#include "dpt/io/atomic_file.h"
#include "dpt/io/isl_org.h"
#include "dpt/io/safetensors.h"
#include "dpt/io/shapes.h"
#include "dpt/io/source.h"
#include "dpt/io/transformers_config.h"

namespace dpt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kLoad = "load_checkpoint";
constexpr const char* kZerosKey = "torchdpt.written_as_zeros";

Checkpoint read(const Source& source) {
  Checkpoint checkpoint{.model = Model(source.config), .layout = source.layout};
  Loader loader{source, kLoad,
                source.file.config ? "; the file and its config.json do not belong together"
                                   : ", which it has by the shapes of other tensors of the file"};
  for_each_tensor(checkpoint.model,
                  [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
                    loader.load(name, tensor, info);
                  });
  std::vector<std::string> unexpected;
  for (std::string& name : loader.rest()) {
    if (source.names.is_unused(name)) {
      checkpoint.ignored.emplace(name, source.file.tensors.at(name));
    } else {
      unexpected.push_back(std::move(name));
    }
  }
  loader.refuse(unexpected);
  return checkpoint;
}

// Refuses a model that a reader of the layout, which finds no config in it, would take for another.
// Metric depth is no reason: isl-org's own files do not say it either.
void check_isl_org(const Config& config,
                   const std::vector<std::pair<std::string, Tensor>>& tensors) {
  const std::string origin = "save_checkpoint: layout 'isl-org'";
  const Config ours = canonical(config);
  Config theirs = canonical(parse_isl_org({tensors.begin(), tensors.end()}, origin).config);
  // transformers has 1e-12 for weights that were trained with 1e-6; both lose to rounding.
  if (ours.layer_norm_eps <= theirs.layer_norm_eps) theirs.layer_norm_eps = ours.layer_norm_eps;
  theirs.metric = ours.metric;
  theirs.depth_scale = ours.depth_scale;
  theirs.depth_shift = ours.depth_shift;
  const auto difference = find_difference(ours, theirs);
  TORCH_CHECK_VALUE(!difference, origin, " holds no config, and a reader would take ",
                    difference->field, " for ", difference->second, ", where this model has ",
                    difference->first, "; use layout 'torchdpt'");
}

// What the layout declares beside the network, with shapes: theirs by their names, ours by ours.
std::vector<std::pair<std::string, std::vector<int64_t>>> unused_layers(const Config& config,
                                                                        Layout layout) {
  const int64_t width = config.width;
  if (layout == Layout::kTransformers) {
    return {{"dpt.layernorm.weight", {width}}, {"dpt.layernorm.bias", {width}}};
  }
  if (config.encoder == EncoderKind::kResNet) return {};
  // timm's ViT has a final norm and classifies the 1000 classes of ImageNet.
  std::vector<std::pair<std::string, std::vector<int64_t>>> layers{
      {"pretrained.model.norm.weight", {width}}, {"pretrained.model.norm.bias", {width}}};
  for (const char* head : {"pretrained.model.head", "pretrained.model.head_dist"}) {
    layers.push_back({std::string(head) + ".weight", {1000, width}});
    layers.push_back({std::string(head) + ".bias", {1000}});
    if (!config.distilled) break;
  }
  return layers;
}

}  // namespace

Checkpoint load_checkpoint(const std::string& path, const Config* given) {
  return read(identify(open_file(path, kLoad), given, kLoad));
}

Checkpoint recognize(const std::map<std::string, Tensor>& tensors, const std::string& origin,
                     const Config* given) {
  return read(identify(from_tensors(tensors, origin, kLoad), given, kLoad));
}

NamedTensors named_tensors(const Model& model, Layout layout) {
  if (layout != Layout::kTorchdpt) {
    TORCH_CHECK_VALUE(!(model.config.depth_head && model.config.num_classes > 0),
                      "save_checkpoint: a network of ", to_string(layout),
                      " has one head, this model has one for depth and one for segmentation; use "
                      "layout 'torchdpt'");
  }
  const EncoderKind encoder = model.config.encoder;
  const bool scriptable = layout == Layout::kIslOrgScriptable;
  TORCH_CHECK_VALUE(!(scriptable && encoder == EncoderKind::kResNet),
                    "save_checkpoint: MiDaS v2.1 has no scriptable layout; use 'isl-org'");
  const bool isl_org = scriptable || layout == Layout::kIslOrg;
  const NameTable names = layout == Layout::kTransformers ? transformers_names(encoder)
                          : isl_org                       ? isl_org_names(encoder, scriptable)
                                                          : torchdpt_names();
  NamedTensors named;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    const std::vector<std::string> parts = names.names_of(name);
    TORCH_CHECK_VALUE(!parts.empty(), "save_checkpoint: ", to_string(layout),
                      " has no network with a tensor '", name, "'; use layout 'torchdpt'");
    const std::vector<Tensor> split =
        parts.size() == 1 ? std::vector<Tensor>{tensor}
                          : tensor.detach().chunk(static_cast<int64_t>(parts.size()), 0);
    for (size_t i = 0; i < parts.size(); ++i) named.tensors.emplace_back(parts[i], split[i]);
  };
  Model copy = model;  // handles, not data
  for_each_tensor(
      copy, [&](const std::string& name, Tensor& tensor, const TensorInfo&) { add(name, tensor); });
  if (layout == Layout::kTorchdpt) return named;
  if (isl_org) check_isl_org(model.config, named.tensors);

  const size_t used = named.tensors.size();
  const auto options =
      model.fusion.blocks[0].input.weight.options().device(at::kCPU).requires_grad(false);
  for (const auto& [name, shape] : unused_layers(model.config, layout)) {
    named.tensors.emplace_back(name, at::zeros(shape, options));
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
  TORCH_CHECK_VALUE(layout == Layout::kTorchdpt || layout == Layout::kTransformers,
                    "save_checkpoint: the files of isl-org are pickles, which Python's "
                    "save_pretrained(folder, layout=\"isl-org\") writes; save in layout 'torchdpt' "
                    "here and convert it there");
  const bool theirs = layout == Layout::kTransformers;
  // Refuses what the layout cannot express, before anything is written.
  Config config = model.config;
  config.batch_norm_group.clear();  // the processes of one run
  const std::string text = theirs ? to_transformers_config(config) : config.to_json(2) + "\n";
  const NamedTensors named = named_tensors(model, layout);
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  if (theirs) {
    std::string list;
    for (const std::string& name : named.zeros) list += (list.empty() ? "" : ",") + name;
    metadata.emplace(kZerosKey, list);
  } else {
    metadata.emplace(kConfigKey, config.to_json());
  }

  std::error_code error;
  fs::create_directories(folder, error);
  TORCH_CHECK_VALUE(!error && fs::is_directory(folder),
                    "save_checkpoint: could not create the folder '", folder, "' (",
                    error.message(), "); check the path and its permissions");
  write_safetensors((fs::path(folder) / kTensorFile).string(), named.tensors, metadata);
  AtomicFile file((fs::path(folder) / kConfigFile).string(), "save_checkpoint");
  file.write(text);
  file.commit();
  return named.zeros;
}

}  // namespace dpt
