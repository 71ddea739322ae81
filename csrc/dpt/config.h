// csrc/dpt/config.h -- the description of a network. Every variant is a field; presets are sets of
// values.
#pragma once

#include <string_view>

#include "dpt/decoder/fusion.h"
#include "dpt/decoder/reassemble.h"
#include "dpt/encoder/vit.h"
#include "dpt/io/json.h"

namespace dpt {

// Defaults are those of DPT-Base as published. `levels` are listed finest first.
struct DPT_API Config {
  // encoder
  int64_t image_size = 384;  // native side in pixels; other sizes resize the position embedding
  int64_t patch_size = 16;
  int64_t width = 768;  // D
  int64_t depth = 12;   // blocks
  int64_t heads = 12;
  int64_t mlp_width = 3072;
  bool qkv_bias = true;
  bool distilled = false;                    // DeiT: a distillation token beside the readout token
  double layer_norm_eps = 1e-6;              // timm, which the published weights were trained with
  std::array<int64_t, 4> taps{2, 5, 8, 11};  // 0-based block indices
  // reassemble
  ReadMode readout = ReadMode::kProject;
  std::array<int64_t, 4> strides{4, 8, 16, 32};
  std::array<int64_t, 4> channels{96, 192, 384, 768};
  // fusion
  int64_t features = 256;  // C
  FusionNorm fusion_norm = FusionNorm::kNone;
  // head
  int64_t head_features = 32;

  // Throws (ValueError in Python) if a field is out of range or two do not fit each other.
  void check() const;

  // Missing fields take their defaults; unknown ones are an error.
  static Config from_json(std::string_view text);
  static Config from_json(const json::Object& object);
  // Canonical: sorted keys, every field, "format_version". Equal configs give equal text.
  std::string to_json(int indent = 0) const;

  static Config preset(std::string_view name);

  ViTOptions vit() const;
  ReassembleOptions reassemble() const;
  FusionOptions fusion() const;

  bool operator==(const Config&) const = default;
};

// The names that Config::preset knows, smallest network first.
DPT_API std::vector<std::string> preset_names();

DPT_API std::string_view to_string(ReadMode mode);
DPT_API std::string_view to_string(FusionNorm norm);

}  // namespace dpt
