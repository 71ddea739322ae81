#include "dpt/encoder/image.h"

#include <ATen/autocast_mode.h>

namespace dpt {

void check_image(const Tensor& image, int64_t multiple, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(
      image.dim() == 4 && image.sym_size(1) == 3, "encode: images must be [B, 3, H, W], got ",
      image.sym_sizes(),
      "; add the batch dimension with images[None], repeat a gray channel three times");
  const c10::SymInt h = image.sym_size(2) / multiple, w = image.sym_size(3) / multiple;
  TORCH_CHECK_VALUE(
      h * multiple == image.sym_size(2) && w * multiple == image.sym_size(3) && h > 0 && w > 0,
      "encode: height and width must be multiples of ", multiple, ", got ", image.sym_size(2),
      " x ", image.sym_size(3), "; resize or pad the images to such a size");
  const at::DeviceType device = image.device().type();
  const bool autocast =
      at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
  TORCH_CHECK_VALUE(image.scalar_type() == dtype || (autocast && image.is_floating_point()),
                    "encode: images must have the dtype of the model, ", dtype, ", got ",
                    image.scalar_type(),
                    "; normalise them as floating point and convert with images.to()");
}

}  // namespace dpt
