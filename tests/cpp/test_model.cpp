#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "dpt/io/encoder_weights.h"
#include "dpt/io/safetensors.h"
#include "dpt/module.h"
#include "runtime_networks.h"

namespace {

using runtime_test::small;

// Depth and segmentation on each kind of encoder.
std::vector<dpt::Config> small_family() {
  dpt::Config vit = small();
  vit.num_classes = 5;
  vit.fusion_norm = dpt::FusionNorm::kBatch;
  vit.auxiliary_head = dpt::AuxiliaryHead::kPenultimate;
  dpt::Config hybrid = vit;
  hybrid.encoder = dpt::EncoderKind::kHybrid;
  hybrid.conv_levels = 2;
  hybrid.stage_depths = {1, 1, 1, 0};
  hybrid.channels = {256, 512, 16, 16};
  dpt::Config resnet = vit;
  resnet.encoder = dpt::EncoderKind::kResNet;
  resnet.conv_levels = 4;
  resnet.stage_depths = {1, 1, 1, 1};
  resnet.group_width = 8;
  resnet.channels = {256, 512, 1024, 2048};
  resnet.fusion_project = false;
  return {vit, hybrid, resnet};
}

struct TemporaryFolder {
  std::filesystem::path path = std::filesystem::path(testing::TempDir()) /
                               testing::UnitTest::GetInstance()->current_test_info()->name();
  TemporaryFolder() { std::filesystem::remove_all(path); }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

// The same bits in every tensor. The maps may differ in their last places: a matrix product may sum
// in another order where a file maps its tensors to other alignments.
void expect_same_model(const dpt::DPTModel& model, const dpt::DPTModel& loaded,
                       const at::Tensor& images) {
  const auto same = [](const auto& ours, const auto& theirs) {
    ASSERT_EQ(ours.size(), theirs.size());
    for (const auto& item : ours)
      EXPECT_TRUE(torch::equal(item.value(), theirs[item.key()])) << item.key();
  };
  same(model->named_parameters(), loaded->named_parameters());
  same(model->named_buffers(), loaded->named_buffers());
  const at::NoGradGuard no_grad;
  const dpt::Output ours = model->forward(images), theirs = loaded->forward(images);
  const auto close = [](const at::Tensor& a, const at::Tensor& b) {
    ASSERT_EQ(a.defined(), b.defined());
    if (a.defined()) {
      EXPECT_LE((a - b).abs().max().item<float>(), 1e-5f * a.abs().max().item<float>());
    }
  };
  close(ours.depth, theirs.depth);
  close(ours.logits, theirs.logits);
}

TEST(Config, JsonRoundTripIsCanonical) {
  for (const std::string& name : dpt::preset_names()) {
    const dpt::Config config = dpt::Config::preset(name);
    EXPECT_EQ(dpt::Config::from_json(config.to_json()), config);
    EXPECT_EQ(dpt::Config::from_json(config.to_json(2)).to_json(), config.to_json());
  }
}

TEST(Config, RefusesFieldsThatDoNotFitEachOther) {
  const auto message = [](auto change) {
    dpt::Config config;
    change(config);
    try {
      config.check();
    } catch (const c10::ValueError& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("accepted");
  };
  EXPECT_NE(message([](auto& c) { c.heads = 5; }).find("multiple of heads 5"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.taps = {2, 5, 5, 11}; }).find("ascending"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.strides = {4, 8, 12, 32}; }).find("patch_size 16"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.image_size = 385; }).find("got 385"), std::string::npos);
}

TEST(Model, NamesEachTensorOnce) {
  dpt::Model model(small());
  std::set<std::string> names;
  size_t count = 0;
  dpt::for_each_tensor(model, [&](const std::string& name, dpt::Tensor&, const dpt::TensorInfo&) {
    names.insert(name);
    ++count;
  });
  EXPECT_EQ(names.size(), count);
  EXPECT_TRUE(names.contains("encoder.blocks.3.attn.qkv.weight"));
  EXPECT_TRUE(names.contains("reassemble.0.read.project.weight"));
  EXPECT_TRUE(names.contains("fusion.2.unit1.conv2.bias"));
  EXPECT_FALSE(names.contains("fusion.3.unit1.conv1.weight")) << "the coarsest level has no unit1";
}

TEST(Model, RefusesTheWrongNumberOfTensors) {
  dpt::Model model(small());
  const std::vector<dpt::Tensor> one{torch::zeros({1})};
  EXPECT_THROW(dpt::bind(model, one, {}, "test"), c10::ValueError);
}

