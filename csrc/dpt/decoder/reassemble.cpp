#include "dpt/decoder/reassemble.h"

#include "dpt/ops/linear.h"

namespace dpt {

Tensor Read::operator()(const Tensor& tokens) const {
  const Tensor patches = tokens.slice(1, num_prefix_tokens);  // [B, N, D]
  switch (mode) {
    case ReadMode::kIgnore:
      return patches;
    case ReadMode::kAdd:
      return patches + tokens.slice(1, 0, num_prefix_tokens).mean({1}, /*keepdim=*/true);
    case ReadMode::kProject: {
      // A layer of cat(patch, readout) is a layer of each: half the products, and nothing repeated.
      const int64_t width = project.in / 2;
      const Tensor of_patches =
          linear(patches.flatten(0, 1), project.weight.slice(1, 0, width), Tensor());
      const Tensor of_readout =
          linear(tokens.select(1, 0), project.weight.slice(1, width), project.bias);
      return at::gelu(
          of_patches.unflatten_symint(0, patches.sym_sizes().slice(0, 2)) + of_readout.unsqueeze(1),
          "none");
    }
  }
  TORCH_INTERNAL_ASSERT(false);
}

Resample::Resample(int64_t channels, int64_t patch_size, int64_t stride)
    : channels(channels),
      patch_size(patch_size),
      stride(stride),
      up{.channels = channels, .factor = patch_size / stride},
      down{.in = channels,
           .out = channels,
           .kernel = 3,
           .stride = stride / patch_size,
           .padding = 1} {}

Tensor Resample::operator()(const Tensor& x) const {
  if (stride < patch_size) return up(x);
  if (stride > patch_size) return down(x);
  return x;
}

Tensor ReassembleLevel::operator()(const Tensor& tokens, const c10::SymInt& h,
                                   const c10::SymInt& w) const {
  const Tensor patches = read(tokens);                                      // [B, N, D]
  const Tensor grid = patches.transpose(1, 2).unflatten_symint(2, {h, w});  // [B, D, h, w]
  return resample(project(grid));
}

Reassemble::Reassemble(const ReassembleOptions& options) : options(options) {
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t width = options.width, channels = options.channels[i];
    levels.push_back({
        .convolutional = i < options.conv_levels,
        .read = {.mode = options.readout,
                 .num_prefix_tokens = options.num_prefix_tokens,
                 .project = {.in = 2 * width, .out = width}},
        .project = {.in = width, .out = channels},
        .resample = Resample(channels, options.patch_size, options.strides[i]),
    });
  }
}

std::vector<Tensor> Reassemble::operator()(at::TensorList taps, const c10::SymInt& height,
                                           const c10::SymInt& width) const {
  TORCH_CHECK_VALUE(taps.size() == levels.size(), "reassemble: needs ", levels.size(),
                    " taps, finest level first, got ", taps.size());
  const int64_t patch_size = options.patch_size;
  const c10::SymInt h = height / patch_size, w = width / patch_size;
  TORCH_CHECK_VALUE(
      h * patch_size == height && w * patch_size == width && h > 0 && w > 0,
      "reassemble: size must be the image's (height, width), multiples of the patch size ",
      patch_size, ", got ", height, " x ", width,
      "; size is the (height, width) of the image, not of the patch grid");
  const c10::SymInt num_tokens = h * w + options.num_prefix_tokens;
  std::vector<Tensor> maps;
  for (size_t i = 0; i < levels.size(); ++i) {
    const Tensor& tap = taps[i];
    if (levels[i].convolutional) {
      const int64_t stride = options.strides[i], channels = options.channels[i];
      TORCH_CHECK_VALUE(tap.dim() == 4 && tap.sym_size(1) == channels &&
                            tap.sym_size(2) == height / stride && tap.sym_size(3) == width / stride,
                        "reassemble: tap ", i, " must be [B, ", channels, ", ", height / stride,
                        ", ", width / stride, "] for an image of ", height, " x ", width,
                        " pixels, got ", tap.sym_sizes(),
                        "; size is the (height, width) of the image");
      maps.push_back(tap);
      continue;
    }
    TORCH_CHECK_VALUE(tap.dim() == 3 && tap.sym_size(1) == num_tokens, "reassemble: tap ", i,
                      " must be [B, ", num_tokens, ", D] for an image of ", height, " x ", width,
                      " pixels and patches of ", patch_size, ", got ", tap.sym_sizes(),
                      "; size is the (height, width) of the image, not of the patch grid");
    maps.push_back(levels[i](tap, h, w));
  }
  return maps;
}

}  // namespace dpt
