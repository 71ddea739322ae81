#include "dpt/module.h"

namespace dpt {

namespace {

Model initialized(const Config& config) {
  Model model(config);
  initialize(model);
  return model;
}

// Names of torch::nn::Module have no dots: every dot of ours becomes a submodule, which holds
// tensors only.
void register_tensor(torch::nn::Module& root, const std::string& name, const Tensor& tensor,
                     Role role) {
  torch::nn::Module* holder = &root;
  size_t begin = 0;
  for (size_t dot; (dot = name.find('.', begin)) != std::string::npos; begin = dot + 1) {
    const std::string part = name.substr(begin, dot - begin);
    const auto children = holder->named_children();
    const auto* child = children.find(part);
    holder = child ? child->get()
                   : holder->register_module(part, std::make_shared<torch::nn::Module>(part)).get();
  }
  if (role == Role::kBuffer) {
    holder->register_buffer(name.substr(begin), tensor);
  } else {
    holder->register_parameter(name.substr(begin), tensor);
  }
}

}  // namespace

DPTModelImpl::DPTModelImpl(const Config& config) : DPTModelImpl(initialized(config)) {}

DPTModelImpl::DPTModelImpl(Model model) : torch::nn::Module("DPTModel"), model_(std::move(model)) {
  for_each_tensor(model_, [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
    register_tensor(*this, name, tensor, info.role);
  });
}

Output DPTModelImpl::forward(const Tensor& images) const {
  return model_(images, is_training(), checkpoint_ && at::GradMode::is_enabled());
}

std::shared_ptr<torch::nn::Module> DPTModelImpl::clone(
    const std::optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  Model copy = model_;
  for_each_tensor(copy, [&](const std::string&, Tensor& tensor, const TensorInfo&) {
    const bool requires_grad = tensor.requires_grad();
    tensor = tensor.detach().to(device.value_or(tensor.device()), tensor.scalar_type(),
                                /*non_blocking=*/false, /*copy=*/true);
    tensor.set_requires_grad(requires_grad);
  });
  auto cloned = std::make_shared<DPTModelImpl>(std::move(copy));
  cloned->train(is_training());
  cloned->checkpoint_ = checkpoint_;
  return cloned;
}

DPTModel load(const std::string& path) {
  DPTModel model(load_checkpoint(path).model);
  model->eval();
  return model;
}

void save(const DPTModel& model, const std::string& folder, Layout layout) {
  save_checkpoint(model->model(), folder, layout);
}

}  // namespace dpt