TEST(DPTModel, ForwardGivesNonNegativeDepthOfTheImagesSize) {
  torch::manual_seed(0);
  dpt::DPTModel model(small());
  const torch::Tensor depth = model->forward(torch::randn({2, 3, 64, 96})).depth;
  EXPECT_EQ(depth.sizes(), (std::vector<int64_t>{2, 64, 96}));
  EXPECT_GE(depth.min().item<float>(), 0);
  EXPECT_GT(depth.max().item<float>(), 0);
}

TEST(DPTModel, ToChangesWhatForwardUses) {
  dpt::DPTModel model(small());
  model->to(torch::kDouble);
  EXPECT_EQ(model->forward(torch::randn({1, 3, 64, 64}, torch::kDouble)).depth.scalar_type(),
            torch::kDouble);
}

TEST(DPTModel, CloneIsIndependent) {
  dpt::DPTModel model(small());
  model->eval();
  const auto copy = std::dynamic_pointer_cast<dpt::DPTModelImpl>(model->clone());
  const torch::Tensor images = torch::randn({1, 3, 64, 64});
  EXPECT_FALSE(copy->is_training());
  EXPECT_TRUE(copy->parameters()[0].requires_grad());
  EXPECT_TRUE(torch::equal(copy->forward(images).depth, model->forward(images).depth));
  const torch::NoGradGuard no_grad;
  for (auto& parameter : copy->parameters()) parameter.add_(0.1);
  EXPECT_FALSE(torch::equal(copy->parameters()[0], model->parameters()[0]));
}

TEST(DPTModel, CheckpointedGradientsAreTheSame) {
  torch::manual_seed(0);
  dpt::DPTModel model(small());
  const torch::Tensor images = torch::randn({1, 3, 64, 64});
  const auto gradients = [&](bool checkpoint) {
    model->set_activation_checkpointing(checkpoint);
    return torch::autograd::grad({model->forward(images).depth.sum()}, model->parameters());
  };
  const auto plain = gradients(false), checkpointed = gradients(true);
  // The gradients of a residual branch are summed in another order: some units in the last place of
  // the largest.
  float largest = 0;
  for (const torch::Tensor& grad : plain)
    largest = std::max(largest, grad.abs().max().item<float>());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_LE((plain[i] - checkpointed[i]).abs().max().item<float>(), 1e-6f * largest) << i;
  }
}

TEST(DPTModel, SaveAndLoadGiveTheSameBits) {
  const TemporaryFolder folder;
  dpt::Config config = small();
  config.head_features = 32;  // as in transformers
  config.fusion_norm = dpt::FusionNorm::kBatch;
  dpt::DPTModel model(config);
  model->forward(torch::randn({2, 3, 64, 64}));  // moves the running statistics
  model->eval();
  const torch::Tensor images = torch::randn({1, 3, 96, 64});
  for (const dpt::Layout layout : {dpt::Layout::kTorchdpt, dpt::Layout::kTransformers}) {
    dpt::save(model, folder.path.string(), layout);
    dpt::DPTModel loaded = dpt::load(folder.path.string());
    EXPECT_EQ(loaded->config(), config);
    expect_same_model(model, loaded, images);
  }
}

TEST(DPTModel, TorchArchivesRoundTrip) {
  dpt::DPTModel model(small()), other(small());
  std::stringstream stream;
  torch::save(model, stream);
  torch::load(other, stream);
  const torch::Tensor images = torch::randn({1, 3, 64, 64});
  EXPECT_TRUE(torch::equal(other->forward(images).depth, model->forward(images).depth));
}

TEST(DPTModel, SeedDecidesTheFirstValues) {
  torch::manual_seed(1);
  const dpt::DPTModel first(small());
  torch::manual_seed(1);
  const dpt::DPTModel second(small());
  const dpt::DPTModel third(small());
  EXPECT_TRUE(torch::equal(first->parameters()[0], second->parameters()[0]));
  EXPECT_FALSE(torch::equal(first->parameters()[0], third->parameters()[0]));
}

std::map<std::string, dpt::Tensor> isl_org_tensors(const dpt::Config& config) {
  dpt::Model model(config);
  dpt::initialize(model);
  const dpt::NamedTensors named = dpt::named_tensors(model, dpt::Layout::kIslOrg);
  return {named.tensors.begin(), named.tensors.end()};
}

dpt::Config small_published() {
  return {.image_size = 32,
          .width = 64,
          .heads = 1,
          .mlp_width = 32,
          .channels = {8, 8, 8, 8},
          .features = 8};
}

