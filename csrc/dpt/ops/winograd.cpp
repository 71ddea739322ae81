// csrc/dpt/ops/winograd.cpp -- gradients of 3x3 convolutions by the kernels of the CPU runtime.
#include "dpt/ops/winograd.h"

#include "dpt/ops/runtime.h"

namespace dpt {
namespace {

runtime::Strides strides(const Tensor& map) {
  const int64_t channels = map.size(1), width = map.size(3);
  return {.image = map.size(2) * width * channels, .row = width * channels, .pixel = channels};
}

// --- the gradient of the weight ---

constexpr int64_t kPoints = 36;

// Tiles whose products are made at once: so many that the sums are not read too often, and few
// enough for the cache.
constexpr int64_t kTiles = 288;

// Their points, [36, tiles, channels].
Tensor points(const Tensor& map, bool of_gradient, int64_t first, int64_t tiles) {
  const int64_t channels = map.size(1);
  // A line more, or all points of a tile would fall into the same sets of the cache.
  const Tensor all = at::empty({kPoints, tiles * channels + 16}, map.options());
  execute(runtime_kernels().winograd_points,
          runtime::WinogradPoints{.in = map.const_data_ptr<float>(),
                                  .in_strides = strides(map),
                                  .batch = map.size(0),
                                  .height = map.size(2),
                                  .width = map.size(3),
                                  .channels = channels,
                                  .of_gradient = of_gradient,
                                  .first = first,
                                  .tiles = tiles,
                                  .out = all.mutable_data_ptr<float>(),
                                  .point_stride = all.stride(0)});
  return all.narrow(1, 0, tiles * channels).unflatten(1, {tiles, channels});
}

}  // namespace

// A convolution with the kernels turned.
Tensor winograd_grad_x(const Tensor& grad, const Tensor& weight) {
  const int64_t B = grad.size(0), K = grad.size(1), H = grad.size(2), W = grad.size(3);
  const int64_t C = weight.size(1);
  const Tensor turned = weight.flip({2, 3}).transpose(0, 1).contiguous();
  const Tensor packed = uninitialized_bytes(runtime_kernels().winograd_bytes(K, C));
  execute(runtime_kernels().winograd_pack,
          runtime::WinogradWeights{.weights = turned.const_data_ptr<float>(),
                                   .channels = K,
                                   .n = C,
                                   .packed = packed.mutable_data_ptr()});
  Tensor result =
      at::empty({B, C, H, W}, grad.options().memory_format(at::MemoryFormat::ChannelsLast));
  execute(runtime_kernels().winograd, runtime::Winograd{.in = grad.const_data_ptr<float>(),
                                                        .in_strides = strides(grad),
                                                        .batch = B,
                                                        .height = H,
                                                        .width = W,
                                                        .channels = K,
                                                        .weights = packed.const_data_ptr(),
                                                        .n = C,
                                                        .out = result.mutable_data_ptr<float>(),
                                                        .out_strides = strides(result)});
  return result;
}

Tensor winograd_grad_weight(const Tensor& grad, const Tensor& x) {
  const int64_t B = grad.size(0), K = grad.size(1), H = grad.size(2), W = grad.size(3);
  const int64_t C = x.size(1);
  const int64_t tiles = B * ((H + 3) / 4) * ((W + 3) / 4);
  const int64_t blocks = (tiles + kTiles - 1) / kTiles;
  Tensor sums = at::empty({kPoints, K, C}, x.options());
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = tiles * block / blocks;
    const int64_t count = tiles * (block + 1) / blocks - first;
    sums.baddbmm_(points(grad, /*of_gradient=*/true, first, count).transpose(1, 2),
                  points(x, /*of_gradient=*/false, first, count), /*beta=*/block > 0 ? 1 : 0);
  }
  Tensor result = at::empty({K, C, 3, 3}, x.options());
  execute(runtime_kernels().winograd_taps,
          runtime::WinogradTaps{.points = sums.const_data_ptr<float>(),
                                .n = K,
                                .channels = C,
                                .taps = result.mutable_data_ptr<float>()});
  return result;
}

}  // namespace dpt
