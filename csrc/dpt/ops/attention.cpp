#include "dpt/ops/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"
#include "dpt/ops/runtime.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kFused = 1;  // of at::_fused_sdp_choice: the flash attention of this device

const uint16_t* halves(const Tensor& tensor) {
  return static_cast<const uint16_t*>(tensor.const_data_ptr());
}

// `out` and its gradient are [B, heads, L, d], as ATen has them.
Tensor grad_in_tiles(const Tensor& packed, const Tensor& out, const Tensor& logsumexp,
                     const Tensor& grad_out) {
  const auto by_tokens = [](const Tensor& x) { return x.transpose(1, 2).contiguous(); };
  const Tensor qkv = packed.contiguous(), values = by_tokens(out), grads = by_tokens(grad_out);
  const Tensor sums = logsumexp.contiguous();
  Tensor grad = at::empty_like(qkv);
  const runtime::AttentionGradient work{
      .qkv = halves(qkv),
      .out = halves(values),
      .grad_out = halves(grads),
      .logsumexp = sums.const_data_ptr<float>(),
      .batch = qkv.size(0),
      .tokens = qkv.size(1),
      .heads = qkv.size(3),
      .head_dim = qkv.size(4),
      .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(qkv.size(4)))),
      .grad = static_cast<uint16_t*>(grad.mutable_data_ptr())};
  execute(runtime_kernels().attention_gradient, work);
  return grad;
}

Tensor grad_in_float32(const Tensor& packed, const Tensor& out, const Tensor& logsumexp,
                       const Tensor& grad_out) {
  const auto heads = split_heads(packed.to(at::kFloat));
  const auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grad_out.to(at::kFloat), heads[0], heads[1], heads[2], out.to(at::kFloat), logsumexp,
      /*dropout_p=*/0, /*is_causal=*/false);
  return at::stack({q, k, v}).permute({1, 3, 0, 2, 4}).to(packed.scalar_type());
}

struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& packed) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto heads = split_heads(packed);
    auto [out, logsumexp] =
        at::_scaled_dot_product_flash_attention_for_cpu(heads[0], heads[1], heads[2]);
    ctx->save_for_backward({packed, out, logsumexp});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &packed = saved[0], &out = saved[1], &logsumexp = saved[2];
    const bool tiles = packed.scalar_type() == at::kBFloat16 && !at::GradMode::is_enabled() &&
                       !traced(grads[0]) && runtime_kernels().attention_gradient.run != nullptr;
    return {(tiles ? grad_in_tiles : grad_in_float32)(packed, out, logsumexp, grads[0])};
  }
};

}  // namespace

std::vector<Tensor> split_heads(const Tensor& packed) {
  return packed.permute({2, 0, 3, 1, 4}).unbind(0);
}

Tensor attend(const Tensor& packed) {
  const auto heads = split_heads(packed);
  const bool own = packed.is_cpu() && at::isReducedFloatingType(packed.scalar_type()) &&
                   wants_gradient(packed) && !traced(packed) &&
                   at::_fused_sdp_choice(heads[0], heads[1], heads[2]) == kFused;
  const Tensor mixed = own ? FusedAttention::apply(packed)
                           : at::scaled_dot_product_attention(heads[0], heads[1], heads[2]);
  return mixed.transpose(1, 2).flatten(2);  // [B, heads, L, d] -> [B, L, heads * d]
}

}  // namespace dpt
