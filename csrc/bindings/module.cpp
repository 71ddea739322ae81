// csrc/bindings/module.cpp -- torchdpt._C: configs, files, frozen models. The network itself
// crosses as operators (torch.ops.dpt).
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "dpt/io/checkpoint.h"
#include "dpt/io/encoder_weights.h"
#include "dpt/io/safetensors.h"
#include "dpt/runtime/frozen_model.h"

namespace py = pybind11;

namespace {

using dpt::Config;
using dpt::Model;
using dpt::Tensor;
using dpt::TensorInfo;

// Name, shape, dtype, and whether the tensor is a buffer.
using SpecEntry = std::tuple<std::string, std::vector<int64_t>, at::ScalarType, bool>;

// Calls f(name, tensor, info) for the tensors of one stage ("encoder", "reassemble", "fusion",
// "head"), names relative to it.
template <class F>
void for_stage(Model& model, const std::string& stage, F&& f) {
  if (stage == "encoder") return dpt::for_each_tensor(model.encoder, f);
  if (stage == "reassemble") return dpt::for_each_tensor(model.reassemble, f);
  if (stage == "fusion") return dpt::for_each_tensor(model.fusion, f);
  if (stage == "head") return dpt::for_each_tensor(model.head, f);
  TORCH_CHECK_VALUE(false, "stage must be 'encoder', 'reassemble', 'fusion' or 'head', got '",
                    stage, "'");
}

std::vector<SpecEntry> spec(const std::string& config, const std::string& stage) {
  Model model(Config::from_json(config));
  std::vector<SpecEntry> entries;
  for_stage(model, stage, [&](const std::string& name, Tensor&, const TensorInfo& info) {
    entries.emplace_back(name, std::vector<int64_t>(info.shape.begin(), info.shape.end()),
                         info.dtype, info.role == dpt::Role::kBuffer);
  });
  return entries;
}

std::vector<Tensor> initial_tensors(const std::string& config, const std::string& stage) {
  Model model(Config::from_json(config));
  std::vector<Tensor> tensors;
  for_stage(model, stage, [&](const std::string&, Tensor&, const TensorInfo& info) {
    tensors.push_back(dpt::make_initial(info));
  });
  return tensors;
}

std::map<std::string, Tensor> tensors_of(Model& model) {
  std::map<std::string, Tensor> tensors;
  dpt::for_each_tensor(model, [&](const std::string& name, Tensor& tensor, const TensorInfo&) {
    if (tensor.defined()) tensors.emplace(name, tensor);
  });
  return tensors;
}

// Layout, config, tensors by our names, ignored tensors by the file's.
using Loaded = std::tuple<std::string, std::string, std::map<std::string, Tensor>,
                          std::map<std::string, Tensor>>;

Loaded loaded(dpt::Checkpoint checkpoint) {
  return {std::string(to_string(checkpoint.layout)), checkpoint.model.config.to_json(),
          tensors_of(checkpoint.model), std::move(checkpoint.ignored)};
}

// What a file without a config cannot tell.
struct Given {
  std::optional<Config> config;

