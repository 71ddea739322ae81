// The rewrites are exact: in float64 a rewritten network, evaluated by plain ATen, is the model.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>
#include <string>

#include "dpt/runtime/rewrites.h"
#include "runtime_networks.h"

namespace {

using dpt::Tensor;
namespace runtime = dpt::runtime;

// --- what the layers of a rewritten network mean ---

// Rows and columns of the output that read before the first or behind the last row of the input.
Tensor border_map(const runtime::Product& product, int64_t height, int64_t width,
                  int64_t out_height, int64_t out_width) {
  std::vector<Tensor> rows;
  for (int64_t y = 0; y < out_height; ++y) {
    std::vector<Tensor> row;
    for (int64_t x = 0; x < out_width; ++x) {
      const int64_t top = y * product.stride - product.above;
      const int64_t left = x * product.stride - product.left;
      const int64_t r = (top < 0 ? 1 : 0) + (top + product.weight.size(2) > height ? 2 : 0);
      const int64_t c = (left < 0 ? 1 : 0) + (left + product.weight.size(3) > width ? 2 : 0);
      row.push_back(product.border[4 * r + c]);
    }
    rows.push_back(torch::stack(row));
  }
  return torch::stack(rows).permute({2, 0, 1});  // [n, h, w]
}

// [B, c, H, W] -> [B, n, ceil(H / stride), ceil(W / stride)].
Tensor convolve(const runtime::Product& product, const Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3), stride = product.stride;
  const int64_t out_height = (height + stride - 1) / stride,
                out_width = (width + stride - 1) / stride;
  const int64_t below = (out_height - 1) * stride + product.weight.size(2) - product.above - height;
  const int64_t right = (out_width - 1) * stride + product.weight.size(3) - product.left - width;
  const Tensor padded = torch::constant_pad_nd(x, {product.left, right, product.above, below});
  Tensor y = torch::conv2d(padded, product.weight, product.bias, at::IntArrayRef({stride, stride}),
                           at::IntArrayRef({0, 0}), at::IntArrayRef({1, 1}), product.groups);
  if (product.border.defined()) y = y + border_map(product, height, width, out_height, out_width);
  return y;
}

Tensor linear(const runtime::Product& product, const Tensor& x) {
  return torch::linear(x, product.weight.flatten(1), product.bias);
}

Tensor resized(const Tensor& x, int64_t height, int64_t width, bool align_corners) {
  return torch::upsample_bilinear2d(x, {height, width}, align_corners);
}

Tensor normed(const runtime::NormedProduct& product, const Tensor& x) {
  const Tensor y = convolve(product.conv, x);
  if (product.norm_groups == 0) return y;
  return torch::group_norm(y, product.norm_groups, product.weight, product.bias, 1e-5);
}

std::vector<Tensor> stage_maps(const runtime::Stages& stages, const Tensor& image) {
  Tensor x = normed(stages.stem, image).relu();
  x = stages.zero_padded_pool ? torch::max_pool2d(torch::constant_pad_nd(x, {0, 1, 0, 1}), 3, 2)
                              : torch::max_pool2d(x, 3, 2, 1);
  std::vector<Tensor> maps;
  for (const auto& stage : stages.stages) {
    for (const runtime::Bottleneck& block : stage) {
      const Tensor y =
          normed(block.conv3, normed(block.conv2, normed(block.conv1, x).relu()).relu());
      x = (y + (block.downsample ? normed(*block.downsample, x) : x)).relu();
    }
    maps.push_back(x);
  }
  return maps;
}

