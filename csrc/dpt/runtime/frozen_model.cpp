#include "dpt/runtime/frozen_model.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <list>
#include <mutex>
#include <set>

#include "dpt/encoder/image.h"
#include "dpt/io/json.h"
#include "dpt/io/safetensors.h"
#include "dpt/ops/normalize_pixels.h"
#include "dpt/ops/resize.h"
#include "dpt/runtime/calibration.h"
#include "dpt/runtime/cuda_runner.h"
#include "dpt/runtime/rewrites.h"
#include "dpt/runtime/run.h"

namespace dpt {

namespace {

using namespace runtime;

constexpr const char* kFormat = "torchdpt frozen";
constexpr int64_t kFormatVersion = 2;
constexpr size_t kGeometries = 8;  // sizes of images that are remembered

json::Object to_json(Rewrites rewrites) {
  json::Object object;
  rewrites.for_each([&](const char* name, bool on) { object[name] = on; });
  return object;
}

Rewrites rewrites_of(const json::Value& value) {
  Rewrites rewrites;
  rewrites.for_each([&](const char* name, bool& on) {
    const json::Value* found = value.find(name);
    if (found == nullptr) throw json::Error(std::string("there is no ") + name);
    on = found->as_bool();
  });
  return rewrites;
}

constexpr std::array<std::pair<at::ScalarType, const char*>, 5> kDtypes{
    {{at::kFloat, "float32"},
     {at::kBFloat16, "bfloat16"},
     {at::kHalf, "float16"},
     {at::kFloat8_e4m3fn, "float8_e4m3fn"},
     {at::kChar, "int8"}}};

const char* name_of(at::ScalarType dtype) {
  for (const auto& [type, name] : kDtypes) {
    if (type == dtype) return name;
  }
  TORCH_INTERNAL_ASSERT(false);
}

void check(const FreezeOptions& options) {
  const at::Device device = options.device;
  const at::ScalarType dtype = options.dtype;
  TORCH_CHECK_VALUE(device.is_cpu() || device.is_cuda(), "freeze: device must be cpu or cuda, got ",
                    device);
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 ||
                        (dtype == at::kChar && device.is_cpu()) ||
                        ((dtype == at::kHalf || dtype == at::kFloat8_e4m3fn) && device.is_cuda()),
                    "freeze: dtype must be float32, bfloat16, int8 on a CPU, or float16 or "
                    "float8_e4m3fn on a CUDA device, got ",
                    dtype, " on ", device);
}

void check_calibration(const FreezeOptions& options) {
  if (options.dtype != at::kChar) {
    TORCH_CHECK_VALUE(options.calibration.empty(), "freeze: calibration is for int8, and dtype is ",
                      name_of(options.dtype), "; leave one of them out");
    return;
  }
  TORCH_CHECK_VALUE(!options.calibration.empty(),
                    "freeze: int8 needs calibration, got none; pass some photographs like those to "
                    "predict for, which decide what layers are float32 nevertheless");
  for (const Tensor& images : options.calibration) {
    TORCH_CHECK_VALUE(images.dim() == 4 && images.size(0) > 0 && images.size(1) == 3 &&
                          images.scalar_type() == at::kFloat && images.is_cpu(),
                      "freeze: calibration must be float32 [N, 3, H, W] on the CPU with N of at "
                      "least 1, got ",
                      images.scalar_type(), " ", images.sizes(), " on ", images.device());
    TORCH_CHECK_VALUE(at::isfinite(images).all().item<bool>(),
                      "freeze: calibration images must be finite, got NaN or infinity");
  }
}

json::Array to_json(const std::vector<std::string>& names) { return {names.begin(), names.end()}; }

std::vector<std::string> names_of(const std::string& text) {
  const json::Value list = json::parse(text);
  std::vector<std::string> names;
  for (const json::Value& name : list.as_array()) names.push_back(name.as_string());
  return names;
}

std::array<double, 3> triple_of(const json::Value& processor, const char* name) {
  const json::Value* found = processor.find(name);
  std::array<double, 3> triple{0.5, 0.5, 0.5};
  if (found == nullptr) return triple;
  const json::Array& values = found->as_array();
  if (values.size() != 3) throw json::Error(std::string(name) + " must be three numbers");
  for (size_t i = 0; i < 3; ++i) triple[i] = values[i].as_double();
  return triple;
}

json::Array to_json(const std::array<double, 3>& triple) {
  return json::Array(triple.begin(), triple.end());
}

// The precision of each product; of int8 that of those named. False if there are none of such
// names.
bool set_precisions(Network& network, at::ScalarType dtype, const std::set<std::string>& int8,
                    const Kernels& kernels) {
  size_t found = 0;
  for_each_product(network, [&](const std::string& name, Product& product) {
    if (dtype == at::kBFloat16) product.precision = Precision::kBFloat16;
    if (dtype == at::kChar) product.precision = kernels.beside_int8;
    if (!product.defined() || !int8.contains(name)) return;
    product.precision = Precision::kInt8;
    ++found;
  });
  return found == int8.size();
}

// A network of this config with shapes alone.
Network skeleton(const Config& config, const Rewrites& rewrites) {
  Model model(config);
  dpt::for_each_tensor(model, [](const std::string&, Tensor& tensor, const TensorInfo& info) {
    tensor = shape_of(info.shape, info.dtype);
  });
  return rewrite(model, rewrites);
}

// Pages of the mapped file that are not needed now; they would be read again. Of other memory, as
// that of a tensor which was copied since it was not aligned, the content would be lost.
void drop_pages(const Tensor& tensor, std::span<const unsigned char> mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto* data = static_cast<const unsigned char*>(tensor.const_data_ptr());
  if (data < mapped.data() || data >= mapped.data() + mapped.size()) return;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + tensor.nbytes()) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

struct FrozenModel::State {
  Network network;
  FreezeOptions options;
  std::vector<std::string> fallbacks;
  std::map<std::string, std::string> metadata;
  std::optional<CudaRunner> cuda;  // instead of all that follows