  explicit Given(const std::optional<std::string>& text) {
    if (text) config = Config::from_json(*text);
  }
  const Config* get() const { return config ? &*config : nullptr; }
};

Loaded load_checkpoint(const std::string& path, const std::optional<std::string>& config) {
  return loaded(dpt::load_checkpoint(path, Given(config).get()));
}

Loaded recognize(const std::map<std::string, Tensor>& tensors, const std::string& origin,
                 const std::optional<std::string>& config) {
  return loaded(dpt::recognize(tensors, origin, Given(config).get()));
}

// Tensors of the encoder by our names, names that were not used, the grid that a position embedding
// was resized from or 0.
using LoadedEncoder = std::tuple<std::map<std::string, Tensor>, std::vector<std::string>, int64_t>;

LoadedEncoder load_encoder(const std::string& config, const std::string& path) {
  Model model(Config::from_json(config));
  dpt::EncoderReport report = dpt::load_encoder(model, path);
  return {tensors_of(model), std::move(report.unused), report.resized_from};
}

LoadedEncoder encoder_of(const std::string& config, const std::map<std::string, Tensor>& tensors,
                         const std::string& origin) {
  Model model(Config::from_json(config));
  dpt::EncoderReport report = dpt::load_encoder(model, tensors, origin);
  return {tensors_of(model), std::move(report.unused), report.resized_from};
}

Model model_of(const std::string& config, const std::map<std::string, Tensor>& tensors) {
  Model model(Config::from_json(config));
  dpt::for_each_tensor(model, [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
    const auto found = tensors.find(name);
    TORCH_CHECK_VALUE(
        found != tensors.end() && found->second.sizes() == at::IntArrayRef(info.shape),
        "the model's tensor '", name, "' must have shape ", at::IntArrayRef(info.shape), ", got ",
        found == tensors.end() ? "none" : c10::str(found->second.sizes()));
    tensor = found->second;
  });
  return model;
}

std::vector<std::string> save_checkpoint(const std::string& config,
                                         const std::map<std::string, Tensor>& tensors,
                                         const std::string& folder, const std::string& layout) {
  return dpt::save_checkpoint(model_of(config, tensors), folder, dpt::parse_layout(layout));
}

std::tuple<std::map<std::string, Tensor>, std::vector<std::string>> named_tensors(
    const std::string& config, const std::map<std::string, Tensor>& tensors,
    const std::string& layout) {
  dpt::NamedTensors named =
      dpt::named_tensors(model_of(config, tensors), dpt::parse_layout(layout));
  return {{named.tensors.begin(), named.tensors.end()}, std::move(named.zeros)};
}

std::tuple<std::map<std::string, std::string>, std::map<std::string, Tensor>> read_safetensors(
    const std::string& path) {
  dpt::Safetensors file = dpt::read_safetensors(path);
  return {std::move(file.metadata), std::move(file.tensors)};
}

void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  dpt::write_safetensors(path, {tensors.begin(), tensors.end()}, metadata);
}

using Metadata = std::map<std::string, std::string>;

dpt::FrozenModel freeze(const std::string& config, const std::map<std::string, Tensor>& tensors,
                        at::ScalarType dtype, const std::vector<Tensor>& calibration,
                        at::Device device, int threads, const std::vector<std::string>& without,
                        const std::array<double, 3>& mean, const std::array<double, 3>& std) {
  dpt::FreezeOptions options{.dtype = dtype,
                             .calibration = calibration,
                             .threads = threads,
                             .device = device,
                             .mean = mean,
                             .std = std};
  for (const std::string& left_out : without) {
    bool found = false;
    options.rewrites.for_each([&](const char* name, bool& on) {
      if (left_out != name) return;
      on = false;
      found = true;
    });
    TORCH_CHECK_VALUE(found, "freeze: there is no rewrite '", left_out, "'");
  }
  return dpt::freeze(model_of(config, tensors), options);
}

std::vector<Tensor> listed(const dpt::Output& output) {
  std::vector<Tensor> list;
  for (const Tensor& tensor : {output.depth, output.logits}) {
    if (tensor.defined()) list.push_back(tensor);
  }
  return list;
}

std::vector<Tensor> run(const dpt::FrozenModel& model, const Tensor& images) {
  return listed(model(images));
}

using Seconds = std::vector<std::pair<std::string, double>>;