std::vector<Tensor> taps_of(const runtime::Transformer& transformer, const Tensor& pixels) {
  const Tensor grid = convolve(transformer.patch_embed, pixels);
  const int64_t batch = grid.size(0), width = grid.size(1), side = transformer.grid;
  const Tensor square = transformer.pos_embed.view({1, side, side, width}).permute({0, 3, 1, 2});
  const Tensor patches = grid + resized(square, grid.size(2), grid.size(3), false);
  Tensor x = torch::cat(
      {transformer.prefix.expand({batch, -1, -1}), patches.flatten(2).transpose(1, 2)}, 1);
  std::vector<Tensor> taps;
  for (size_t i = 0; taps.size() < transformer.taps.size(); ++i) {
    const runtime::Block& block = transformer.blocks[i];
    const auto norm = [&](const Tensor& t) {
      return torch::layer_norm(t, {width}, {}, {}, transformer.eps);
    };
    const Tensor qkv = linear(block.qkv, norm(x))
                           .view({batch, -1, 3, transformer.heads, width / transformer.heads})
                           .permute({2, 0, 3, 1, 4});
    const Tensor weights = torch::softmax(torch::matmul(qkv[0], qkv[1].transpose(2, 3)), -1);
    const Tensor mixed = torch::matmul(weights, qkv[2]).transpose(1, 2).flatten(2);
    x = x + linear(block.proj, mixed);
    x = x + linear(block.fc2, torch::gelu(linear(block.fc1, norm(x))));
    if (static_cast<int64_t>(i) == transformer.taps[taps.size()]) taps.push_back(x);
  }
  return taps;
}

Tensor level_map(const runtime::Level& level, const Tensor& tap, int64_t prefix, int64_t h,
                 int64_t w) {
  if (level.convolutional) return convolve(level.input, tap);
  Tensor x = tap.slice(1, prefix);
  if (level.readout == dpt::ReadMode::kAdd) {
    x = x + tap.slice(1, 0, prefix).mean({1}, /*keepdim=*/true);
  }
  if (level.readout == dpt::ReadMode::kProject) {
    x = torch::gelu(linear(level.read, x) + linear(level.read_token, tap.slice(1, 0, 1)));
  }
  x = x.transpose(1, 2).unflatten(2, {h, w});
  if (level.project) x = convolve(*level.project, x);
  if (level.down) x = convolve(*level.down, x);
  if (level.up.defined()) x = torch::conv_transpose2d(x, level.up, level.up_bias, level.factor);
  if (level.phases.empty()) return convolve(level.input, x);
  const int64_t s = level.factor;
  Tensor out =
      torch::empty({x.size(0), level.phases[0].n(), s * x.size(2), s * x.size(3)}, x.options());
  for (int64_t p = 0; p < s; ++p) {
    for (int64_t q = 0; q < s; ++q) {
      out.slice(2, p, {}, s).slice(3, q, {}, s).copy_(convolve(level.phases[s * p + q], x));
    }
  }
  return out;
}

dpt::Output evaluate(const runtime::Network& network, const Tensor& image) {
  std::vector<Tensor> taps;
  if (network.stages) taps = stage_maps(*network.stages, image);
  const int64_t h = image.size(2) / network.config.patch_size;
  const int64_t w = image.size(3) / network.config.patch_size;
  int64_t prefix = 0;
  if (network.transformer) {
    prefix = network.transformer->prefix.size(0);
    const Tensor pixels = taps.empty() ? image : taps.back();
    taps.resize(4 - network.transformer->taps.size());
    for (const Tensor& tap : taps_of(*network.transformer, pixels)) taps.push_back(tap);
  }
  const auto unit = [&](const runtime::Unit& unit, const Tensor& x) {
    const Tensor y = convolve(unit.conv2, convolve(unit.conv1, x.relu()).relu());
    return y + (network.relu_skip ? x.relu() : x);
  };
  Tensor x;
  for (int i = 3; i >= 0; --i) {
    const runtime::FusionLevel& level = network.fusion[i];
    Tensor map = level_map(network.levels[i], taps[i], prefix, h, w);
    if (level.unit1) map = unit(*level.unit1, map) + resized(x, map.size(2), map.size(3), true);
    x = unit(level.unit2, map);
    if (level.project) x = convolve(*level.project, x);
  }
  x = resized(x, 2 * x.size(2), 2 * x.size(3), true);
  dpt::Output output;
  if (const auto& head = network.depth) {
    Tensor y = resized(convolve(head->conv1, x), 2 * x.size(2), 2 * x.size(3), head->align_corners);
    y = convolve(head->conv2, y).relu();
    y = (torch::einsum("bchw,c->bhw", {y, head->dot}) + head->dot_bias).relu();
    if (head->inversion) {
      y = (y * head->inversion->scale + head->inversion->shift).clamp_min(1e-8).reciprocal();
    }
    output.depth = y;
  }
  if (const auto& head = network.segmentation) {
    const Tensor y = convolve(head->classify, convolve(head->conv, x).relu());
    output.logits = resized(y, 2 * y.size(2), 2 * y.size(3), true);
  }
  return output;
}

