// tests/cpp/runtime_networks.h -- small networks of every kind, for the tests of models and the
// runtime.
#pragma once

#include <torch/torch.h>

#include "dpt/model.h"

namespace runtime_test {

inline dpt::Config small() {
  return {.taps = {0, 1, 2, 3},
          .image_size = 64,
          .width = 32,
          .depth = 4,
          .heads = 2,
          .mlp_width = 64,
          .channels = {8, 8, 48, 16},
          .features = 16,
          .head_features = 8};
}

// Every way of reading, norm and head at least once.
inline std::vector<dpt::Config> transformers() {
  dpt::Config plain = small();
  dpt::Config add = small();
  add.readout = dpt::ReadMode::kAdd;
  add.distilled = true;
  add.qkv_bias = false;
  add.metric = true;
  add.depth_scale = 0.1;
  add.depth_shift = 0.2;
  add.head_align_corners = false;
  dpt::Config classes = small();
  classes.readout = dpt::ReadMode::kIgnore;
  classes.num_classes = 5;
  classes.fusion_norm = dpt::FusionNorm::kBatch;
  classes.auxiliary_head = dpt::AuxiliaryHead::kPenultimate;
  return {plain, add, classes};
}

// And every encoder.
inline std::vector<dpt::Config> family() {
  dpt::Config hybrid = small();
  hybrid.encoder = dpt::EncoderKind::kHybrid;
  hybrid.conv_levels = 2;
  hybrid.stage_depths = {1, 2, 1, 0};
  hybrid.channels = {256, 512, 16, 16};
  dpt::Config resnet = small();
  resnet.encoder = dpt::EncoderKind::kResNet;
  resnet.conv_levels = 4;
  resnet.stage_depths = {1, 1, 1, 1};
  resnet.groups = 4;
  resnet.group_width = 4;
  resnet.channels = {256, 512, 1024, 2048};
  resnet.fusion_project = false;
  resnet.unit_skip = dpt::UnitSkip::kRelu;
  resnet.depth_head = false;
  resnet.num_classes = 3;
  std::vector<dpt::Config> all = transformers();
  all.push_back(hybrid);
  all.push_back(resnet);
  return all;
}

// Random values everywhere, those of normalisations too, which otherwise start as one and zero.
inline dpt::Model random_model(const dpt::Config& config, at::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  dpt::Model model(config);
  dpt::for_each_tensor(
      model, [&](const std::string& name, dpt::Tensor& tensor, const dpt::TensorInfo& info) {
        tensor = dpt::make_initial(info);
        if (info.dtype != at::kFloat) return;
        tensor = tensor.to(dtype);
        if (name.ends_with("running_var")) {
          tensor.uniform_(0.5, 2);
        } else if (info.init.kind == dpt::Init::Kind::kConstant) {
          tensor += 0.3 * torch::randn_like(tensor);
        } else {
          tensor *= 2;  // so that what is wrong shows
        }
      });
  return model;
}

// Heights and widths of images: native, and of an odd number of patches where the encoder has them.
inline std::vector<std::pair<int64_t, int64_t>> sizes(const dpt::Config& config) {
  if (config.encoder == dpt::EncoderKind::kResNet) return {{32, 64}};
  if (config.encoder == dpt::EncoderKind::kHybrid) return {{48, 80}};
  return {{64, 64}, {48, 80}, {16, 112}};
}

}  // namespace runtime_test
