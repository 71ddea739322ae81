#include "dpt/model.h"

namespace dpt {

namespace {

const Config& checked(const Config& config) {
  config.check();
  return config;
}

}  // namespace

Model::Model(const Config& config)
    : config(checked(config)),
      encoder(config.vit()),
      reassemble(config.reassemble()),
      fusion(config.fusion()),
      head(config.features, config.head_features) {}

Output Model::operator()(const Tensor& image, bool training, bool checkpoint) const {
  const std::vector<Tensor> taps = encoder(image, checkpoint);  // [B, 1+N, D]
  const std::vector<Tensor> maps = reassemble(taps, image.sym_size(2), image.sym_size(3));
  return {.depth = head(fusion(maps, training))};  // [B, H, W]
}

}  // namespace dpt
