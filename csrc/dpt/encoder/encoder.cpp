#include "dpt/encoder/encoder.h"

namespace dpt {

namespace {

using Network = decltype(Encoder::network);

Network made(const ViTOptions& options) { return ViT(options); }
Network made(const HybridOptions& options) { return Hybrid(options); }
Network made(const ResNetOptions& options) { return ResNet(options); }

}  // namespace

Encoder::Encoder(const EncoderOptions& options)
    : network(std::visit([](const auto& chosen) { return made(chosen); }, options)) {}

std::vector<Tensor> Encoder::operator()(const Tensor& image, bool training, bool checkpoint) const {
  return std::visit([&](const auto& encoder) { return encoder(image, training, checkpoint); },
                    network);
}

Tensor Encoder::attention(const Tensor& image, int64_t block) const {
  TORCH_CHECK_VALUE(!std::holds_alternative<ResNet>(network),
                    "attention: a ResNet has no attention; use an encoder with transformer blocks");
  if (const auto* hybrid = std::get_if<Hybrid>(&network)) return hybrid->attention(image, block);
  return std::get<ViT>(network).attention(image, block);
}

}  // namespace dpt
