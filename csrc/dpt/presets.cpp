// csrc/dpt/presets.cpp -- Config's presets: data, no code.
#include "dpt/config.h"

namespace dpt {

namespace {

struct Preset {
  std::string_view name;
  Config config;
};

constexpr int64_t kAde20k = 150, kPascalContext = 59;

// The paper's segmentation: batch normalisation in fusion, an auxiliary head in training.
Config segmentation(Config config, int64_t num_classes) {
  config.depth_head = false;
  config.num_classes = num_classes;
  config.fusion_norm = FusionNorm::kBatch;
  config.auxiliary_head = AuxiliaryHead::kPenultimate;
  return config;
}

// Depth and segmentation from one encoder, in one pass.
Config joint(const Config& config) {
  Config both = segmentation(config, kAde20k);
  both.depth_head = true;
  return both;
}

Config metric(Config config, double scale, double shift) {
  config.metric = true;
  config.depth_scale = scale;
  config.depth_shift = shift;
  return config;
}

std::vector<Preset> make_presets() {
  const Config tiny{.taps = {1, 3, 5, 7},
                    .width = 192,
                    .depth = 8,
                    .heads = 3,
                    .mlp_width = 768,
                    .channels = {32, 64, 128, 256},
                    .features = 64};
  const Config base{};
  const Config distilled{.distilled = true};
  const Config hybrid{.encoder = EncoderKind::kHybrid,
                      .conv_levels = 2,
                      .taps = {0, 1, 8, 11},
                      .channels = {256, 512, 768, 768}};
  // As released; the paper's text has 5, 12, 18, 24 counted from one.
  const Config large{.taps = {5, 11, 17, 23},
                     .width = 1024,
                     .depth = 24,
                     .heads = 16,
                     .mlp_width = 4096,
                     .channels = {256, 512, 1024, 1024}};
  // MiDaS v2.1, the baselines of Table 8.
  const Config resnet50{.encoder = EncoderKind::kResNet,
                        .conv_levels = 4,
                        .taps = {0, 1, 2, 3},
                        .stage_depths = {3, 4, 6, 3},
                        .channels = {256, 512, 1024, 2048},
                        .unit_skip = UnitSkip::kRelu,
                        .fusion_project = false,
                        .head_align_corners = false};
  Config resnext101 = resnet50;
  resnext101.stage_depths = {3, 4, 23, 3};
  resnext101.groups = 32;
  resnext101.group_width = 8;
  // Scale and shift: isl-org/DPT run_monodepth.py.
  return {
      {"dpt_tiny", tiny},
      {"dpt_tiny_joint", joint(tiny)},
      {"midas_resnet50", resnet50},
      {"midas_resnet50_joint", joint(resnet50)},
      {"midas_resnext101_wsl", resnext101},
      {"midas_resnext101_wsl_joint", joint(resnext101)},
      {"dpt_base", base},
      {"dpt_deit_base", base},
      {"dpt_deit_base_distilled", distilled},
      {"dpt_base_joint", joint(base)},
      {"dpt_hybrid", hybrid},
      {"dpt_hybrid_nyu", metric(hybrid, 0.000305, 0.1378)},
      {"dpt_hybrid_kitti", metric(hybrid, 0.00006016, 0.00579)},
      {"dpt_hybrid_pascal", segmentation(hybrid, kPascalContext)},
      {"dpt_hybrid_ade", segmentation(hybrid, kAde20k)},
      {"dpt_hybrid_joint", joint(hybrid)},
      {"dpt_large", large},
      {"dpt_large_ade", segmentation(large, kAde20k)},
      {"dpt_large_joint", joint(large)},
  };
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> kPresets = make_presets();
  return kPresets;
}

}  // namespace

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

}  // namespace dpt
