// csrc/dpt/config.h -- the description of a network. Every variant is a field; presets are sets of
// values.
#pragma once

#include <string>
#include <string_view>

#include "dpt/decoder/fusion.h"
#include "dpt/decoder/head.h"
#include "dpt/decoder/reassemble.h"
#include "dpt/encoder/encoder.h"
#include "dpt/io/json.h"

namespace dpt {

enum class EncoderKind { kViT, kHybrid, kResNet };

using Levels = std::array<int64_t, 4>;                  // one value for each level, finest first
constexpr Levels kStageChannels{256, 512, 1024, 2048};  // of the maps of convolutional stages

// Defaults are those of DPT-Base as published.
struct DPT_API Config {
  // encoder
  EncoderKind encoder = EncoderKind::kViT;
  int64_t conv_levels = 0;   // levels, finest first, that are maps of convolutional stages
  Levels taps{2, 5, 8, 11};  // 0-based block indices; of a convolutional level, its stage
  // of a transformer
  int64_t image_size = 384;  // native side in pixels; other sizes resize the position embedding
  int64_t patch_size = 16;
  int64_t width = 768;  // D
  int64_t depth = 12;   // blocks
  int64_t heads = 12;
  int64_t mlp_width = 3072;
  bool qkv_bias = true;
  bool distilled = false;        // DeiT: a distillation token beside the readout token
  double layer_norm_eps = 1e-6;  // timm, which the published weights were trained with
  // of convolutional stages
  Levels stage_depths{3, 4, 9, 0};  // bottlenecks; ViT-Hybrid has three stages
  int64_t groups = 1;
  int64_t group_width = 64;
  WeightStandardization weight_standardization = WeightStandardization::kStd;
  // reassemble
  ReadMode readout = ReadMode::kProject;
  Levels strides{4, 8, 16, 32};
  Levels channels{96, 192, 384, 768};
  // fusion
  int64_t features = 256;  // C
  FusionNorm fusion_norm = FusionNorm::kNone;
  UnitSkip unit_skip = UnitSkip::kInput;
  bool fusion_project = true;
  // heads
  bool depth_head = true;
  int64_t head_features = 32;
  bool head_align_corners = true;
  bool metric = false;  // depth in metres, by depth_scale and depth_shift
  double depth_scale = 1;
  double depth_shift = 0;
  int64_t num_classes = 0;  // K; 0: no segmentation
  AuxiliaryHead auxiliary_head = AuxiliaryHead::kNone;
  double dropout = 0.1;  // in the segmentation heads
  // training in several processes
  std::string batch_norm_group{};  // that share the statistics of batch normalisation

  // Throws (ValueError in Python) if a field is out of range or two do not fit each other.
  void check() const;

  // Missing fields take their defaults; unknown ones are an error.
  static Config from_json(std::string_view text);
  static Config from_json(const json::Object& object);
  // Canonical: sorted keys, every field, "format_version". Equal configs give equal text.
  std::string to_json(int indent = 0) const;

  static Config preset(std::string_view name);

  EncoderOptions encoder_options() const;
  ReassembleOptions reassemble_options() const;
  FusionOptions fusion_options() const;
  HeadOptions head_options() const;

  bool operator==(const Config&) const = default;

 private:
  void check_encoder() const;
};

// The names that Config::preset knows, smallest network first.
DPT_API std::vector<std::string> preset_names();

DPT_API std::string_view to_string(EncoderKind kind);
DPT_API std::string_view to_string(WeightStandardization standardization);
DPT_API std::string_view to_string(ReadMode mode);
DPT_API std::string_view to_string(FusionNorm norm);
DPT_API std::string_view to_string(UnitSkip skip);
DPT_API std::string_view to_string(AuxiliaryHead head);

}  // namespace dpt
