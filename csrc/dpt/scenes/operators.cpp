// csrc/dpt/scenes/operators.cpp -- dpt::render_scene.
#include <torch/library.h>

#include "dpt/common.h"
#include "dpt/scenes/scene.h"

namespace dpt::scenes {
namespace {

// image [H, W, 3] uint8, depth [H, W], normals [H, W, 3] float32, labels [H, W] uint8, and the
// focal length in pixels.
std::tuple<Tensor, Tensor, Tensor, Tensor, double> render_scene(int64_t seed, int64_t height,
                                                                int64_t width) {
  TORCH_CHECK_VALUE(height > 0 && width > 0,
                    "render_scene: height and width must be positive, got ", height, " x ", width);
  const Scene scene = make_scene(static_cast<uint64_t>(seed));
  const Tensor image = at::empty({height, width, 3}, at::kByte);
  const Tensor depth = at::empty({height, width}, at::kFloat);
  const Tensor normals = at::empty({height, width, 3}, at::kFloat);
  const Tensor labels = at::empty({height, width}, at::kByte);
  render(scene, height, width, static_cast<uint64_t>(seed), image.mutable_data_ptr<uint8_t>(),
         depth.mutable_data_ptr<float>(), normals.mutable_data_ptr<float>(),
         labels.mutable_data_ptr<uint8_t>());
  return {image, depth, normals, labels,
          static_cast<double>(scene.focal) * static_cast<double>(width)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "render_scene(int seed, int height, int width) -> (Tensor image, Tensor depth, Tensor "
      "normals, Tensor labels, float focal)",
      render_scene);
}

}  // namespace dpt::scenes
