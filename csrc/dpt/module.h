// csrc/dpt/module.h -- the network as a torch::nn::Module, for C++ programs: to(), parameters(),
// train(), clone(), torch::optim, torch::save. It only owns the tensors; the forward pass is
// Model's.
#pragma once

#include <torch/torch.h>

#include "dpt/io/checkpoint.h"
#include "dpt/model.h"

namespace dpt {

class DPT_API DPTModelImpl : public torch::nn::Module {
 public:
  // Initialised as in the papers; torch::manual_seed decides the values. In train mode.
  explicit DPTModelImpl(const Config& config);
  // Takes the tensors of `model`.
  explicit DPTModelImpl(Model model);

  // images [B, 3, H, W], normalised as in training; H and W are multiples of the patch size.
  Output forward(const Tensor& images) const;

  const Config& config() const { return model_.config; }
  const Model& model() const { return model_; }

  // In training: keep only the inputs of the encoder's blocks for the backward pass.
  void set_activation_checkpointing(bool on) { checkpoint_ = on; }

  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  // Shares its tensors with the registered parameters, which torch::nn::Module changes in place.
  Model model_;
  bool checkpoint_ = false;
};
TORCH_MODULE(DPTModel);

// Reads a checkpoint file or folder, of our layout or of transformers. In eval mode.
DPT_API DPTModel load(const std::string& path);

// Writes `folder`/config.json and `folder`/model.safetensors.
DPT_API void save(const DPTModel& model, const std::string& folder,
                  Layout layout = Layout::kTorchdpt);

}  // namespace dpt