double difference(const Tensor& got, const Tensor& want) {
  if (!want.defined()) return got.defined() ? INFINITY : 0;
  EXPECT_EQ(got.sizes(), want.sizes());
  return ((got - want).abs().max() / want.abs().max()).item<double>();
}

void expect_equal(const dpt::Config& config, const runtime::Rewrites& rewrites) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const dpt::Model model = runtime_test::random_model(config, at::kDouble);
  const runtime::Network network = runtime::rewrite(model, rewrites);
  for (const auto& [height, width] : runtime_test::sizes(config)) {
    const Tensor image = torch::randn({2, 3, height, width}, at::kDouble);
    const dpt::Output got = evaluate(network, image), want = model(image);
    EXPECT_LT(difference(got.depth, want.depth), 1e-11);
    EXPECT_LT(difference(got.logits, want.logits), 1e-11);
  }
}

TEST(Rewrites, AllTogetherAreExact) {
  for (const dpt::Config& config : runtime_test::family()) expect_equal(config, {});
}

TEST(Rewrites, EachAloneIsExact) {
  const runtime::Rewrites none{.fold_project = false,
                               .fold_level_project = false,
                               .phases = false,
                               .products_first = false,
                               .winograd = false};
  for (bool runtime::Rewrites::* one :
       {&runtime::Rewrites::fold_project, &runtime::Rewrites::fold_level_project,
        &runtime::Rewrites::phases}) {
    runtime::Rewrites rewrites = none;
    rewrites.*one = true;
    for (const dpt::Config& config : runtime_test::transformers()) expect_equal(config, rewrites);
  }
  for (const dpt::Config& config : runtime_test::transformers()) expect_equal(config, none);
}

TEST(Rewrites, TakeAwayWhatTheySay) {
  const dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
  const runtime::Network network = runtime::rewrite(model);
  EXPECT_FALSE(network.fusion[0].project.has_value());
  EXPECT_TRUE(network.fusion[1].project.has_value());
  EXPECT_TRUE(network.depth->conv1.border.defined());
  EXPECT_EQ(network.levels[0].phases.size(), 16U);
  EXPECT_EQ(network.levels[1].phases.size(), 4U);
  int64_t taps = 0;
  for (const auto& phase : network.levels[0].phases) {
    taps += phase.weight.size(2) * phase.weight.size(3);
  }
  EXPECT_EQ(taps, 36);  // 2.25 in the mean, instead of 9 and the transposed convolution
  EXPECT_FALSE(network.levels[2].project.has_value());  // 48 channels between 32 and 16
  EXPECT_EQ(network.depth->conv1.weight.scalar_type(), at::kFloat);
}

TEST(Rewrites, EveryKernelBelongsToAProductThatIsVisited) {
  for (const dpt::Config& config : runtime_test::family()) {
    runtime::Network network = runtime::rewrite(runtime_test::random_model(config, at::kFloat));
    std::set<std::string> products, kernels;
    runtime::for_each_product(network, [&](const std::string& name, runtime::Product& product) {
      if (product.defined()) products.insert(name + ".weight");
    });
    runtime::for_each_tensor(network, [&](const std::string& name, Tensor& tensor) {
      if (tensor.defined() && tensor.dim() == 4) kernels.insert(name);
    });
    EXPECT_EQ(products, kernels);
  }
}

TEST(Rewrites, OneTapOfAConvolutionIsAProjection) {
  // By hand: a 1x1 convolution (x -> 2 x + 1) before a 3x3 one of ones, on a 2 x 2 map of ones:
  // each output sees four pixels of 3.
  runtime::Product project{.weight = torch::full({1, 1, 1, 1}, 2, at::kDouble),
                           .bias = torch::ones({1}, at::kDouble)};
  runtime::Product conv{.weight = torch::ones({1, 1, 3, 3}, at::kDouble), .above = 1, .left = 1};
  const runtime::Product folded = runtime::fold_project(project, conv);
  const Tensor out = convolve(folded, torch::ones({1, 1, 2, 2}, at::kDouble));
  EXPECT_TRUE(torch::equal(out, torch::full({1, 1, 2, 2}, 12, at::kDouble)));
}

}  // namespace
