#include "dpt/runtime/evaluate.h"

#include <ATen/ceil_div.h>
#include <ATen/core/grad_mode.h>

#include <array>

#include "dpt/ops/add_layer_norm.h"
#include "dpt/ops/autocast.h"
#include "dpt/ops/group_norm.h"
#include "dpt/ops/normalize_pixels.h"
#include "dpt/ops/quantize_rows.h"
#include "dpt/ops/readout.h"
#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_add.h"
#include "dpt/ops/upsample_gather.h"
#include "dpt/runtime/prepare.h"

namespace dpt::runtime {

namespace {

// Maps are [B, C, H, W] with channels next to each other, tokens [B, P + h * w, D].
struct Evaluation {
  const Network& network;
  SizeCache& cache;
  at::ScalarType dtype;
  const PixelStatistics& pixels;

  static Tensor linear(const Product& product, const Tensor& x) {
    if (product.scale.defined()) return float8_linear(product, x);
    return at::linear(x, product.weight.flatten(1), product.bias);
  }

  // Each token has a scale, and each output channel.
  static Tensor float8_linear(const Product& product, const Tensor& x) {
    const auto [codes, scale] = quantize_rows(x.reshape({-1, x.size(-1)}));
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = product.n();
    if (x.is_cuda()) {
      return at::_scaled_mm(codes, product.weight.t(), scale, product.scale, product.bias,
                            /*scale_result=*/{}, x.scalar_type(), /*use_fast_accum=*/true)
          .view(sizes);
    }
    const Tensor products = at::matmul(codes.to(at::kFloat), product.weight.to(at::kFloat).t());
    return (products * scale * product.scale + product.bias).to(x.scalar_type()).view(sizes);
  }

  // What `border` says of each output pixel, and the bias, [1, n, out_height, out_width].
  Tensor border_of(const Product& product, int64_t height, int64_t width) {
    Tensor& map = cache.border[&product];
    if (map.defined()) return map;
    const auto options = product.border.options().dtype(at::kLong);
    const auto places = [&](int64_t size, int64_t kernel, int64_t before) {
      const int64_t count = at::ceil_div(size, product.stride);
      const Tensor first = at::arange(count, options) * product.stride - before;
      return first.lt(0).to(at::kLong) + 2 * first.gt(size - kernel).to(at::kLong);
    };
    const Tensor rows = places(height, product.weight.size(2), product.above);
    const Tensor columns = places(width, product.weight.size(3), product.left);
    Tensor values = product.border.view({4, 4, -1}).index_select(0, rows).index_select(1, columns);
    if (product.bias.defined()) values = values + product.bias;
    map = values.to(dtype).permute({2, 0, 1}).unsqueeze(0);
    return map;
  }

  // Of each pixel by itself.
  static bool is_linear(const Product& product) {
    return product.weight.size(2) == 1 && product.weight.size(3) == 1 && product.stride == 1 &&
           product.groups == 1 && !product.border.defined();
  }

  static bool deterministic() {
    const auto& context = at::globalContext();
    return context.deterministicCuDNN() || context.deterministicAlgorithms();
  }

  // [B, c, H, W] -> [B, n, ceil(H / stride), ceil(W / stride)].
  Tensor convolve(const Product& product, Tensor x) {
    const int64_t height = x.size(2), width = x.size(3), stride = product.stride;
    const int64_t kh = product.weight.size(2), kw = product.weight.size(3);
    if (is_linear(product)) {
      return linear(product, x.permute({0, 2, 3, 1})).permute({0, 3, 1, 2});
    }
    const int64_t below = (at::ceil_div(height, stride) - 1) * stride + kh - product.above - height;
    const int64_t right = (at::ceil_div(width, stride) - 1) * stride + kw - product.left - width;
    // A convolution pads both sides alike; what it reads too much at the end makes no pixel.
    const auto fits = [&](int64_t size, int64_t kernel, int64_t before, int64_t behind) {
      return behind <= before &&
             (size + 2 * before - kernel) / stride + 1 == at::ceil_div(size, stride);
    };
    std::array<int64_t, 2> padding{product.above, product.left};
    if (!fits(height, kh, product.above, below) || !fits(width, kw, product.left, right)) {
      x = at::constant_pad_nd(x, {product.left, right, product.above, below});
      padding = {0, 0};
    }
    const bool border = product.border.defined();
    const auto bias =
        product.bias.defined() && !border ? std::optional<Tensor>(product.bias) : std::nullopt;
    const auto& context = at::globalContext();
    const Tensor y = at::_convolution(
        x, product.weight, bias, {stride, stride}, padding, {1, 1},
        /*transposed=*/false, {0, 0}, product.groups, /*benchmark=*/cache.find_algorithms,
        deterministic(), context.userEnabledCuDNN(), context.allowTF32CuDNN(at::Float32Op::CONV));
    return border ? y + border_of(product, height, width) : y;
  }

