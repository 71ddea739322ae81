// csrc/dpt/io/encoder_weights.h -- the encoder of another file, to start a network from.
#pragma once

#include "dpt/io/names.h"
#include "dpt/model.h"

namespace dpt {

struct EncoderReport {
  std::vector<std::string> unused;  // names of tensors that are not of the encoder
  // The side of the file's position embedding, in patches, if it was another than the model's (it
  // then was resized bilinearly, as the network itself does for images of another size); or 0.
  int64_t resized_from = 0;
};

// The encoder's tensors alone, into `model`, whose other tensors stay; its encoder must be the same
// network. The file may be any that load_checkpoint reads, or one of an encoder alone: timm's ViT,
// DeiT or ViT-Hybrid, torchvision's ResNet or ResNeXt. What shapes do not tell (layer_norm_eps,
// weight_standardization) is the model's; heads must be of 64 channels, as in ViT and DeiT from
// tiny to large.
DPT_API EncoderReport load_encoder(Model& model, const std::string& path);
// The same of tensors that something else read; `origin`, the name of the file, stands in errors.
DPT_API EncoderReport load_encoder(Model& model, const std::map<std::string, Tensor>& tensors,
                                   const std::string& origin);

}  // namespace dpt
