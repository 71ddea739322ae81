// A second pybind extension on libdpt: our Reassemble and Fusion behind an encoder of its own.
#include <torch/extension.h>

#include "dpt/model.h"

namespace {

struct Decoder {
  dpt::Reassemble reassemble;
  dpt::Fusion fusion;

  template <class Visitor>
  void visit(Visitor&& v) {
    v("reassemble", reassemble);
    v("fusion", fusion);
  }
};

// Tokens from anywhere, [B, 1+N, D] each, through the decoder of a config; gradients flow to `taps`
// and `tensors`.
torch::Tensor decode(const std::vector<torch::Tensor>& taps, int64_t height, int64_t width,
                     const std::vector<torch::Tensor>& tensors, const std::string& config) {
  const dpt::Config parsed = dpt::Config::from_json(config);
  Decoder decoder{dpt::Reassemble(parsed.reassemble_options()),
                  dpt::Fusion(parsed.fusion_options())};
  dpt::bind(decoder, tensors, {}, "decode");
  return decoder.fusion(decoder.reassemble(taps, height, width), /*training=*/true)[0];
}

}  // namespace

PYBIND11_MODULE(second, m) { m.def("decode", &decode); }