  // The ReLU of that.
  Tensor convolve_relu(const Product& product, const Tensor& x) {
    if (is_linear(product) && product.bias.defined()) {  // cuBLASLt does the ReLU, too
      const int64_t batch = x.size(0), height = x.size(2), width = x.size(3);
      const Tensor pixels = x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)});
      return at::_addmm_activation(product.bias, pixels, product.weight.flatten(1).t())
          .view({batch, height, width, -1})
          .permute({0, 3, 1, 2});
    }
    if (fuses_relu(product, x.device().type(), x.scalar_type(), deterministic()) &&
        at::globalContext().userEnabledCuDNN() && !cache.unfused.contains(&product) &&
        (cache.find_algorithms || !at::globalContext().benchmarkCuDNN())) {
      try {
        // The third summand that this kernel has is any map of the shape, times 0.
        return at::cudnn_convolution_add_relu(x, product.weight, /*z=*/x, /*alpha=*/0, product.bias,
                                              {1, 1}, {product.above, product.left}, {1, 1},
                                              product.groups);
      } catch (const c10::OutOfMemoryError&) {
        throw;
      } catch (const c10::Error&) {  // cuDNN has no such kernel for this shape
        cache.unfused.insert(&product);
      }
    }
    return convolve(product, x).relu_();
  }

  Tensor through(const std::optional<Product>& product, const Tensor& x) {
    return product ? convolve(*product, x) : x;
  }

  // --- convolutional stages ---

  Tensor normed(const NormedProduct& product, const Tensor& x, bool relu) {
    if (product.norm_groups > 0) return group_normed(product, x, /*add=*/{}, relu);
    return relu ? convolve_relu(product.conv, x) : convolve(product.conv, x);
  }

  Tensor group_normed(const NormedProduct& product, const Tensor& x, const Tensor& add, bool relu) {
    return group_norm(convolve(product.conv, x).contiguous(at::MemoryFormat::ChannelsLast),
                      product.norm_groups, product.weight, product.bias, /*eps=*/1e-5, add, relu);
  }

  Tensor bottleneck(const Bottleneck& block, const Tensor& x) {
    const Tensor first = normed(block.conv1, x, /*relu=*/true);
    const Tensor second = normed(block.conv2, first, /*relu=*/true);
    const Tensor skip = block.downsample ? normed(*block.downsample, x, /*relu=*/false) : x;
    if (block.conv3.norm_groups > 0) return group_normed(block.conv3, second, skip, /*relu=*/true);
    return convolve(block.conv3.conv, second).add_(skip).relu_();
  }

  std::vector<Tensor> stages(const Stages& stages, const Tensor& images) {
    const Tensor stem = normed(
        stages.stem, images.to(dtype).contiguous(at::MemoryFormat::ChannelsLast), /*relu=*/true);
    Tensor x = stages.zero_padded_pool
                   ? at::max_pool2d(at::constant_pad_nd(stem, {0, 1, 0, 1}), 3, 2)
                   : at::max_pool2d(stem, 3, 2, 1);
    std::vector<Tensor> maps;
    for (const auto& stage : stages.stages) {
      for (const Bottleneck& block : stage) x = bottleneck(block, x);
      maps.push_back(x);
    }
    return maps;
  }

  // --- transformer ---

  Tensor position(const Transformer& transformer, int64_t h, int64_t w) {
    if (!cache.pos_embed.defined()) {
      const int64_t grid = transformer.grid;
      const Tensor square = transformer.pos_embed.view({1, grid, grid, -1}).permute({0, 3, 1, 2});
      cache.pos_embed = resize_bilinear(square, h, w, /*align_corners=*/false)
                            .permute({0, 2, 3, 1})
                            .flatten(0, 2)
                            .to(dtype)
                            .contiguous();
    }
    return cache.pos_embed;
  }

  // Patches of an image, or pixels of a map, [B, h, w, c].
  Tensor patches_of(const Product& embed, const Tensor& x) const {
    if (embed.stride == 1) return x.permute({0, 2, 3, 1});
    const int64_t p = embed.stride, h = x.size(2) / p, w = x.size(3) / p;
    return x.view({x.size(0), x.size(1), h, p, w, p})
        .permute({0, 2, 4, 1, 3, 5})
        .to(dtype, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous)
        .reshape({x.size(0), h, w, -1});
  }

  Tensor embed(const Transformer& transformer, const Tensor& x, int64_t h, int64_t w) {
    const int64_t batch = x.size(0), prefix = transformer.prefix.size(0),
                  width = transformer.prefix.size(1);
    const Product& product = transformer.patch_embed;
    const Tensor values = x.scalar_type() == at::kByte
                              ? normalize_patches(x, pixels.mean, pixels.std, dtype, product.stride)
                              : patches_of(product, x);
    const Tensor patches = linear(product, values).view({batch, h * w, width});
    Tensor tokens = at::empty({batch, prefix + h * w, width}, patches.options());
    tokens.slice(1, 0, prefix).copy_(transformer.prefix.expand({batch, prefix, width}));
    Tensor behind = tokens.slice(1, prefix);
    at::add_out(behind, patches, position(transformer, h, w));
    return tokens;
  }

  // What attention adds to the tokens, from the normalised ones.
  static Tensor attention(const Block& block, int64_t heads, const Tensor& normed) {
    const int64_t batch = normed.size(0), tokens = normed.size(1), width = normed.size(2);
    const auto qkv = linear(block.qkv, normed)
                         .view({batch, tokens, 3, heads, width / heads})
                         .permute({2, 0, 3, 1, 4})
                         .unbind(0);
    // The scale of the scores is in the queries.
    const Tensor mixed = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], /*attn_mask=*/{},
                                                          /*dropout_p=*/0, /*is_causal=*/false,
                                                          /*scale=*/1.0);
    return linear(block.proj, mixed.transpose(1, 2).reshape({batch, tokens, width}));
  }

  static Tensor perceptron(const Block& block, const Tensor& normed) {
    Tensor hidden = linear(block.fc1, normed);
    return linear(block.fc2, at::gelu_(hidden));
  }

  // --- decoder ---

  // The patches of tokens as a map, with the prefix tokens read into them.
  Tensor read(const Level& level, const Tensor& x, int64_t prefix, int64_t h, int64_t w) const {
    Tensor patches = x.slice(1, prefix);
    if (level.readout == ReadMode::kProject) {
      patches = readout(linear(level.read, x), linear(level.read_token, x.select(1, 0)), prefix);
    } else if (level.readout == ReadMode::kAdd) {
      patches = patches + x.slice(1, 0, prefix).mean({1}, /*keepdim=*/true);
    }
    return patches.contiguous().view({x.size(0), h, w, -1}).permute({0, 3, 1, 2});
  }

  // [B, s * s * n, h, w], phase by phase, to [B, n, s * h, s * w].
  static Tensor interleaved(const Tensor& x, int64_t s) {
    const int64_t batch = x.size(0), h = x.size(2), w = x.size(3);
    return x.permute({0, 2, 3, 1})
        .reshape({batch, h, w, s, s, -1})
        .permute({0, 1, 3, 2, 4, 5})
        .reshape({batch, s * h, s * w, -1})
        .permute({0, 3, 1, 2});
  }

  // What fusion adds at this level.
  Tensor reassemble(const Level& level, Tensor x, int64_t prefix, int64_t h, int64_t w) {
    if (!level.convolutional) {
      x = through(level.down, through(level.project, read(level, x, prefix, h, w)));
      if (level.up.defined()) {
        x = at::conv_transpose2d(x, level.up, level.up_bias, {level.factor, level.factor})
                .contiguous(at::MemoryFormat::ChannelsLast);
      }
    }
    if (level.phases.empty()) return convolve(level.input, x);
    return interleaved(convolve(level.phases[0], x), level.factor);
  }

  Tensor residual(const Unit& unit, const Tensor& x) {
    const Tensor relu = x.relu();
    const Tensor y = convolve(unit.conv2, convolve_relu(unit.conv1, relu));
    return y + (network.relu_skip ? relu : x);
  }

  // The fused map before it is resized, of the maps of all levels, finest first.
  Tensor fuse(const std::vector<Tensor>& maps) {
    Tensor below;
    for (size_t i = maps.size(); i-- > 0;) {
      const FusionLevel& level = network.fusion[i];
      Tensor x = maps[i];
      if (level.unit1) x = upsample_add(below, residual(*level.unit1, x));
      below = through(level.project, residual(level.unit2, x));
    }
    return below;
  }

  // --- heads ---

  static Tensor resized(const Tensor& x, bool align_corners) {
    return resize_bilinear(x, 2 * x.size(2), 2 * x.size(3), align_corners);
  }

  // The products of a map with the taps of `product`, [B, H, W, 9 * n].
  static Tensor products(const Product& product, const Tensor& x) {
    return at::linear(x.permute({0, 2, 3, 1}), product.weight.flatten(1));
  }

  // A 3x3 convolution of `x` resized to twice its size.
  Tensor convolve_resized(const Product& product, const Tensor& x, bool align_corners, bool relu) {
    if (!network.rewrites.products_first) {
      const Tensor y = resized(x, align_corners);
      return relu ? convolve_relu(product, y) : convolve(product, y);
    }
    return upsample_gather(products(product, x), product.bias, product.border, 2 * x.size(2),
                           2 * x.size(3), align_corners, relu)
        .permute({0, 3, 1, 2});
  }

  Tensor depth(const DepthHead& head, const Tensor& fused) {
    const Tensor x = convolve_resized(head.conv1, fused, /*align_corners=*/true, /*relu=*/false);
    if (network.rewrites.products_first) {
      std::vector<double> inversion;
      if (head.inversion) inversion = {head.inversion->scale, head.inversion->shift};
      return upsample_gather_dot(products(head.conv2, x), head.conv2.bias, head.conv2.border,
                                 head.dot, head.dot_bias, 2 * x.size(2), 2 * x.size(3),
                                 head.align_corners, inversion);
    }
    const Tensor y = convolve_resized(head.conv2, x, head.align_corners, /*relu=*/true);
    const Tensor values =
        (at::matmul(y.permute({0, 2, 3, 1}).to(head.dot.scalar_type()), head.dot) + head.dot_bias)
            .relu();
    if (!head.inversion) return values;
    return (values * head.inversion->scale + head.inversion->shift).clamp_min(1e-8).reciprocal();
  }

  Tensor logits(const SegmentationHead& head, const Tensor& fused) {
    const Tensor x = convolve_resized(head.conv, fused, /*align_corners=*/true, /*relu=*/true);
    const Tensor scores = convolve(head.classify, x);
    return resized(scores.to(type_of_sums(dtype)), /*align_corners=*/true);
  }

  // --- the network ---

  Output operator()(const Tensor& images) {
    std::vector<Tensor> taps;
    if (network.stages) {
      taps = stages(*network.stages,
                    images.scalar_type() == at::kByte
                        ? normalize_pixels(images, pixels.mean, pixels.std, dtype, true)
                        : images);
    }
    std::vector<Tensor> maps(network.levels.size());
    for (size_t i = 0; i < maps.size(); ++i) {
      if (network.levels[i].convolutional) {
        maps[i] = reassemble(network.levels[i], taps[i], 0, 0, 0);
      }
    }
    if (const auto& transformer = network.transformer) {
      const int64_t h = images.size(2) / network.config.patch_size,
                    w = images.size(3) / network.config.patch_size;
      const int64_t prefix = transformer->prefix.size(0);
      const Tensor x = embed(*transformer, taps.empty() ? images : taps.back(), h, w);
      Tensor normed = at::layer_norm(x, {x.size(2)}, {}, {}, transformer->eps);
      size_t next = 0;
      for (size_t i = maps.size() - transformer->taps.size(), n = 0; i < maps.size(); ++n) {
        const Block& block = transformer->blocks[n];
        normed = add_layer_norm(x, attention(block, transformer->heads, normed), transformer->eps);
        normed = add_layer_norm(x, perceptron(block, normed), transformer->eps);
        if (static_cast<int64_t>(n) == transformer->taps[next]) {
          maps[i] = reassemble(network.levels[i], x, prefix, h, w);
          ++i;
          ++next;
        }
      }
    }
    const Tensor fused = fuse(maps);
    Output output;
    if (network.depth) output.depth = depth(*network.depth, fused);
    if (network.segmentation) output.logits = logits(*network.segmentation, fused);
    return output;
  }
};

}  // namespace

bool fuses_relu(const Product& product, at::DeviceType device, at::ScalarType dtype,
                bool deterministic) {
  const int64_t kh = product.weight.size(2), kw = product.weight.size(3);
  const bool keeps_shape = product.stride == 1 && kh == 2 * product.above + 1 &&
                           kw == 2 * product.left + 1 && product.n() == product.channels();
  return device == at::kCUDA &&
         (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16) && keeps_shape &&
         product.bias.defined() && !product.border.defined() && !deterministic;
}

Output evaluate(const Network& network, SizeCache& cache, const Tensor& images,
                const PixelStatistics& pixels) {
  const at::NoGradGuard no_grad;
  const NoAutocast no_autocast;
  const at::ScalarType dtype = network.fusion[0].unit2.conv1.weight.scalar_type();
  return Evaluation{network, cache, dtype, pixels}(images);
}

}  // namespace dpt::runtime
