#include "dpt/encoder/hybrid.h"

#include "dpt/encoder/image.h"

namespace dpt {

Hybrid::Hybrid(const HybridOptions& options)
    : stages({.standardization = options.standardization}, options.depths),
      vit(options.vit),
      conv_levels(options.conv_levels) {}

std::vector<Tensor> Hybrid::operator()(const Tensor& image, bool training, bool checkpoint) const {
  check_image(image, 16, stages.stem.conv.weight.scalar_type());
  std::vector<Tensor> taps = stages(image, training);
  const Tensor tokens = vit.embed(taps.back());  // [B, 1+N, D]
  taps.resize(conv_levels);
  for (Tensor& tap : vit.transform(tokens, checkpoint)) taps.push_back(std::move(tap));
  return taps;
}

Tensor Hybrid::attention(const Tensor& image, int64_t block) const {
  check_image(image, 16, stages.stem.conv.weight.scalar_type());
  return vit.attention_of(vit.embed(stages(image, /*training=*/false).back()), block);
}

}  // namespace dpt
