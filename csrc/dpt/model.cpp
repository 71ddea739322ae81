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
      encoder(config.encoder_options()),
      reassemble(config.reassemble_options()),
      fusion(config.fusion_options()),
      head(config.head_options()) {}

Output Model::operator()(const Tensor& image, bool training, bool checkpoint) const {
  const std::vector<Tensor> taps = encoder(image, training, checkpoint);
  const std::vector<Tensor> maps = reassemble(taps, image.sym_size(2), image.sym_size(3));
  return head(fusion(maps, training), training);
}

}  // namespace dpt
