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
  return std::visit(
      [&](const auto& encoder) -> Tensor {
        if constexpr (requires { encoder.attention(image, block); }) {
          return encoder.attention(image, block);
        } else {
          TORCH_CHECK_VALUE(false,
                            "attention: this encoder has no attention; use one with transformer "
                            "blocks");
        }
      },
      network);
}

}  // namespace dpt
