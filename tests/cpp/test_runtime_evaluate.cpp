// The forward pass by ATen's operators, which is what runs on a GPU, here on the CPU: against the
// model that the network was made of.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dpt/io/checkpoint.h"
#include "dpt/runtime/evaluate.h"
#include "dpt/runtime/prepare.h"
#include "dpt/scenes/scene.h"
#include "runtime_networks.h"

namespace {

using dpt::Tensor;
namespace runtime = dpt::runtime;

// The largest difference over the range of what is wanted.
double error(const Tensor& got, const Tensor& want) {
  if (!want.defined()) return got.defined() ? INFINITY : 0;
  EXPECT_EQ(got.sizes(), want.sizes());
  const Tensor difference = (got.to(at::kDouble) - want.to(at::kDouble)).abs().max();
  return (difference / (want.max() - want.min()).to(at::kDouble)).item<double>();
}

double error(const dpt::Output& got, const dpt::Output& want) {
  return std::max(error(got.depth, want.depth), error(got.logits, want.logits));
}

dpt::Output evaluated(const runtime::Network& network, const Tensor& images) {
  runtime::SizeCache cache;
  return runtime::evaluate(network, cache, images);
}

dpt::Model cast(dpt::Model model, at::ScalarType dtype) {
  dpt::for_each_tensor(model, [&](const std::string&, Tensor& tensor, const dpt::TensorInfo&) {
    if (tensor.is_floating_point()) tensor = tensor.detach().to(dtype);
  });
  return model;
}

void expect_exact(const dpt::Config& config, const runtime::Rewrites& rewrites) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const dpt::Model model = runtime_test::random_model(config, at::kDouble);
  const runtime::Network network =
      runtime::prepare(runtime::rewrite(model, rewrites), at::kCPU, at::kDouble);
  for (const auto& [height, width] : runtime_test::sizes(config)) {
    const Tensor images = torch::randn({2, 3, height, width}, at::kDouble);
    EXPECT_LT(error(evaluated(network, images), model(images)), 1e-10);
  }
}

TEST(Evaluate, IsTheModelInDouble) {
  for (const dpt::Config& config : runtime_test::family()) expect_exact(config, {});
}

TEST(Evaluate, IsTheModelWithoutEachRewrite) {
  runtime::Rewrites none;
  none.for_each([](const char*, bool& on) { on = false; });
  for (const dpt::Config& config : runtime_test::family()) expect_exact(config, none);
  for (bool runtime::Rewrites::* one :
       {&runtime::Rewrites::fold_project, &runtime::Rewrites::fold_level_project,
        &runtime::Rewrites::phases, &runtime::Rewrites::products_first}) {
    runtime::Rewrites rewrites;
    rewrites.*one = false;
    for (const dpt::Config& config : runtime_test::transformers()) expect_exact(config, rewrites);
  }
}

TEST(Evaluate, HalfTypesAreAsNearAsTheModelIn) {
  const torch::NoGradGuard no_grad;
  for (const dpt::Config& config : runtime_test::family()) {
    torch::manual_seed(0);
    const dpt::Model model = runtime_test::random_model(config, at::kFloat);
    const Tensor images = torch::randn({2, 3, 64, 96});
    const dpt::Output want = cast(model, at::kDouble)(images.to(at::kDouble));
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const auto network = runtime::prepare(runtime::rewrite(model), at::kCPU, dtype);
      const dpt::Output got = evaluated(network, images);
      const Tensor any = got.depth.defined() ? got.depth : got.logits;
      EXPECT_EQ(any.scalar_type(), at::kFloat);
      const double own = error(got, want),
                   models = error(cast(model, dtype)(images.to(dtype)), want);
      // Roundings fall elsewhere; the largest of their sums varies by about this much.
      EXPECT_LT(own, 2 * models + 1e-5) << "model " << models << ", dtype " << dtype;
    }
  }
}

