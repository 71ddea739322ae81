// Predicts with a frozen model, which it makes of a checkpoint and keeps: freeze FOLDER FILE [cuda]
#include <dpt/io/checkpoint.h>
#include <dpt/runtime/frozen_model.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: freeze FOLDER FILE [cuda]\n";
    return 2;
  }
  const std::string folder = argv[1], file = argv[2];
  const at::Tensor images = at::ones({2, 3, 64, 96});

  const dpt::FrozenModel frozen = dpt::freeze(dpt::load_checkpoint(folder).model, {.threads = 2});
  const at::Tensor depth = frozen(images).depth;  // float32 [B, 3, H, W] -> [B, H, W]
  frozen.save(file, {{"made by", "me"}});

  const dpt::FrozenModel loaded = dpt::FrozenModel::load(file, /*threads=*/2);
  const bool same = loaded(images).depth.equal(depth);  // to the bit
  if (argc == 4) {
    const dpt::FrozenModel fast = dpt::freeze(
        dpt::load_checkpoint(folder).model, {.dtype = at::kBFloat16, .device = at::Device("cuda")});
    const at::Tensor map = fast(images.cuda()).depth;  // on the GPU, in the current stream
    fast.save(file);
    const dpt::FrozenModel again = dpt::FrozenModel::load(file, /*threads=*/0, at::Device("cuda"));
    if (again(images.cuda()).depth.sizes() != map.sizes()) return 1;
  }
  std::cout << "depth " << depth.sizes() << ", " << loaded.metadata().at("made by") << "\n";
  return same ? 0 : 1;
}