std::pair<std::vector<Tensor>, Seconds> profile(const dpt::FrozenModel& model,
                                                const Tensor& images) {
  dpt::runtime::Profile profile;
  std::pair<std::vector<Tensor>, Seconds> result{listed(model(images, &profile)), {}};
  profile.for_each(
      [&](const char* part, double seconds) { result.second.emplace_back(part, seconds); });
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Bindings of libdpt: configs, files, frozen models. Importing it registers the operators "
      "torch.ops.dpt.*.";
  // The wrapper turns errors of LibTorch into their Python kinds; "no_gil" lets other threads run
  // meanwhile.
  const auto def = [&](const char* name, auto function, const auto&... extra) {
    m.def(name, torch::wrap_pybind_function_no_gil(function), extra...);
  };
  def(
      "canonical_config",
      +[](const std::string& config) { return Config::from_json(config).to_json(); },
      py::arg("config"),
      "The config with every field, sorted; raises ValueError if it is not a valid one.");
  def(
      "preset", +[](const std::string& name) { return Config::preset(name).to_json(); },
      py::arg("name"), "The config of a preset.");
  def("preset_names", &dpt::preset_names, "Names of the presets, smallest network first.");
  def("spec", &spec, py::arg("config"), py::arg("stage"),
      "Name, shape, dtype and is_buffer of each tensor of a stage, in the order that the operators "
      "want.");
  def("initial_tensors", &initial_tensors, py::arg("config"), py::arg("stage"),
      "First values of a stage's tensors, in the order of spec, from the CPU's default generator.");
  def("load_checkpoint", &load_checkpoint, py::arg("path"), py::arg("config") = py::none(),
      "Layout, config, tensors by name, ignored tensors by name. `config` says what a file without "
      "one cannot.");
  def("recognize", &recognize, py::arg("tensors"), py::arg("origin"),
      py::arg("config") = py::none(),
      "The same, of a state dict of isl-org's; `origin` is named in errors.");
  def("load_encoder", &load_encoder, py::arg("config"), py::arg("path"),
      "Tensors of the encoder by name, names that were not used, and the side of the grid that the "
      "position embedding was resized from, or 0.");
  def("encoder_of", &encoder_of, py::arg("config"), py::arg("tensors"), py::arg("origin"),
      "The same, of a state dict; `origin` is named in errors.");
  def("save_checkpoint", &save_checkpoint, py::arg("config"), py::arg("tensors"), py::arg("folder"),
      py::arg("layout"), "Writes a folder; returns the names that were written as zeros.");
  def("named_tensors", &named_tensors, py::arg("config"), py::arg("tensors"), py::arg("layout"),
      "The tensors under the names of a layout, and which of these were added as zeros.");
  def("read_safetensors", &read_safetensors, py::arg("path"),
      "Metadata and tensors of a file, mapped, not copied.");
  def("write_safetensors", &write_safetensors, py::arg("path"), py::arg("tensors"),
      py::arg("metadata"), "Writes a file under a temporary name, then renames it.");
  py::class_<dpt::FrozenModel> frozen(m, "FrozenModel", "A network that is ready to predict.");
  const auto method = [&](const char* name, auto function, const auto&... extra) {
    frozen.def(name, torch::wrap_pybind_function_no_gil(function), extra...);
  };
  method("run", &run, py::arg("images"), "Depth and logits, of what it has heads for.");
  method("profile", &profile, py::arg("images"), "The same, and the seconds of each part.");
  method(
      "config", +[](const dpt::FrozenModel& model) { return model.config().to_json(); },
      "The config's JSON.");
  method(
      "dtype", +[](const dpt::FrozenModel& model) { return model.options().dtype; },
      "Of the factors of products.");
  method(
      "fallbacks", +[](const dpt::FrozenModel& model) { return model.fallbacks(); },
      "Layers that stayed float32, the worst in int8 first.");
  method(
      "device", +[](const dpt::FrozenModel& model) { return model.options().device; },
      "Where it predicts.");
  method(
      "metadata", +[](const dpt::FrozenModel& model) { return model.metadata(); },
      "What was saved beside the tensors.");
  method(
      "save",
      +[](const dpt::FrozenModel& model, const std::string& path, const Metadata& metadata) {
        model.save(path, metadata);
      },
      py::arg("path"), py::arg("metadata"), "Writes a file.");
  def("freeze", &freeze, py::arg("config"), py::arg("tensors"), py::arg("dtype"),
      py::arg("calibration"), py::arg("device"), py::arg("threads"), py::arg("without"),
      py::arg("mean"), py::arg("std"), "The model with its tensors folded and packed.");
  def("load_frozen", &dpt::FrozenModel::load, py::arg("path"), py::arg("threads"),
      py::arg("device"), "Reads a file that FrozenModel.save wrote.");
}