TEST(Evaluate, Float8IsForTheLinearLayersOfTheBlocks) {
  const torch::NoGradGuard no_grad;
  for (const dpt::Config& config : runtime_test::transformers()) {
    torch::manual_seed(0);
    const runtime::Network network =
        runtime::rewrite(runtime_test::random_model(config, at::kFloat));
    const auto float8 = runtime::prepare(network, at::kCPU, at::kFloat8_e4m3fn),
               bfloat16 = runtime::prepare(network, at::kCPU, at::kBFloat16);
    // With the weights that the codes mean.
    runtime::Network meant = network;
    for (size_t i = 0; i < network.transformer->blocks.size(); ++i) {
      for (runtime::Product runtime::Block::* layer :
           {&runtime::Block::qkv, &runtime::Block::proj, &runtime::Block::fc1,
            &runtime::Block::fc2}) {
        const runtime::Product& product = float8.transformer->blocks[i].*layer;
        EXPECT_EQ(product.weight.scalar_type(), at::kFloat8_e4m3fn);
        Tensor& weight = (meant.transformer->blocks[i].*layer).weight;
        const Tensor decoded =
            (product.weight.to(at::kFloat) * product.scale.view({-1, 1})).view_as(weight);
        // Half a step of three bits, or of the smallest numbers.
        const Tensor bound = weight.abs() / 16 + product.scale.view({-1, 1, 1, 1}) / 1024;
        EXPECT_TRUE(((decoded - weight).abs() <= bound * 1.001).all().item<bool>());
        weight = decoded;
      }
    }
    const Tensor images = torch::randn({2, 3, 64, 96});
    const dpt::Output want = evaluated(runtime::prepare(meant, at::kCPU, at::kFloat), images);
    const dpt::Output got = evaluated(float8, images);
    const Tensor any = got.depth.defined() ? got.depth : got.logits;
    EXPECT_EQ(any.scalar_type(), at::kFloat);
    // What is left is the rounding of tokens, by 1 / 16 at most, and of all else to bfloat16.
    EXPECT_LT(error(got, want), 0.15);
    EXPECT_GT(error(got, evaluated(bfloat16, images)), 0);
  }
}

// Normalised pictures [n, 3, height, width].
Tensor scenes(int64_t n, int64_t height, int64_t width) {
  const Tensor pixels = torch::empty({n, height, width, 3}, at::kByte),
               depth = torch::empty({height, width}), normals = torch::empty({height, width, 3}),
               labels = torch::empty({height, width}, at::kByte);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t seed = 3'000'000 + i;
    dpt::scenes::render(dpt::scenes::make_scene(seed), height, width, seed,
                        pixels[i].mutable_data_ptr<uint8_t>(), depth.mutable_data_ptr<float>(),
                        normals.mutable_data_ptr<float>(), labels.mutable_data_ptr<uint8_t>());
  }
  return pixels.permute({0, 3, 1, 2}).to(at::kFloat).div(127.5).sub(1).contiguous();
}

// The table of docs/runtime.md. Means of the images' errors over the range of their maps.
TEST(Evaluate, Float8CostsTheShippedNetworkAboutAsMuchAsBFloat16) {
  const torch::NoGradGuard no_grad;
  const runtime::Network network = runtime::rewrite(dpt::load_checkpoint(DPT_DEMO).model);
  const Tensor images = scenes(8, 128, 160);
  const auto depth = [&](at::ScalarType dtype) {
    return evaluated(runtime::prepare(network, at::kCPU, dtype), images).depth.to(at::kFloat);
  };
  const Tensor want = depth(at::kFloat), range = want.amax({1, 2}) - want.amin({1, 2});
  for (at::ScalarType dtype : {at::kBFloat16, at::kFloat8_e4m3fn}) {
    const Tensor difference = (depth(dtype) - want).abs();
    const double mean = (difference.mean({1, 2}) / range).mean().item<double>();
    const double most = (difference.amax({1, 2}) / range).max().item<double>();
    std::cout << dtype << ": mean " << mean << ", largest " << most << '\n';
    EXPECT_LT(mean, 2e-3);
    EXPECT_LT(most, 2e-2);
    EXPECT_GT(mean, 1e-5);
  }
}

TEST(Evaluate, CacheOfASizeChangesNothing) {
  for (const dpt::Config& config : runtime_test::family()) {
    const auto network = runtime::prepare(
        runtime::rewrite(runtime_test::random_model(config, at::kFloat)), at::kCPU, at::kFloat);
    const Tensor images = torch::randn({1, 3, 64, 96});
    runtime::SizeCache cache;
    const dpt::Output first = runtime::evaluate(network, cache, images);
    const dpt::Output second = runtime::evaluate(network, cache, images);
    for (Tensor dpt::Output::* map : {&dpt::Output::depth, &dpt::Output::logits}) {
      if (!(first.*map).defined()) continue;
      EXPECT_TRUE(torch::equal(first.*map, second.*map));
    }
  }
}