  const Kernels& kernels = runtime::kernels(best_isa());
  std::mutex mutex;
  std::vector<std::unique_ptr<Arena>> arenas;  // that no call uses now
  struct Size {
    int64_t height, width;
    std::shared_ptr<const Geometry> geometry;
  };
  std::list<Size> sizes;  // the last one used first

  State(Network network, const FreezeOptions& options)
      : network(std::move(network)), options(options) {}

  // Makes the network ready; `done` is told of each weight that is not needed any more.
  void make_ready(const std::function<void(const Tensor&)>& done = {});
  std::shared_ptr<const Geometry> geometry_of(int64_t height, int64_t width);
  std::unique_ptr<Arena> arena();
};

void FrozenModel::State::make_ready(const std::function<void(const Tensor&)>& done) {
  if (options.device.is_cpu()) return pack(network, kernels, done);
  Network rows = network;
  from_panels(rows);
  cuda.emplace(rows, options.device, options.dtype, options.mean, options.std);
  options.device = cuda->device();
  if (!done) return;
  for_each_tensor(network, [&](const std::string&, Tensor& tensor) {
    if (tensor.defined()) done(tensor);
  });
}

std::shared_ptr<const Geometry> FrozenModel::State::geometry_of(int64_t height, int64_t width) {
  const std::lock_guard lock(mutex);
  for (auto it = sizes.begin(); it != sizes.end(); ++it) {
    if (it->height == height && it->width == width) {
      sizes.splice(sizes.begin(), sizes, it);
      return it->geometry;
    }
  }
  auto geometry = std::make_shared<Geometry>();
  if (const auto& transformer = network.transformer) {
    const int64_t patch = network.config.patch_size, grid = transformer->grid;
    const Tensor square = transformer->pos_embed.view({1, grid, grid, -1}).permute({0, 3, 1, 2});
    geometry->pos_embed = resize_bilinear(square, height / patch, width / patch,
                                          /*align_corners=*/false)
                              .permute({0, 2, 3, 1})
                              .flatten(0, 2)
                              .contiguous();
  }
  sizes.push_front({height, width, geometry});
  if (sizes.size() > kGeometries) sizes.pop_back();
  return geometry;
}

std::unique_ptr<Arena> FrozenModel::State::arena() {
  const std::lock_guard lock(mutex);
  if (arenas.empty()) return std::make_unique<Arena>();
  std::unique_ptr<Arena> last = std::move(arenas.back());
  arenas.pop_back();
  return last;
}

FrozenModel::FrozenModel(std::shared_ptr<State> state) : state_(std::move(state)) {}

FrozenModel::FrozenModel(const Model& model, const FreezeOptions& options) {
  check(options);
  check_calibration(options);
  Model named = model;
  dpt::for_each_tensor(named, [](const std::string& name, Tensor& tensor, const TensorInfo&) {
    TORCH_CHECK_VALUE(
        tensor.defined() && tensor.is_cpu(), "freeze: tensor '", name, "' must be on the CPU, got ",
        tensor.defined() ? c10::str(tensor.device()) : "none", "; move the model there first");
  });
  state_ = std::make_shared<State>(rewrite(model, options.rewrites), options);
  for_each_tensor(state_->network, [](const std::string&, Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.to(at::kFloat);
  });
  state_->options.calibration.clear();
  if (options.dtype == at::kChar) {
    std::vector<Tensor> images;
    for (const Tensor& tensor : options.calibration) {
      for (const Tensor& image : tensor.split(1)) images.push_back(image);
    }
    state_->fallbacks = pack_calibrated(state_->network, state_->kernels, images.size(),
                                        [&](size_t i) { return (*this)(images[i]); });
    return;
  }
  set_precisions(state_->network, options.dtype, {}, state_->kernels);
  if (options.dtype == at::kFloat && options.device.is_cpu()) to_panels(state_->network);
  state_->make_ready();
}

Output FrozenModel::operator()(const Tensor& images, Profile* profile) const {
  State& state = *state_;
  const at::Device device = state.options.device;
  TORCH_CHECK_VALUE(images.device() == device, "frozen model: images must be on ",
                    device.is_cpu() ? "the CPU" : device.str(), ", got ", images.device(),
                    "; convert them with images.to()");
  const Network& network = state.network;
  const bool pixels = images.scalar_type() == at::kByte;
  TORCH_CHECK_VALUE(images.scalar_type() == at::kFloat || pixels,
                    "frozen model: images must be float32, normalised, or uint8 pixels, got ",
                    images.scalar_type(), "; convert them with images.to()");
  check_image(images, network.transformer ? network.config.patch_size : 32, images.scalar_type());
  if (state.cuda) {
    TORCH_CHECK_VALUE(profile == nullptr, "profile: a model on the CPU is wanted, got one on ",
                      device, "; torch.profiler times kernels of a GPU");
    return (*state.cuda)(images);
  }
  const int64_t height = images.size(2), width = images.size(3);
  const at::NoGradGuard no_grad;
  const auto geometry = state.geometry_of(height, width);
  std::unique_ptr<Arena> arena = state.arena();
  const int threads = state.options.threads > 0 ? state.options.threads : at::get_num_threads();
  const Tensor prepared = pixels ? normalize_pixels(images, state.options.mean, state.options.std,
                                                    at::kFloat, /*channels_last=*/false)
                                 : images.contiguous();
  Output output = run(network, state.kernels, *geometry, *arena, threads, prepared, profile);
  arena->settle();
  const std::lock_guard lock(state.mutex);
  state.arenas.push_back(std::move(arena));
  return output;
}

const Config& FrozenModel::config() const { return state_->network.config; }
const FreezeOptions& FrozenModel::options() const { return state_->options; }
const std::vector<std::string>& FrozenModel::fallbacks() const { return state_->fallbacks; }
const std::map<std::string, std::string>& FrozenModel::metadata() const { return state_->metadata; }

void FrozenModel::save(const std::string& path,
                       const std::map<std::string, std::string>& metadata) const {
  std::vector<std::pair<std::string, Tensor>> tensors;
  Network network = state_->network;
  if (state_->options.dtype == at::kFloat) to_panels(network);  // of a GPU they are not yet
  for_each_tensor(network, [&](const std::string& name, Tensor& tensor) {
    if (tensor.defined()) tensors.emplace_back(name, tensor);
  });
  std::map<std::string, std::string> all = metadata;
  all["format"] = kFormat;
  all["format_version"] = std::to_string(kFormatVersion);
  all["config"] = state_->network.config.to_json();
  all["rewrites"] = json::dump(to_json(state_->network.rewrites));
  all["dtype"] = name_of(state_->options.dtype);
  all.try_emplace("processor", json::dump(json::Object{{"mean", to_json(state_->options.mean)},
                                                       {"std", to_json(state_->options.std)}}));
  if (state_->options.dtype == at::kChar) {
    std::vector<std::string> int8;
    for_each_product(state_->network, [&](const std::string& name, Product& product) {
      if (product.precision == Precision::kInt8) int8.push_back(name);
    });
    all["int8"] = json::dump(to_json(int8));
    all["fallbacks"] = json::dump(to_json(state_->fallbacks));
  }
  write_safetensors(path, tensors, all);
}

FrozenModel FrozenModel::load(const std::string& path, int threads, at::Device device) {
  Safetensors file = read_safetensors(path);
  const auto entry = [&](const char* name) {
    const auto found = file.metadata.find(name);
    return found == file.metadata.end() ? std::string() : found->second;
  };
  TORCH_CHECK_VALUE(entry("format") == kFormat, "load: '", path,
                    "' is no frozen model; models are frozen and saved by freeze and save");
  TORCH_CHECK_VALUE(entry("format_version") == std::to_string(kFormatVersion), "load: '", path,
                    "' has format_version ", entry("format_version"), ", and this library reads ",
                    kFormatVersion, "; freeze the model anew");
  FreezeOptions options{.threads = threads, .device = device};
  for (const auto& [dtype, name] : kDtypes) {
    if (entry("dtype") == name) options.dtype = dtype;
  }
  TORCH_CHECK_VALUE(entry("dtype") == name_of(options.dtype), "load: '", path, "' has dtype ",
                    entry("dtype"), "; wanted float32, bfloat16, float16, float8_e4m3fn or int8");
  check(options);
  std::vector<std::string> int8, fallbacks;
  try {
    if (!entry("processor").empty()) {
      const json::Value processor = json::parse(entry("processor"));
      options.mean = triple_of(processor, "mean");
      options.std = triple_of(processor, "std");
    }
    options.rewrites = rewrites_of(json::parse(entry("rewrites")));
    if (options.dtype == at::kChar) {
      int8 = names_of(entry("int8"));
      fallbacks = names_of(entry("fallbacks"));
    }
  } catch (const json::Error& error) {
    TORCH_CHECK_VALUE(false, "load: '", path,
                      "': the rewrites, precisions or processor are damaged: ", error.what());
  }
  auto state = std::make_shared<State>(
      skeleton(Config::from_json(entry("config")), options.rewrites), options);
  if (options.dtype == at::kFloat) to_panels(state->network);
  size_t used = 0;
  for_each_tensor(state->network, [&](const std::string& name, Tensor& tensor) {
    if (!tensor.defined()) return;
    const auto found = file.tensors.find(name);
    TORCH_CHECK_VALUE(found != file.tensors.end() && found->second.sizes() == tensor.sizes() &&
                          found->second.scalar_type() == at::kFloat,
                      "load: '", path, "': tensor '", name, "' must be float32 ", tensor.sizes(),
                      ", got ",
                      found == file.tensors.end()
                          ? "none"
                          : c10::str(found->second.scalar_type(), " ", found->second.sizes()),
                      "; the file is damaged or of another version");
    tensor = found->second;
    ++used;
  });
  TORCH_CHECK_VALUE(used == file.tensors.size(), "load: '", path, "' has ",
                    file.tensors.size() - used, " tensors more than its config has");
  for (const char* own :
       {"format", "format_version", "config", "rewrites", "dtype", "int8", "fallbacks"}) {
    file.metadata.erase(own);
  }
  state->metadata = std::move(file.metadata);
  file.tensors.clear();
  TORCH_CHECK_VALUE(
      set_precisions(state->network, options.dtype, {int8.begin(), int8.end()}, state->kernels),
      "load: '", path, "': int8 names layers that its config does not have");
  state->fallbacks = std::move(fallbacks);
  state->make_ready([&](const Tensor& tensor) { drop_pages(tensor, file.mapped); });
  return FrozenModel(std::move(state));
}

FrozenModel freeze(const Model& model, const FreezeOptions& options) {
  return FrozenModel(model, options);
}

}  // namespace dpt
