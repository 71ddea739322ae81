#include "dpt/ops/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kFused = 1;  // of at::_fused_sdp_choice: the flash attention of this device

struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v);
    ctx->save_for_backward({q, k, v, out, logsumexp});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const auto wide = [](const Tensor& t) { return t.to(at::kFloat); };
    const auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        wide(grads[0]), wide(saved[0]), wide(saved[1]), wide(saved[2]), wide(saved[3]), saved[4],
        /*dropout_p=*/0, /*is_causal=*/false);
    const at::ScalarType dtype = saved[0].scalar_type();
    return {q.to(dtype), k.to(dtype), v.to(dtype)};
  }
};

}  // namespace

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) {
  const bool own = q.is_cpu() && at::isReducedFloatingType(q.scalar_type()) && wants_gradient(q) &&
                   !traced(q) && at::_fused_sdp_choice(q, k, v) == kFused;
  return own ? FusedAttention::apply(q, k, v) : at::scaled_dot_product_attention(q, k, v);
}

}  // namespace dpt