TEST(Evaluate, PixelsAreNormalisedOnTheWay) {
  const runtime::PixelStatistics statistics{{0.5, 0.4, 0.3}, {0.2, 0.25, 0.5}};
  const auto of = [](const std::array<double, 3>& three) {
    return torch::tensor(at::ArrayRef<double>(three)).view({1, 3, 1, 1});
  };
  for (const dpt::Config& config : runtime_test::family()) {
    const auto network = runtime::prepare(
        runtime::rewrite(runtime_test::random_model(config, at::kFloat)), at::kCPU, at::kFloat);
    const Tensor photographs = torch::randint(256, {2, 64, 96, 3}, at::kByte).permute({0, 3, 1, 2});
    const Tensor images =
        ((photographs / 255.0 - of(statistics.mean)) / of(statistics.std)).to(at::kFloat);
    runtime::SizeCache cache;
    const dpt::Output got = runtime::evaluate(network, cache, photographs, statistics);
    EXPECT_LT(error(got, evaluated(network, images.contiguous())), 1e-4);
  }
}

runtime::Product convolution(int64_t n, int64_t channels, int64_t kernel) {
  runtime::Product product;
  product.weight = torch::zeros({n, channels, kernel, kernel});
  product.bias = torch::zeros({n});
  product.above = product.left = kernel / 2;
  return product;
}

TEST(Evaluate, FusesTheReluOfAConvolutionThatKeepsTheShape) {
  const auto fuses = [](const runtime::Product& product) {
    return runtime::fuses_relu(product, at::kCUDA, at::kBFloat16, /*deterministic=*/false);
  };
  const runtime::Product kept = convolution(8, 8, 3);
  EXPECT_TRUE(fuses(kept));
  EXPECT_TRUE(fuses(convolution(8, 8, 7)));
  EXPECT_FALSE(fuses(convolution(16, 8, 3)));
  EXPECT_FALSE(fuses(convolution(8, 8, 2)));
  runtime::Product grouped = convolution(8, 2, 3);
  grouped.groups = 4;
  EXPECT_TRUE(fuses(grouped));
  for (const auto& change : std::initializer_list<void (*)(runtime::Product&)>{
           [](runtime::Product& product) { product.stride = 2; },
           [](runtime::Product& product) { product.above = 0; },
           [](runtime::Product& product) { product.bias = Tensor(); },
           [](runtime::Product& product) { product.border = torch::zeros({16, 8}); }}) {
    runtime::Product changed = kept;
    change(changed);
    EXPECT_FALSE(fuses(changed));
  }
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    EXPECT_TRUE(runtime::fuses_relu(kept, at::kCUDA, dtype, false));
    EXPECT_FALSE(runtime::fuses_relu(kept, at::kCUDA, dtype, true));
    EXPECT_FALSE(runtime::fuses_relu(kept, at::kCPU, dtype, false));
  }
  EXPECT_FALSE(runtime::fuses_relu(kept, at::kCUDA, at::kDouble, false));
}

// Its switch may say something else than the older one of all of cuDNN.
TEST(Evaluate, TakesConvolutionsPrecisionAlone) {
  const auto network = runtime::prepare(
      runtime::rewrite(runtime_test::random_model(runtime_test::small(), at::kFloat)), at::kCPU,
      at::kFloat);
  auto& context = at::globalContext();
  context.setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::CONV,
                              at::Float32Precision::IEEE);
  EXPECT_NO_THROW(evaluated(network, torch::randn({1, 3, 64, 64})));
  context.setAllowTF32CuDNN(true);
}

TEST(Evaluate, LeavesImagesAndNetworkAsTheyAre) {
  runtime::Network network = runtime::prepare(
      runtime::rewrite(runtime_test::random_model(runtime_test::small(), at::kFloat)), at::kCPU,
      at::kFloat);
  const Tensor images = torch::randn({2, 3, 64, 64}), before = images.clone();
  std::vector<Tensor> copies;
  runtime::for_each_tensor(network, [&](const std::string&, Tensor& tensor) {
    copies.push_back(tensor.defined() ? tensor.clone() : tensor);
  });
  evaluated(network, images);
  EXPECT_TRUE(torch::equal(images, before));
  size_t i = 0;
  runtime::for_each_tensor(network, [&](const std::string& name, Tensor& tensor) {
    const Tensor& copy = copies[i++];
    if (tensor.defined()) {
      EXPECT_TRUE(torch::equal(tensor, copy)) << name;
    }
  });
}

}  // namespace
