#include "dpt/config.h"

#include <algorithm>
#include <cmath>

namespace dpt {

namespace {

constexpr int64_t kFormatVersion = 1;

// Names of an enum's values, in order.
constexpr std::array<std::string_view, 3> kReadModes{"ignore", "add", "project"};
constexpr std::array<std::string_view, 2> kFusionNorms{"none", "batch"};

template <size_t N>
size_t index_of(const std::array<std::string_view, N>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK_VALUE(found != names.end(), "one of ", at::ArrayRef<std::string_view>(names),
                    ", got '", name, "'");
  return static_cast<size_t>(found - names.begin());
}

// The one list of fields: f(name, field).
template <class Self, class F>
void for_each_field(Self& config, F&& f) {
  f("image_size", config.image_size);
  f("patch_size", config.patch_size);
  f("width", config.width);
  f("depth", config.depth);
  f("heads", config.heads);
  f("mlp_width", config.mlp_width);
  f("qkv_bias", config.qkv_bias);
  f("distilled", config.distilled);
  f("layer_norm_eps", config.layer_norm_eps);
  f("taps", config.taps);
  f("readout", config.readout);
  f("strides", config.strides);
  f("channels", config.channels);
  f("features", config.features);
  f("fusion_norm", config.fusion_norm);
  f("head_features", config.head_features);
}

void read(const json::Value& value, int64_t& field) { field = value.as_int(); }
void read(const json::Value& value, double& field) { field = value.as_double(); }
void read(const json::Value& value, bool& field) { field = value.as_bool(); }
void read(const json::Value& value, ReadMode& field) {
  field = static_cast<ReadMode>(index_of(kReadModes, value.as_string()));
}
void read(const json::Value& value, FusionNorm& field) {
  field = static_cast<FusionNorm>(index_of(kFusionNorms, value.as_string()));
}
void read(const json::Value& value, std::array<int64_t, 4>& field) {
  const json::Array& list = value.as_array();
  TORCH_CHECK_VALUE(list.size() == 4, "four values, finest level first, got ", list.size());
  for (size_t i = 0; i < 4; ++i) field[i] = list[i].as_int();
}

json::Value written(int64_t field) { return field; }
json::Value written(double field) { return field; }
json::Value written(bool field) { return field; }
json::Value written(ReadMode field) { return std::string(to_string(field)); }
json::Value written(FusionNorm field) { return std::string(to_string(field)); }
json::Value written(const std::array<int64_t, 4>& field) {
  return json::Array(field.begin(), field.end());
}

struct Preset {
  std::string_view name;
  Config config;
};

const std::vector<Preset>& presets() {
  static const std::vector<Preset> kPresets{
      {"dpt_tiny",
       {.width = 192,
        .depth = 8,
        .heads = 3,
        .mlp_width = 768,
        .taps = {1, 3, 5, 7},
        .channels = {32, 64, 128, 256},
        .features = 64}},
      {"dpt_base", {}},
      {"dpt_deit_base", {}},
      {"dpt_deit_base_distilled", {.distilled = true}},
      {"dpt_large",
       {.width = 1024,
        .depth = 24,
        .heads = 16,
        .mlp_width = 4096,
        // As released; the paper's text has 5, 12, 18, 24 counted from one.
        .taps = {5, 11, 17, 23},
        .channels = {256, 512, 1024, 1024}}},
  };
  return kPresets;
}

}  // namespace

std::string_view to_string(ReadMode mode) { return kReadModes[static_cast<size_t>(mode)]; }
std::string_view to_string(FusionNorm norm) { return kFusionNorms[static_cast<size_t>(norm)]; }

void Config::check() const {
  const auto positive = [](const char* name, int64_t value) {
    // The bound keeps products of sizes far from overflow; no network comes near it.
    TORCH_CHECK_VALUE(value > 0 && value <= 1 << 16, "DPTConfig: ", name,
                      " must be in [1, 65536], got ", value);
  };
  positive("image_size", image_size);
  positive("patch_size", patch_size);
  positive("width", width);
  positive("depth", depth);
  positive("heads", heads);
  positive("mlp_width", mlp_width);
  positive("features", features);
  positive("head_features", head_features);
  for (size_t i = 0; i < 4; ++i) {
    positive("strides", strides[i]);
    positive("channels", channels[i]);
  }
  TORCH_CHECK_VALUE(depth <= 1024, "DPTConfig: depth must be at most 1024, got ", depth);
  TORCH_CHECK_VALUE(image_size % patch_size == 0,
                    "DPTConfig: image_size must be a multiple of patch_size ", patch_size, ", got ",
                    image_size);
  TORCH_CHECK_VALUE(width % heads == 0, "DPTConfig: width must be a multiple of heads ", heads,
                    ", got ", width);
  TORCH_CHECK_VALUE(features >= 2, "DPTConfig: features must be at least 2, got ", features,
                    "; the head halves them");
  TORCH_CHECK_VALUE(std::isfinite(layer_norm_eps) && layer_norm_eps > 0,
                    "DPTConfig: layer_norm_eps must be positive and finite, got ", layer_norm_eps);
  TORCH_CHECK_VALUE(taps[0] >= 0 && taps[0] < taps[1] && taps[1] < taps[2] && taps[2] < taps[3],
                    "DPTConfig: taps must be four ascending 0-based block indices, got ",
                    at::ArrayRef<int64_t>(taps));
  TORCH_CHECK_VALUE(taps[3] == depth - 1, "DPTConfig: the last tap must be the last block, ",
                    depth - 1, ", got ", taps[3], "; set depth to ", taps[3] + 1,
                    ", since blocks after the last tap would never run");
  TORCH_CHECK_VALUE(strides[0] == 4, "DPTConfig: the finest stride must be 4, got ", strides[0],
                    "; fusion and head each upsample by two, back to the image");
  for (size_t i = 0; i < 4; ++i) {
    TORCH_CHECK_VALUE(strides[i] % patch_size == 0 || patch_size % strides[i] == 0,
                      "DPTConfig: each stride must divide or be a multiple of patch_size ",
                      patch_size, ", got ", at::ArrayRef<int64_t>(strides));
    TORCH_CHECK_VALUE(i == 0 || strides[i - 1] < strides[i],
                      "DPTConfig: strides must ascend, finest level first, got ",
                      at::ArrayRef<int64_t>(strides));
  }
}

Config Config::from_json(const json::Object& object) {
  Config config;
  size_t known = 0;
  if (const auto version = object.find("format_version"); version != object.end()) {
    ++known;
    TORCH_CHECK_VALUE(version->second.as_int() == kFormatVersion,
                      "DPTConfig: format_version must be ", kFormatVersion, ", got ",
                      json::dump(version->second),
                      "; the file was written by another release of torchdpt");
  }
  known += object.count("torchdpt_version");  // says who wrote it
  for_each_field(config, [&](const char* name, auto& field) {
    const auto found = object.find(name);
    if (found == object.end()) return;
    ++known;
    try {
      read(found->second, field);
    } catch (const json::Error& error) {
      TORCH_CHECK_VALUE(false, "DPTConfig: field '", name, "': ", error.what());
    } catch (const c10::ValueError& error) {
      TORCH_CHECK_VALUE(false, "DPTConfig: field '", name, "' must be ",
                        error.what_without_backtrace());
    }
  });
  if (known != object.size()) {
    std::vector<std::string> names{"format_version", "torchdpt_version"};
    for_each_field(config, [&](const char* name, auto&) { names.push_back(name); });
    for (const auto& [name, value] : object) {
      TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                        "DPTConfig: unknown field '", name, "'; the fields are ", names);
    }
  }
  config.check();
  return config;
}

