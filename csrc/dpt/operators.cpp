// csrc/dpt/operators.cpp -- the network as operators: torch.ops.dpt.{encode, reassemble, fuse,
// head, forward, attention}.
//
// Each is the C++ function of its stage. CompositeImplicitAutograd: autograd, autocast,
// torch.compile and torch.export see the ATen calls inside. `tensors` and `buffers` are those of
// the stage (of the model: of all stages) in the order of the config's spec, `config` is its JSON.
// Buffers are marked as written, since batch normalisation updates them in training.
#include <torch/library.h>

#include "dpt/model.h"

namespace dpt {

namespace {

std::vector<Tensor> encode(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                           c10::string_view config, bool training, bool checkpoint) {
  ViT encoder(Config::from_json(config).vit());
  bind(encoder, tensors, buffers, "encode");
  return encoder(image, checkpoint);
}

std::vector<Tensor> reassemble(at::TensorList taps, c10::SymIntArrayRef size,
                               at::TensorList tensors, at::TensorList buffers,
                               c10::string_view config, bool training) {
  TORCH_CHECK_VALUE(size.size() == 2, "reassemble: size must be the image's (height, width), got ",
                    size.size(), " numbers");
  Reassemble reassemble(Config::from_json(config).reassemble());
  bind(reassemble, tensors, buffers, "reassemble");
  return reassemble(taps, size[0], size[1]);
}

Tensor fuse(at::TensorList maps, at::TensorList tensors, at::TensorList buffers,
            c10::string_view config, bool training) {
  Fusion fusion(Config::from_json(config).fusion());
  bind(fusion, tensors, buffers, "fuse");
  return fusion(maps, training);
}

std::vector<Tensor> head(const Tensor& map, at::TensorList tensors, at::TensorList buffers,
                         c10::string_view config, bool training) {
  const Config parsed = Config::from_json(config);
  DepthHead head(parsed.features, parsed.head_features);
  bind(head, tensors, buffers, "head");
  return {head(map)};
}

std::vector<Tensor> forward(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                            c10::string_view config, bool training, bool checkpoint) {
  Model model(Config::from_json(config));
  bind(model, tensors, buffers, "forward");
  return {model(image, training, checkpoint).depth};
}

Tensor attention(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                 c10::string_view config, int64_t block) {
  ViT encoder(Config::from_json(config).vit());
  bind(encoder, tensors, buffers, "attention");
  return encoder.attention(image, block);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "encode(Tensor image, Tensor[] tensors, Tensor(a!)[] buffers, str config, bool "
      "training=False, "
      "bool checkpoint=False) -> Tensor[]",
      encode);
  m.def(
      "reassemble(Tensor[] taps, SymInt[] size, Tensor[] tensors, Tensor(a!)[] buffers, str "
      "config, "
      "bool training=False) -> Tensor[]",
      reassemble);
  m.def(
      "fuse(Tensor[] maps, Tensor[] tensors, Tensor(a!)[] buffers, str config, bool "
      "training=False) -> Tensor",
      fuse);
  m.def(
      "head(Tensor map, Tensor[] tensors, Tensor(a!)[] buffers, str config, bool training=False) "
      "-> Tensor[]",
      head);
  m.def(
      "forward(Tensor image, Tensor[] tensors, Tensor(a!)[] buffers, str config, bool "
      "training=False, "
      "bool checkpoint=False) -> Tensor[]",
      forward);
  m.def(
      "attention(Tensor image, Tensor[] tensors, Tensor(a!)[] buffers, str config, int block) -> "
      "Tensor",
      attention);
}

}  // namespace dpt
