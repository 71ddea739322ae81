// csrc/dpt/operators.cpp -- the network as operators: torch.ops.dpt.{encode, reassemble, fuse,
// head, forward, attention}.
//
// Each is the C++ function of its stage. CompositeImplicitAutograd: autograd, autocast,
// torch.compile and torch.export see the ATen calls inside. `tensors` and `buffers` are those of
// the stage (of the model: of all stages) in the order of the config's spec, `config` is its JSON.
// Buffers are marked as written, since batch normalisation updates them in training. `head` and
// `forward` return what the config has heads for, of depth, logits and (in training) aux_logits.
#include <torch/library.h>

#include "dpt/model.h"

namespace dpt {

namespace {

std::vector<Tensor> encode(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                           c10::string_view config, bool training, bool checkpoint) {
  Encoder encoder(Config::from_json(config).encoder_options());
  bind(encoder, tensors, buffers, "encode");
  return encoder(image, training, checkpoint);
}

std::vector<Tensor> reassemble(at::TensorList taps, c10::SymIntArrayRef size,
                               at::TensorList tensors, at::TensorList buffers,
                               c10::string_view config, bool training) {
  TORCH_CHECK_VALUE(size.size() == 2, "reassemble: size must be the image's (height, width), got ",
                    size.size(), " numbers");
  Reassemble reassemble(Config::from_json(config).reassemble_options());
  bind(reassemble, tensors, buffers, "reassemble");
  std::vector<Tensor> maps = reassemble(taps, size[0], size[1]);
  // An operator does not return its arguments.
  for (size_t i = 0; i < maps.size(); ++i) {
    if (maps[i].is_same(taps[i])) maps[i] = maps[i].clone();
  }
  return maps;
}

std::vector<Tensor> fuse(at::TensorList maps, at::TensorList tensors, at::TensorList buffers,
                         c10::string_view config, bool training) {
  Fusion fusion(Config::from_json(config).fusion_options());
  bind(fusion, tensors, buffers, "fuse");
  return fusion(maps, training);
}

std::vector<Tensor> as_list(const Output& output) {
  std::vector<Tensor> list;
  for (const Tensor& tensor : {output.depth, output.logits, output.aux_logits}) {
    if (tensor.defined()) list.push_back(tensor);
  }
  return list;
}

std::vector<Tensor> head(at::TensorList maps, at::TensorList tensors, at::TensorList buffers,
                         c10::string_view config, bool training) {
  Head head(Config::from_json(config).head_options());
  bind(head, tensors, buffers, "head");
  return as_list(head(maps, training));
}

std::vector<Tensor> forward(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                            c10::string_view config, bool training, bool checkpoint) {
  Model model(Config::from_json(config));
  bind(model, tensors, buffers, "forward");
  return as_list(model(image, training, checkpoint));
}

Tensor attention(const Tensor& image, at::TensorList tensors, at::TensorList buffers,
                 c10::string_view config, int64_t block) {
  Encoder encoder(Config::from_json(config).encoder_options());
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
      "training=False) -> Tensor[]",
      fuse);
  m.def(
      "head(Tensor[] maps, Tensor[] tensors, Tensor(a!)[] buffers, str config, bool "
      "training=False) "
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
