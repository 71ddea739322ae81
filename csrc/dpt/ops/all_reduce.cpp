#include "dpt/ops/all_reduce.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// torch.distributed's functional collectives, which torch.compile traces, too. Boxed: the type of
// the group's name is another in each release.
Tensor call(const char* name, torch::jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  return stack.at(0).toTensor();
}

Tensor sum(const Tensor& x, const std::string& process_group) {
  try {
    return call("_c10d_functional::wait_tensor",
                {call("_c10d_functional::all_reduce", {x.contiguous(), "sum", process_group})});
  } catch (const c10::Error& error) {
    const std::string_view message = error.what_without_backtrace();
    TORCH_CHECK_VALUE(message.find("resolve the process group") == message.npos,
                      "batch_norm_group: there is no process group '", process_group,
                      "' in this process; set it with model.synchronize_batch_norm(group), after "
                      "torch.distributed.init_process_group, or to \"\"");
    throw;
  }
}

struct AllReduceSum : torch::autograd::Function<AllReduceSum> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::string& process_group) {
    ctx->saved_data["process_group"] = process_group;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return sum(x, process_group);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {all_reduce_sum(grads[0], ctx->saved_data["process_group"].toStringRef()), {}};
  }
};

}  // namespace

Tensor all_reduce_sum(const Tensor& x, const std::string& process_group) {
  const bool wants_gradient = at::GradMode::is_enabled() && x.requires_grad();
  return wants_gradient ? AllReduceSum::apply(x, process_group) : sum(x, process_group);
}

}  // namespace dpt
