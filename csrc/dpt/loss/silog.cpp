#include "dpt/loss/silog.h"

#include <torch/library.h>

#include "dpt/loss/maps.h"

namespace dpt::loss {
namespace {

constexpr double kSmallest = 1e-6;

// factor * sqrt(variance + mean_share * mean^2), or without the root.
struct Formula {
  double mean_share;
  double factor;
  bool root;
  bool unbiased;
};

Formula formula_of(SilogVariant variant) {
  switch (variant) {
    case SilogVariant::kEigen:
      return {0.5, 1, false, false};
    case SilogVariant::kBts:
      return {0.15, 10, true, false};
    case SilogVariant::kAdabins:
      return {0.15, 10, true, true};
    case SilogVariant::kDepthAnything:
      return {0.5, 1, true, false};
  }
  TORCH_INTERNAL_ASSERT(false);
}

// d [..., n] where `valid`, over the last dimension; 0 where nothing is valid.
Tensor value(const Formula& formula, const Tensor& d, const Tensor& valid) {
  const Tensor n = valid.sum(-1, /*keepdim=*/true).clamp_min(1).to(d.scalar_type());
  const Tensor mean = d.sum(-1, true) / n;
  const Tensor squares = at::where(valid, d - mean, 0).square().sum(-1, true);
  const Tensor variance = squares / (formula.unbiased ? (n - 1).clamp_min(1) : n);
  const Tensor x = (variance + formula.mean_share * mean.square()).squeeze(-1);
  if (!formula.root) return x;
  const Tensor positive = x > 0;
  return formula.factor * at::where(positive, at::where(positive, x, 1).sqrt(), 0);
}

}  // namespace

LossResult silog(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                 const SilogOptions& options) {
  const auto [from, to] = checked_maps("silog", prediction, target, mask);
  const Formula formula = formula_of(options.variant);
  const Reduction reduction = options.reduction.value_or(
      options.variant == SilogVariant::kEigen ? Reduction::kImage : Reduction::kBatch);
  const Tensor p = from.flatten(1).to(at::kDouble), t = to.flatten(1).to(at::kDouble);
  const Tensor inside = mask.flatten(1);
  const Tensor bad = inside & ~(at::isfinite(p) & at::isfinite(t) & (t > 0));
  const Tensor empty = ~inside.any(1), not_finite = bad.any(1);
  const Tensor dropped = empty.to(at::kLong) * kEmpty + not_finite.to(at::kLong) * kNotFinite;
  const Tensor valid = inside & ~not_finite.unsqueeze(1);

  const Tensor d = at::where(valid, p, 1).clamp_min(kSmallest).log() - at::where(valid, t, 1).log();
  const Tensor per_image = value(formula, d, valid);
  const Tensor loss = reduction == Reduction::kBatch
                          ? value(formula, d.flatten(), valid.flatten())
                          : per_image.sum() / (dropped == kUsed).sum().clamp_min(1);
  const auto type = from.scalar_type();
  const Tensor scale = at::ones_like(per_image, from.options());
  return {loss.to(type), per_image.to(type), scale, at::zeros_like(scale), dropped};
}

namespace {

constexpr Words<SilogVariant, 4> kVariants = {{{"eigen", SilogVariant::kEigen},
                                               {"bts", SilogVariant::kBts},
                                               {"adabins", SilogVariant::kAdabins},
                                               {"depth_anything", SilogVariant::kDepthAnything}}};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> silog_op(
    const Tensor& prediction, const Tensor& target, const Tensor& mask, c10::string_view variant,
    std::optional<c10::string_view> reduction) {
  SilogOptions options{.variant = find("variant", kVariants, variant)};
  if (reduction) options.reduction = find("reduction", kReductions, *reduction);
  const LossResult r = silog(prediction, target, mask, options);
  return {r.loss, r.per_image, r.scale, r.shift, r.dropped};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "silog(Tensor prediction, Tensor target, Tensor mask, *, str variant=\"eigen\", str? "
      "reduction=None) -> (Tensor loss, Tensor per_image, Tensor scale, Tensor shift, Tensor "
      "dropped)",
      silog_op);
}

}  // namespace dpt::loss
