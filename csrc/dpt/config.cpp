#include "dpt/config.h"

#include <algorithm>
#include <cmath>

namespace dpt {

namespace {

constexpr int64_t kFormatVersion = 1;

// Names of an enum's values, in order.
template <class Enum>
constexpr int kNames = 0;
template <>
constexpr std::array<std::string_view, 3> kNames<EncoderKind>{"vit", "hybrid", "resnet"};
template <>
constexpr std::array<std::string_view, 2> kNames<WeightStandardization>{"std", "variance"};
template <>
constexpr std::array<std::string_view, 3> kNames<ReadMode>{"ignore", "add", "project"};
template <>
constexpr std::array<std::string_view, 2> kNames<FusionNorm>{"none", "batch"};
template <>
constexpr std::array<std::string_view, 2> kNames<UnitSkip>{"input", "relu"};
template <>
constexpr std::array<std::string_view, 3> kNames<AuxiliaryHead>{"none", "penultimate", "last"};

template <class Enum>
std::string_view name_of(Enum value) {
  return kNames<Enum>[static_cast<size_t>(value)];
}

// The one list of fields: f(name, field).
template <class Self, class F>
void for_each_field(Self& config, F&& f) {
  f("encoder", config.encoder);
  f("conv_levels", config.conv_levels);
  f("taps", config.taps);
  f("image_size", config.image_size);
  f("patch_size", config.patch_size);
  f("width", config.width);
  f("depth", config.depth);
  f("heads", config.heads);
  f("mlp_width", config.mlp_width);
  f("qkv_bias", config.qkv_bias);
  f("distilled", config.distilled);
  f("layer_norm_eps", config.layer_norm_eps);
  f("stage_depths", config.stage_depths);
  f("groups", config.groups);
  f("group_width", config.group_width);
  f("weight_standardization", config.weight_standardization);
  f("readout", config.readout);
  f("strides", config.strides);
  f("channels", config.channels);
  f("features", config.features);
  f("fusion_norm", config.fusion_norm);
  f("unit_skip", config.unit_skip);
  f("fusion_project", config.fusion_project);
  f("depth_head", config.depth_head);
  f("head_features", config.head_features);
  f("head_align_corners", config.head_align_corners);
  f("metric", config.metric);
  f("depth_scale", config.depth_scale);
  f("depth_shift", config.depth_shift);
  f("num_classes", config.num_classes);
  f("auxiliary_head", config.auxiliary_head);
  f("dropout", config.dropout);
  f("batch_norm_group", config.batch_norm_group);
}

void read(const json::Value& value, int64_t& field) { field = value.as_int(); }
void read(const json::Value& value, double& field) { field = value.as_double(); }
void read(const json::Value& value, bool& field) { field = value.as_bool(); }
void read(const json::Value& value, std::string& field) { field = value.as_string(); }
void read(const json::Value& value, Levels& field) {
  const json::Array& list = value.as_array();
  TORCH_CHECK_VALUE(list.size() == 4, "four values, finest level first, got ", list.size());
  for (size_t i = 0; i < 4; ++i) field[i] = list[i].as_int();
}
template <class Enum>
  requires std::is_enum_v<Enum>
void read(const json::Value& value, Enum& field) {
  const std::string& name = value.as_string();
  const auto found = std::find(kNames<Enum>.begin(), kNames<Enum>.end(), name);
  TORCH_CHECK_VALUE(found != kNames<Enum>.end(), "one of ",
                    at::ArrayRef<std::string_view>(kNames<Enum>), ", got '", name, "'");
  field = static_cast<Enum>(found - kNames<Enum>.begin());
}

json::Value written(int64_t field) { return field; }
json::Value written(double field) { return field; }
json::Value written(bool field) { return field; }
json::Value written(const std::string& field) { return field; }
json::Value written(const Levels& field) { return json::Array(field.begin(), field.end()); }
template <class Enum>
  requires std::is_enum_v<Enum>
json::Value written(Enum field) {
  return std::string(name_of(field));
}

}  // namespace

std::string_view to_string(EncoderKind kind) { return name_of(kind); }
std::string_view to_string(WeightStandardization standardization) {
  return name_of(standardization);
}
std::string_view to_string(ReadMode mode) { return name_of(mode); }
std::string_view to_string(FusionNorm norm) { return name_of(norm); }
std::string_view to_string(UnitSkip skip) { return name_of(skip); }
std::string_view to_string(AuxiliaryHead head) { return name_of(head); }

void Config::check_encoder() const {
  const bool hybrid = encoder == EncoderKind::kHybrid, resnet = encoder == EncoderKind::kResNet;
  TORCH_CHECK_VALUE(
      conv_levels == (resnet ? 4 : 0) || (hybrid && conv_levels == 2),
      "DPTConfig: conv_levels must be 0 of a vit, 2 or 0 of a hybrid, 4 of a resnet; got ",
      conv_levels, " of a ", name_of(encoder));
  if (!resnet) {
    const auto blocks = at::ArrayRef<int64_t>(taps).slice(conv_levels);
    TORCH_CHECK_VALUE(blocks.front() >= 0 && std::is_sorted(blocks.begin(), blocks.end()) &&
                          std::adjacent_find(blocks.begin(), blocks.end()) == blocks.end(),
                      "DPTConfig: taps must be ascending 0-based block indices, got ", blocks);
    TORCH_CHECK_VALUE(blocks.back() == depth - 1,
                      "DPTConfig: the last tap must be the last block, ", depth - 1, ", got ",
                      blocks.back(), "; set depth to ", blocks.back() + 1,
                      ", since blocks after the last tap would never run");
  }
  for (int64_t i = 0; i < conv_levels; ++i) {
    TORCH_CHECK_VALUE(taps[i] == i && strides[i] == 4 << i && channels[i] == kStageChannels[i],
                      "DPTConfig: level ", i, " is a convolutional one (conv_levels is ",
                      conv_levels, "), so its tap must be ", i, ", its stride ", 4 << i,
                      " and its channels ", kStageChannels[i], ", got ", taps[i], ", ", strides[i],
                      " and ", channels[i]);
  }
  if (!hybrid && !resnet) return;
  for (size_t i = 0; i < (hybrid ? 3 : 4); ++i) {
    TORCH_CHECK_VALUE(stage_depths[i] > 0 && stage_depths[i] <= 1024,
                      "DPTConfig: stage_depths must be in [1, 1024], got ",
                      at::ArrayRef<int64_t>(stage_depths));
  }
  TORCH_CHECK_VALUE(!hybrid || patch_size == 16,
                    "DPTConfig: patch_size of a hybrid must be 16, the stride of its convolutional "
                    "stages, got ",
                    patch_size);
  TORCH_CHECK_VALUE(!hybrid || !distilled, "DPTConfig: a hybrid has no distillation token");
  TORCH_CHECK_VALUE(groups > 0 && group_width > 0 && groups * group_width <= 1 << 16,
                    "DPTConfig: groups and group_width must be positive, got ", groups, " and ",
                    group_width);
}

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
  check_encoder();
  TORCH_CHECK_VALUE(depth_head || num_classes > 0,
                    "DPTConfig: there must be a depth_head, or num_classes for segmentation");
  TORCH_CHECK_VALUE(num_classes >= 0 && num_classes <= 1 << 16,
                    "DPTConfig: num_classes must be in [0, 65536], got ", num_classes);
  TORCH_CHECK_VALUE(auxiliary_head == AuxiliaryHead::kNone || num_classes > 0,
                    "DPTConfig: an auxiliary_head is for segmentation; set num_classes");
  TORCH_CHECK_VALUE(dropout >= 0 && dropout < 1, "DPTConfig: dropout must be in [0, 1), got ",
                    dropout);
  TORCH_CHECK_VALUE(!metric || depth_head, "DPTConfig: metric is for the depth_head, got none");
  TORCH_CHECK_VALUE(std::isfinite(depth_scale) && std::isfinite(depth_shift) && depth_scale > 0,
                    "DPTConfig: depth_scale must be positive, depth_scale and depth_shift finite, "
                    "got ",
                    depth_scale, " and ", depth_shift);
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

EncoderOptions Config::encoder_options() const {
  const ViTOptions vit{.in_channels = 3,
                       .patch_size = patch_size,
                       .grid = image_size / patch_size,
                       .width = width,
                       .depth = depth,
                       .heads = heads,
                       .mlp_width = mlp_width,
                       .qkv_bias = qkv_bias,
                       .distilled = distilled,
                       .layer_norm_eps = layer_norm_eps,
                       .taps = {taps.begin() + conv_levels, taps.end()}};
  switch (encoder) {
    case EncoderKind::kViT:
      return vit;
    case EncoderKind::kHybrid: {
      HybridOptions options{.vit = vit,
                            .depths = {stage_depths[0], stage_depths[1], stage_depths[2]},
                            .standardization = weight_standardization,
                            .conv_levels = conv_levels};
      options.vit.in_channels = kStageChannels[2];
      options.vit.patch_size = 1;
      return options;
    }
    case EncoderKind::kResNet:
      return ResNetOptions{.depths = stage_depths,
                           .groups = groups,
                           .group_width = group_width,
                           .process_group = batch_norm_group};
  }
  TORCH_INTERNAL_ASSERT(false);
}

ReassembleOptions Config::reassemble_options() const {
  return {.readout = readout,
          .width = width,
          .num_prefix_tokens = distilled ? 2 : 1,
          .patch_size = patch_size,
          .conv_levels = conv_levels,
          .strides = strides,
          .channels = channels};
}

FusionOptions Config::fusion_options() const {
  return {.in_channels = channels,
          .unit = {.channels = features,
                   .norm = fusion_norm,
                   .skip = unit_skip,
                   .process_group = batch_norm_group},
          .has_project = fusion_project,
          .auxiliary = auxiliary_head};
}

HeadOptions Config::head_options() const {
  HeadOptions options{.depth = {}, .segmentation = {}, .auxiliary = auxiliary_head};
  if (depth_head) {
    options.depth = {.channels = features,
                     .hidden = head_features,
                     .align_corners = head_align_corners,
                     .inversion = {}};
    if (metric) options.depth->inversion = Inversion{depth_scale, depth_shift};
  }
  if (num_classes > 0) {
    options.segmentation = {.channels = features,
                            .num_classes = num_classes,
                            .dropout = dropout,
                            .process_group = batch_norm_group};
  }
  return options;
}

}  // namespace dpt