TEST(Checkpoint, RecognizesIslOrgByNamesAndShapes) {
  for (const bool distilled : {false, true}) {
    dpt::Config config = small_published();
    config.distilled = distilled;
    config.fusion_norm = distilled ? dpt::FusionNorm::kBatch : dpt::FusionNorm::kNone;
    const auto tensors = isl_org_tensors(config);
    const dpt::Checkpoint checkpoint = dpt::recognize(tensors, "x.pt");
    EXPECT_EQ(checkpoint.model.config, config);
    EXPECT_EQ(checkpoint.layout, dpt::Layout::kIslOrg);
    // norm and head; two convolutions of unit 1, with the seven tensors of batch normalisation less
    // the bias
    EXPECT_EQ(checkpoint.ignored.size(), distilled ? 2 + 4 + 2 * (1 + 5) : 2 + 2 + 4);
    EXPECT_TRUE(checkpoint.model.head.depth->conv1.weight.equal(
        tensors.at("scratch.output_conv.0.weight")));
    EXPECT_TRUE(checkpoint.model.head.depth->conv1.weight.requires_grad());
  }
}

TEST(Checkpoint, RecognizesSafetensorsOfIslOrgWithoutConfig) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.path);
  const auto tensors = isl_org_tensors(small_published());
  const std::string path = (folder.path / "model.safetensors").string();
  dpt::write_safetensors(path, {tensors.begin(), tensors.end()}, {});
  EXPECT_EQ(dpt::load_checkpoint(path).model.config, small_published());
  EXPECT_EQ(dpt::load_checkpoint(folder.path.string()).layout, dpt::Layout::kIslOrg);
}

TEST(Checkpoint, EveryEncoderAndHeadIsSavedAndLoaded) {
  const TemporaryFolder folder;
  for (const dpt::Config& config : small_family()) {
    dpt::DPTModel model(config);
    model->eval();
    dpt::save(model, folder.path.string());
    dpt::DPTModel loaded = dpt::load(folder.path.string());
    const at::NoGradGuard no_grad;
    const at::Tensor images = at::rand({1, 3, 64, 96});
    expect_same_model(model, loaded, images);
    const dpt::Output ours = model->forward(images);
    EXPECT_EQ(ours.logits.sizes(), at::IntArrayRef({1, 5, 64, 96}));
    EXPECT_FALSE(ours.aux_logits.defined());
    model->train();
    EXPECT_EQ(model->forward(at::rand({2, 3, 64, 64})).aux_logits.sizes(),
              at::IntArrayRef({2, 5, 16, 16}));
  }
}

TEST(Checkpoint, EncoderAloneIsTakenFromAnotherModel) {
  const TemporaryFolder folder;
  for (const dpt::Config& config : small_family()) {
    dpt::DPTModel trained(config);
    dpt::save(trained, folder.path.string());
    dpt::Model model(config);
    dpt::initialize(model);
    const at::Tensor before = model.head.depth->conv1.weight.clone();
    dpt::load_encoder(model, folder.path.string());
    const auto wanted = trained->named_parameters();
    dpt::for_each_tensor(
        model.encoder,
        [&](const std::string& name, at::Tensor& tensor, const dpt::TensorInfo& info) {
          if (info.role == dpt::Role::kParameter) {
            EXPECT_TRUE(tensor.equal(wanted[name])) << name;
          }
        },
        "encoder.");
    EXPECT_TRUE(model.head.depth->conv1.weight.equal(before));
  }
}

TEST(Checkpoint, NamesTheNetworkThatItDoesNotHave) {
  auto tensors = isl_org_tensors(small_published());
  tensors.emplace("pretrained.model.patch_embed.backbone.stem.conv.weight", at::zeros({1}));
  EXPECT_THROW(dpt::recognize(tensors, "x.pt"), c10::ValueError);
  EXPECT_THROW(dpt::recognize({{"a", at::zeros({1})}}, "x.pt"), c10::ValueError);
  EXPECT_THROW(dpt::recognize({}, "x.pt"), c10::ValueError);
}

TEST(Checkpoint, IslOrgFilesAreWrittenByPython) {
  const TemporaryFolder folder;
  dpt::Model model(small_published());
  dpt::initialize(model);
  EXPECT_THROW(dpt::save_checkpoint(model, folder.path.string(), dpt::Layout::kIslOrg),
               c10::ValueError);
  EXPECT_FALSE(std::filesystem::exists(folder.path));
}

}  // namespace
