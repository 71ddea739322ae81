// Frozen models without Python; their numbers over the whole family: tests/python/test_frozen.py.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "dpt/runtime/arena.h"
#include "dpt/runtime/frozen_model.h"
#include "dpt/runtime/packed.h"
#include "runtime_networks.h"

namespace {

using namespace dpt::runtime;
using dpt::Tensor;

double error(const Tensor& got, const Tensor& want) {
  return ((got - want).abs().max() / (want.max() - want.min())).item<double>();
}

TEST(FrozenModel, IsTheModel) {
  const torch::NoGradGuard no_grad;
  for (const dpt::Config& config : runtime_test::transformers()) {
    torch::manual_seed(0);
    const dpt::Model model = runtime_test::random_model(config, at::kFloat);
    const dpt::FrozenModel frozen = dpt::freeze(model);
    const Tensor images = torch::randn({2, 3, 48, 80});
    const dpt::Output got = frozen(images), want = model(images);
    EXPECT_LT(error(got.depth, want.depth),
              1e-4);  // of two roundings, at random weights twice as large
    ASSERT_EQ(got.logits.defined(), want.logits.defined());
    if (want.logits.defined()) {
      EXPECT_LT(error(got.logits, want.logits), 1e-4);
    }
  }
}

TEST(FrozenModel, FileGivesTheSameBitsToManyThreads) {
  const std::string path = testing::TempDir() + "/frozen_model_test";
  const dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
  const dpt::FrozenModel frozen = dpt::freeze(model, {.threads = 1});
  frozen.save(path, {{"who", "a test"}});
  const dpt::FrozenModel loaded = dpt::FrozenModel::load(path, 2);
  std::filesystem::remove(path);  // its mapping stays
  EXPECT_EQ(loaded.metadata().at("who"), "a test");
  EXPECT_EQ(loaded.config(), frozen.config());
  const Tensor images = torch::randn({1, 3, 64, 96});
  const Tensor want = frozen(images).depth;
  std::vector<std::thread> threads;
  std::atomic<int> equal = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 3; ++j) equal += torch::equal(loaded(images).depth, want);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 24);
}

// Kernels that read panels need no copy of them; others pack their own.
TEST(Panels, AreReadWhereTheyLie) {
  dpt::Config config = runtime_test::small();
  config.width = 256;
  config.mlp_width = 512;
  Network network = rewrite(runtime_test::random_model(config, at::kFloat));
  const Tensor rows = network.transformer->blocks[1].fc2.weight;
  to_panels(network);
  for (const Isa isa : kIsas) {
    if (!is_supported(isa)) continue;
    Network packed = network;
    std::atomic<size_t> not_needed = 0;
    pack(packed, kernels(isa), [&](const Tensor&) { ++not_needed; });
    size_t in_place = 0, products = 0;
    for_each_product(packed, [&](const std::string& name, Product& product) {
      if (!product.defined()) return;
      ++products;
      if (product.packed->weights.empty()) return;  // Winograd's
      const bool own = product.packed->weights[0].data == product.weight.const_data_ptr();
      EXPECT_EQ(own, product.in_panels && kernels(isa).reads_panels) << to_string(isa) << name;
      in_place += own;
    });
    EXPECT_EQ(in_place, isa >= Isa::kAvx512 ? 16 : 0) << to_string(isa);
    EXPECT_EQ(not_needed, products - in_place);
  }
  const Product& fc2 = network.transformer->blocks[1].fc2;
  EXPECT_EQ(fc2.n(), 256);
  EXPECT_EQ(fc2.channels(), 512);
  from_panels(network);
  EXPECT_TRUE(torch::equal(fc2.weight, rows));
}

TEST(FrozenModel, NormalisesPixels) {
  const std::string path = testing::TempDir() + "/frozen_pixels_test";
  const dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
  const dpt::FrozenModel frozen =
      dpt::freeze(model, {.mean = {0.25, 0.5, 0.75}, .std = {0.5, 1, 2}});
  const Tensor photographs = torch::randint(0, 256, {2, 64, 96, 3}, at::kByte);
  const Tensor mean = torch::tensor({0.25, 0.5, 0.75}), std = torch::tensor({0.5, 1.0, 2.0});
  const Tensor images = ((photographs / 255.0 - mean) / std).to(at::kFloat).permute({0, 3, 1, 2});
  const Tensor got = frozen(photographs.permute({0, 3, 1, 2})).depth;
  EXPECT_LT(error(got, frozen(images).depth), 1e-5);
  frozen.save(path);
  const dpt::FrozenModel loaded = dpt::FrozenModel::load(path);
  std::filesystem::remove(path);
  EXPECT_EQ(loaded.options().mean, frozen.options().mean);
  EXPECT_TRUE(torch::equal(loaded(photographs.permute({0, 3, 1, 2})).depth, got));
}

