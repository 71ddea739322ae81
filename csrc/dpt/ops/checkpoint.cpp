#include "dpt/ops/checkpoint.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <optional>

namespace dpt {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The state of autocast at one time.
struct AutocastState {
  explicit AutocastState(at::DeviceType device) : device(device) {
    if (!at::autocast::is_autocast_available(device)) return;  // the meta device
    enabled = at::autocast::is_autocast_enabled(device);
    dtype = at::autocast::get_autocast_dtype(device);
  }

  at::DeviceType device;
  bool enabled = false;
  std::optional<at::ScalarType> dtype;  // none where the device knows no autocast

  // f() in this state. Like Python's `with torch.autocast`, the outermost scope drops the casts
  // that were cached in it.
  template <class F>
  auto run(F&& f) const {
    struct Restore {
      AutocastState before;
      ~Restore() {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        before.apply();
      }
    } restore{AutocastState(device)};
    at::autocast::increment_nesting();
    apply();
    return f();
  }

 private:
  void apply() const {
    if (!dtype) return;
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, *dtype);
  }
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `inputs` is a TensorList: autograd does not see the tensors of a std::vector.
  static Tensor forward(AutogradContext* ctx, const std::shared_ptr<Segment>& segment,
                        const AutocastState& autocast, at::TensorList inputs) {
    ctx->save_for_backward(inputs.vec());
    ctx->saved_data["segment"] =
        c10::IValue::make_capsule(c10::make_intrusive<Saved>(segment, autocast));
    return (*segment)(inputs[0], inputs.slice(1));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "checkpoint: a second derivative (create_graph=True) through checkpointed blocks is not "
        "supported; switch activation checkpointing off and, since PyTorch's fused attention "
        "has none either, compute under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)");
    const auto saved = ctx->saved_data["segment"].toCapsule();
    const auto& state = static_cast<const Saved&>(*saved);
    // Detached copies: the recomputed graph ends here, and gradients leave through the return
    // value. Running backward() inside would accumulate them behind the back of
    // DistributedDataParallel.
    variable_list inputs;
    variable_list wanted;
    for (const Tensor& variable : ctx->get_saved_variables()) {
      inputs.push_back(variable.detach().requires_grad_(variable.requires_grad()));
      if (variable.requires_grad()) wanted.push_back(inputs.back());
    }
    const Tensor output = [&] {
      const at::AutoGradMode with_grad(true);
      return state.autocast.run(
          [&] { return (*state.segment)(inputs[0], at::TensorList(inputs).slice(1)); });
    }();
    const variable_list grads = torch::autograd::grad({output}, wanted, grad_outputs,
                                                      /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false,
                                                      /*allow_unused=*/true);
    // One for the segment, one for the autocast state, then one for each input.
    variable_list result(2);
    size_t next = 0;
    for (const Tensor& input : inputs) {
      result.push_back(input.requires_grad() ? grads[next++] : Tensor());
    }
    return result;
  }

 private:
  struct Saved : torch::CustomClassHolder {
    Saved(std::shared_ptr<Segment> segment, AutocastState autocast)
        : segment(std::move(segment)), autocast(autocast) {}
    std::shared_ptr<Segment> segment;
    AutocastState autocast;
  };
};

}  // namespace

Tensor checkpoint(Segment segment, const Tensor& x, at::TensorList parameters) {
  if (in_torch_func()) return segment(x, parameters);
  variable_list inputs{x};
  inputs.insert(inputs.end(), parameters.begin(), parameters.end());
  return Checkpoint::apply(std::make_shared<Segment>(std::move(segment)),
                           AutocastState(x.device().type()), at::TensorList(inputs));
}

}  // namespace dpt