Config Config::from_json(std::string_view text) {
  try {
    return from_json(json::parse(text).as_object());
  } catch (const json::Error& error) {
    TORCH_CHECK_VALUE(false, "DPTConfig: not a JSON object: ", error.what());
  }
}

std::string Config::to_json(int indent) const {
  json::Object object{{"format_version", kFormatVersion}, {"torchdpt_version", DPT_VERSION}};
  for_each_field(*this,
                 [&](const char* name, const auto& field) { object[name] = written(field); });
  return json::dump(object, indent);
}

Config Config::preset(std::string_view name) {
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset.config;
  }
  TORCH_CHECK_VALUE(false, "DPTConfig: unknown preset '", name, "'; the presets are ",
                    preset_names());
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.emplace_back(preset.name);
  return names;
}

ViTOptions Config::vit() const {
  return {.image_size = image_size,
          .patch_size = patch_size,
          .width = width,
          .depth = depth,
          .heads = heads,
          .mlp_width = mlp_width,
          .qkv_bias = qkv_bias,
          .distilled = distilled,
          .layer_norm_eps = layer_norm_eps,
          .taps = taps};
}

ReassembleOptions Config::reassemble() const {
  return {.readout = readout,
          .width = width,
          .num_prefix_tokens = distilled ? 2 : 1,
          .patch_size = patch_size,
          .strides = strides,
          .channels = channels};
}

FusionOptions Config::fusion() const {
  return {.in_channels = channels, .channels = features, .norm = fusion_norm};
}

}  // namespace dpt