// One hidden channel is always 1000 and nobody listens: beside it int8 loses the others.
dpt::Model model_with_outlier() {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
  auto& mlp = std::get<dpt::ViT>(model.encoder.network).blocks[2].mlp;
  mlp.fc1.weight[5].zero_();
  mlp.fc1.bias[5] = 1000;
  mlp.fc2.weight.select(1, 5).zero_();
  mlp.fc2.weight *= 20;
  return model;
}

TEST(FrozenModel, LayerThatInt8HarmsStaysFloat32InTheFileToo) {
  const std::string path = testing::TempDir() + "/frozen_int8_test";
  const dpt::Model model = model_with_outlier();
  const Tensor images = torch::randn({2, 3, 64, 64});
  const dpt::FrozenModel frozen = dpt::freeze(model, {.dtype = at::kChar, .calibration = {images}});
  ASSERT_FALSE(frozen.fallbacks().empty());
  EXPECT_EQ(frozen.fallbacks().front(), "transformer.blocks.2.fc2");
  EXPECT_TRUE(frozen.options().calibration.empty());
  const Tensor want = dpt::freeze(model)(images).depth, got = frozen(images).depth;
  const double spread = (want.max() - want.min()).item<double>();
  const double error = (got - want).abs().mean().item<double>() / spread;
  EXPECT_GT(error, 0);
  EXPECT_LT(error, 0.01);
  frozen.save(path);
  const dpt::FrozenModel loaded = dpt::FrozenModel::load(path);
  std::filesystem::remove(path);
  EXPECT_EQ(loaded.options().dtype, at::kChar);
  EXPECT_EQ(loaded.fallbacks(), frozen.fallbacks());
  EXPECT_TRUE(torch::equal(loaded(images).depth, got));
}

TEST(FrozenModel, Int8NeedsImages) {
  const dpt::Model model = runtime_test::random_model(runtime_test::small(), at::kFloat);
  EXPECT_THROW(dpt::freeze(model, {.dtype = at::kChar}), c10::ValueError);
  const Tensor image = torch::zeros({1, 3, 64, 64});
  EXPECT_THROW(dpt::freeze(model, {.calibration = {image}}), c10::ValueError);
  EXPECT_THROW(dpt::freeze(model, {.dtype = at::kChar, .calibration = {image, image[0]}}),
               c10::ValueError);
}

TEST(Arena, IsOneBlockAfterTheFirstPass) {
  dpt::runtime::Arena arena;
  const auto pass = [&] {
    const dpt::runtime::Arena::Scope scope(arena);
    float* first = arena.floats(100);
    float* inner;
    {
      const dpt::runtime::Arena::Scope scope(arena);
      inner = arena.floats(1000);
      inner[999] = 1;
    }
    float* second = arena.floats(10);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 64, 0U);
    return std::pair{second - first, inner == second};
  };
  const std::pair want{ptrdiff_t{112}, true};  // 100 floats and 12 to align the next
  EXPECT_EQ(pass(), want);
  arena.settle();
  EXPECT_EQ(pass(), want);
}

TEST(Arena, TakesAgainWhatTheFirstPassGaveBack) {
  constexpr int64_t kLarge = int64_t{1} << 26;  // floats, more than a block
  dpt::runtime::Arena arena;
  const auto taken = [&] {
    const dpt::runtime::Arena::Scope scope(arena);
    const float* small = arena.floats(10);
    return std::pair<const float*, const float*>{small, arena.floats(kLarge)};
  };
  const auto first = taken();
  EXPECT_EQ(taken(), first);
  arena.settle();
  const auto [small, large] = taken();
  EXPECT_EQ(large - small, 16);  // one block
}

}  // namespace
