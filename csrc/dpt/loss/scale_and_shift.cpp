// csrc/dpt/loss/scale_and_shift.cpp -- checks, CPU kernels, autograd, reductions, registration.
#include "dpt/loss/scale_and_shift.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "dpt/loss/maps.h"
#include "dpt/loss/scale_and_shift_math.h"

#ifdef DPT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "dpt/loss/scale_and_shift_cuda.h"
#endif

// Two operators hold the work: dpt::alignment_terms, the terms of each image as numerators and
// counts of pixels, and its gradient. What is divided by what is ATen, below.
namespace dpt::loss {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// --- dpt::alignment_terms ---

// sums, counts [B, 1 + num_scales], scale, shift [B]: float64; dropped [B]: int64; residual [B, H,
// W]: the maps' type; stats [B, kNumStats]: float64.
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Terms terms_of(int64_t alignment, int64_t data, bool published, int64_t trim_millionths,
               int64_t num_scales) {
  return {static_cast<Alignment>(alignment), static_cast<DataTerm>(data), published,
          trim_millionths, num_scales};
}

Results make_results(const Tensor& prediction, int64_t num_scales) {
  const auto doubles = prediction.options().dtype(at::kDouble);
  const auto B = prediction.sym_size(0);
  const auto rows = [&](int64_t columns) { return at::empty_symint({B, columns}, doubles); };
  return {rows(1 + num_scales),
          rows(1 + num_scales),
          at::empty_symint({B}, doubles),
          at::empty_symint({B}, doubles),
          at::empty_symint({B}, prediction.options().dtype(at::kLong)),
          at::empty_symint(prediction.sym_sizes(), prediction.options()),
          rows(kNumStats)};
}

Results alignment_terms_meta(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                             int64_t alignment, int64_t data, bool published,
                             int64_t trim_millionths, int64_t num_scales) {
  return make_results(prediction, num_scales);
}

Tensor alignment_terms_backward_meta(const Tensor& grad_sums, const Tensor& prediction,
                                     const Tensor& target, const Tensor& residual,
                                     const Tensor& stats, int64_t alignment, int64_t data,
                                     bool published) {
  return at::empty_symint(prediction.sym_sizes(), prediction.options());
}

// The operators' tensors as dense maps.
struct Maps {
  Tensor prediction, target;
  int64_t B, H, W;

  Maps(const Tensor& prediction_, const Tensor& target_)
      : prediction(prediction_.contiguous()),
        target(target_.contiguous()),
        B(prediction.size(0)),
        H(prediction.size(1)),
        W(prediction.size(2)) {
    // Ranks are counted in 32 bits.
    TORCH_CHECK_VALUE(prediction.numel() < int64_t{1} << 31,
                      "losses: a batch must have fewer than 2^31 pixels, got ", prediction.sizes());
  }
};

Results alignment_terms_cpu(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                            int64_t alignment, int64_t data, bool published,
                            int64_t trim_millionths, int64_t num_scales) {
  const Terms terms = terms_of(alignment, data, published, trim_millionths, num_scales);
  const Maps maps(prediction, target);
  const Tensor dense_mask = mask.contiguous();
  const Results results = make_results(maps.prediction, num_scales);
  const auto& [sums, counts, scale, shift, dropped, residual, stats] = results;
  const int64_t n = maps.H * maps.W;
  auto* all_stats = reinterpret_cast<Stats*>(stats.mutable_data_ptr<double>());
  const auto* valid = static_cast<const uint8_t*>(dense_mask.const_data_ptr());

  AT_DISPATCH_FLOATING_TYPES(prediction.scalar_type(), "alignment_terms", [&] {
    const auto* from = maps.prediction.const_data_ptr<scalar_t>();
    const auto* to = maps.target.const_data_ptr<scalar_t>();
    auto* rest = residual.mutable_data_ptr<scalar_t>();
    const auto for_each_image = [&](const auto& f) {
      at::parallel_for(0, maps.B, 1, [&](int64_t begin, int64_t end) {
        const Serial thread;
        for (int64_t b = begin; b < end; ++b) f(thread, b);
      });
    };
    for_each_image([&](const Serial& thread, int64_t b) {
      const Aligned aligned = align_and_subtract(thread, terms, n, from + b * n, to + b * n,
                                                 valid + b * n, all_stats[b], rest + b * n);
      scale.mutable_data_ptr<double>()[b] = aligned.scale;
      shift.mutable_data_ptr<double>()[b] = aligned.shift;
      dropped.mutable_data_ptr<int64_t>()[b] = aligned.dropped;
      if (terms.data == DataTerm::kTrimmed && !published) {
        trim(thread, trim_millionths, n, static_cast<int64_t>(all_stats[b].count), rest + b * n,
             all_stats[b]);
      }
    });
    if (terms.data == DataTerm::kTrimmed && published) {
      Stats batch = {};
      for (int64_t b = 0; b < maps.B; ++b) batch.count += all_stats[b].count;
      trim(Serial(), trim_millionths, maps.B * n, static_cast<int64_t>(batch.count), rest, batch);
      for (int64_t b = 0; b < maps.B; ++b) {
        all_stats[b].threshold = batch.threshold;
        all_stats[b].kept_at_threshold = batch.kept_at_threshold;
      }
    }
    for_each_image([&](const Serial& thread, int64_t b) {
      const int64_t row = b * (1 + num_scales);
      sum_terms(thread, terms, maps.H, maps.W, all_stats[b], rest + b * n,
                sums.mutable_data_ptr<double>() + row, counts.mutable_data_ptr<double>() + row);
    });
  });
  return results;
}

Tensor alignment_terms_backward_cpu(const Tensor& grad_sums, const Tensor& prediction,
                                    const Tensor& target, const Tensor& residual,
                                    const Tensor& stats, int64_t alignment, int64_t data,
                                    bool published) {
  const Tensor grads = grad_sums.contiguous();
  const Terms terms = terms_of(alignment, data, published, 0, grads.size(1) - 1);
  const Maps maps(prediction, target);
  const Tensor grad = at::empty_like(maps.prediction);
  const int64_t n = maps.H * maps.W;
  const auto* all_stats = reinterpret_cast<const Stats*>(stats.const_data_ptr<double>());
  AT_DISPATCH_FLOATING_TYPES(prediction.scalar_type(), "alignment_terms_backward", [&] {
    at::parallel_for(0, maps.B, 1, [&](int64_t begin, int64_t end) {
      const Serial thread;
      for (int64_t b = begin; b < end; ++b) {
        backward(thread, terms, maps.H, maps.W, grads.const_data_ptr<double>() + b * grads.size(1),
                 all_stats[b], maps.prediction.const_data_ptr<scalar_t>() + b * n,
                 maps.target.const_data_ptr<scalar_t>() + b * n,
                 residual.const_data_ptr<scalar_t>() + b * n,
                 grad.mutable_data_ptr<scalar_t>() + b * n);
      }
    });
  });
  return grad;
}

#ifdef DPT_WITH_CUDA
Results alignment_terms_cuda(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                             int64_t alignment, int64_t data, bool published,
                             int64_t trim_millionths, int64_t num_scales) {
  const c10::cuda::CUDAGuard guard(prediction.device());
  const Maps maps(prediction, target);
  const Tensor dense_mask = mask.contiguous();
  const Results results = make_results(maps.prediction, num_scales);
  const auto& [sums, counts, scale, shift, dropped, residual, stats] = results;
  if (maps.B == 0) return results;
  AT_DISPATCH_FLOATING_TYPES(prediction.scalar_type(), "alignment_terms", [&] {
    C10_CUDA_CHECK(launch_forward(
        terms_of(alignment, data, published, trim_millionths, num_scales), {maps.B, maps.H, maps.W},
        maps.prediction.const_data_ptr<scalar_t>(), maps.target.const_data_ptr<scalar_t>(),
        static_cast<const uint8_t*>(dense_mask.const_data_ptr()),
        residual.mutable_data_ptr<scalar_t>(),
        reinterpret_cast<Stats*>(stats.mutable_data_ptr<double>()),
        scale.mutable_data_ptr<double>(), shift.mutable_data_ptr<double>(),
        dropped.mutable_data_ptr<int64_t>(), sums.mutable_data_ptr<double>(),
        counts.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream()));
  });
  return results;
}

Tensor alignment_terms_backward_cuda(const Tensor& grad_sums, const Tensor& prediction,
                                     const Tensor& target, const Tensor& residual,
                                     const Tensor& stats, int64_t alignment, int64_t data,
                                     bool published) {
  const c10::cuda::CUDAGuard guard(prediction.device());
  const Tensor grads = grad_sums.contiguous();
  const Maps maps(prediction, target);
  const Tensor grad = at::empty_like(maps.prediction);
  if (maps.B == 0) return grad;
  AT_DISPATCH_FLOATING_TYPES(prediction.scalar_type(), "alignment_terms_backward", [&] {
    C10_CUDA_CHECK(
        launch_backward(terms_of(alignment, data, published, 0, grads.size(1) - 1),
                        {maps.B, maps.H, maps.W}, grads.const_data_ptr<double>(),
                        reinterpret_cast<const Stats*>(stats.const_data_ptr<double>()),
                        maps.prediction.const_data_ptr<scalar_t>(),
                        maps.target.const_data_ptr<scalar_t>(), residual.const_data_ptr<scalar_t>(),
                        grad.mutable_data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream()));
  });
  return grad;
}
#endif

Results call_terms(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                   const Terms& terms) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::alignment_terms", "")
                             .typed<decltype(alignment_terms_meta)>();
  return op.call(prediction, target, mask, static_cast<int64_t>(terms.alignment),
                 static_cast<int64_t>(terms.data), terms.published, terms.trim_millionths,
                 terms.num_scales);
}

Tensor call_backward(const Tensor& grad_sums, const Tensor& prediction, const Tensor& target,
                     const Tensor& residual, const Tensor& stats, int64_t alignment, int64_t data,
                     bool published) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::alignment_terms_backward", "")
                             .typed<decltype(alignment_terms_backward_meta)>();
  return op.call(grad_sums, prediction, target, residual, stats, alignment, data, published);
}

struct AlignmentTerms : torch::autograd::Function<AlignmentTerms> {
  static variable_list forward(AutogradContext* ctx, const Tensor& prediction, const Tensor& target,
                               const Tensor& mask, const Terms& terms) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [sums, counts, scale, shift, dropped, residual, stats] =
        call_terms(prediction, target, mask, terms);
    ctx->save_for_backward({prediction, target, residual, stats});
    ctx->set_materialize_grads(false);  // no zeros in place of gradients that there never are
    ctx->mark_non_differentiable({counts, scale, shift, dropped, residual, stats});
    ctx->saved_data["alignment"] = static_cast<int64_t>(terms.alignment);
    ctx->saved_data["data"] = static_cast<int64_t>(terms.data);
    ctx->saved_data["published"] = terms.published;
    return {sums, counts, scale, shift, dropped, residual, stats};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(4);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor grad = call_backward(
        grads[0], saved[0], saved[1], saved[2], saved[3], ctx->saved_data["alignment"].toInt(),
        ctx->saved_data["data"].toInt(), ctx->saved_data["published"].toBool());
    return {grad, {}, {}, {}};
  }
};

Results alignment_terms_autograd(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                                 int64_t alignment, int64_t data, bool published,
                                 int64_t trim_millionths, int64_t num_scales) {
  const variable_list r = AlignmentTerms::apply(
      prediction, target, mask, terms_of(alignment, data, published, trim_millionths, num_scales));
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
}

// Of the gradient there is no gradient.
struct AlignmentTermsBackward : torch::autograd::Function<AlignmentTermsBackward> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad_sums, const Tensor& prediction,
                        const Tensor& target, const Tensor& residual, const Tensor& stats,
                        int64_t alignment, int64_t data, bool published) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(grad_sums, prediction, target, residual, stats, alignment, data,
                         published);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "losses: double backward through a scale- and shift-invariant loss or gradient "
                "matching is not supported; take the first derivative alone");
  }
};

Tensor alignment_terms_backward_autograd(const Tensor& grad_sums, const Tensor& prediction,
                                         const Tensor& target, const Tensor& residual,
                                         const Tensor& stats, int64_t alignment, int64_t data,
                                         bool published) {
  return AlignmentTermsBackward::apply(grad_sums, prediction, target, residual, stats, alignment,
                                       data, published);
}

// --- losses: sums divided by counts ---

struct Weights {
  Reduction reduction;
  Definition definition;
  double alpha;
};

LossResult reduce(const char* name, const Tensor& prediction, const Tensor& target,
                  const Tensor& mask, const Terms& terms, const Weights& weights) {
  TORCH_CHECK(
      !in_torch_func(), name,
      ": transforms of torch.func (grad, vmap, ...) are not supported; use loss.backward() or "
      "torch.autograd.grad");
  const auto [from, to] = checked_maps(name, prediction, target, mask);
  const auto [sums, counts, scale, shift, dropped, residual, stats] =
      call_terms(from, to, mask, terms);

  // [1 + num_scales]: data term, gradient term at each scale.
  Tensor weight = at::full({1 + terms.num_scales}, weights.alpha, sums.options());
  weight.slice(0, 0, 1).fill_(0.5);  // data terms are divided by 2M
  const Tensor divisors =
      weights.definition == Definition::kPaper ? counts.slice(1, 0, 1).expand_as(counts) : counts;
  const Tensor per_image = (weight * sums / divisors.clamp_min(1)).sum(1);
  Tensor loss;
  if (weights.reduction == Reduction::kBatch) {
    loss = (weight * sums.sum(0) / divisors.sum(0).clamp_min(1)).sum();
  } else if (weights.definition == Definition::kPublished) {
    loss = per_image.sum() / std::max<c10::SymInt>(prediction.sym_size(0), 1);
  } else {
    loss = per_image.sum() / (dropped == kUsed).sum().clamp_min(1);
  }
  const auto type = from.scalar_type();
  return {loss.to(type), per_image.to(type), scale.to(type), shift.to(type), dropped};
}

// Whole millionths, so that the number of residuals that count is exact.
int64_t millionths(double trim) {
  TORCH_CHECK_VALUE(trim >= 0 && trim <= 1, "losses: trim must be in [0, 1], got ", trim);
  return std::llround(trim * 1e6);
}

int64_t checked_scales(int64_t scales) {
  TORCH_CHECK_VALUE(scales >= 0 && scales <= kMaxScales, "losses: scales must be in [0, ",
                    kMaxScales, "], got ", scales);
  return scales;
}

}  // namespace

LossResult scale_and_shift_invariant(const Tensor& prediction, const Tensor& target,
                                     const Tensor& mask, const ScaleAndShiftOptions& options) {
  TORCH_CHECK_VALUE(options.alpha >= 0 && std::isfinite(options.alpha),
                    "losses: alpha must be 0 or more, got ", options.alpha);
  const int64_t scales = checked_scales(options.scales);
  const Terms terms = {options.alignment, options.data,
                       options.definition == Definition::kPublished, millionths(options.trim),
                       options.alpha > 0 ? scales : 0};
  return reduce("scale_and_shift_invariant", prediction, target, mask, terms,
                {options.reduction, options.definition, options.alpha});
}

LossResult gradient_matching(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                             const GradientMatchingOptions& options) {
  const Terms terms = {Alignment::kNone, DataTerm::kNone, false, 0, checked_scales(options.scales)};
  return reduce("gradient_matching", prediction, target, mask, terms,
                {options.reduction, options.definition, 1});
}

AlignmentResult align(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                      Alignment mode) {
  const auto [from, to] = checked_maps("align", prediction.detach(), target.detach(), mask);
  const Results results = call_terms(from, to, mask, {mode, DataTerm::kNone, false, 0, 0});
  return {std::get<2>(results).to(from.scalar_type()), std::get<3>(results).to(from.scalar_type()),
          std::get<4>(results)};
}

// --- operators ---

namespace {

using Losses = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr Words<Alignment, 2> kAlignments = {
    {{"robust", Alignment::kRobust}, {"least_squares", Alignment::kLeastSquares}}};
constexpr Words<DataTerm, 3> kDataTerms = {
    {{"trimmed", DataTerm::kTrimmed}, {"mae", DataTerm::kAbsolute}, {"mse", DataTerm::kSquared}}};
constexpr Words<Definition, 3> kDefinitions = {{{"recommended", Definition::kRecommended},
                                                {"paper", Definition::kPaper},
                                                {"published", Definition::kPublished}}};

Losses as_tuple(const LossResult& result) {
  return {result.loss, result.per_image, result.scale, result.shift, result.dropped};
}

Losses scale_and_shift_invariant_op(const Tensor& prediction, const Tensor& target,
                                    const Tensor& mask, c10::string_view alignment,
                                    c10::string_view data, double trim, double alpha,
                                    int64_t scales, c10::string_view reduction,
                                    c10::string_view definition) {
  return as_tuple(
      scale_and_shift_invariant(prediction, target, mask,
                                {.alignment = find("alignment", kAlignments, alignment),
                                 .data = find("data", kDataTerms, data),
                                 .trim = trim,
                                 .alpha = alpha,
                                 .scales = scales,
                                 .reduction = find("reduction", kReductions, reduction),
                                 .definition = find("definition", kDefinitions, definition)}));
}

Losses gradient_matching_op(const Tensor& prediction, const Tensor& target, const Tensor& mask,
                            int64_t scales, c10::string_view reduction,
                            c10::string_view definition) {
  return as_tuple(gradient_matching(prediction, target, mask,
                                    {.scales = scales,
                                     .reduction = find("reduction", kReductions, reduction),
                                     .definition = find("definition", kDefinitions, definition)}));
}

std::tuple<Tensor, Tensor, Tensor> align_op(const Tensor& prediction, const Tensor& target,
                                            const Tensor& mask, c10::string_view mode) {
  const auto result = align(prediction, target, mask, find("mode", kAlignments, mode));
  return {result.scale, result.shift, result.dropped};
}

}  // namespace

// --- registration ---

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "alignment_terms(Tensor prediction, Tensor target, Tensor mask, int alignment, int data, "
      "bool published, int trim_millionths, int num_scales) -> (Tensor sums, Tensor counts, Tensor "
      "scale, Tensor shift, Tensor dropped, Tensor residual, Tensor stats)");
  m.def(
      "alignment_terms_backward(Tensor grad_sums, Tensor prediction, Tensor target, Tensor "
      "residual, Tensor stats, int alignment, int data, bool published) -> Tensor");
  m.def(
      "scale_and_shift_invariant(Tensor prediction, Tensor target, Tensor mask, *, str "
      "alignment=\"robust\", str data=\"trimmed\", float trim=0.2, float alpha=0.5, int scales=4, "
      "str reduction=\"image\", str definition=\"recommended\") -> (Tensor loss, Tensor per_image, "
      "Tensor scale, Tensor shift, Tensor dropped)",
      scale_and_shift_invariant_op);
  m.def(
      "gradient_matching(Tensor prediction, Tensor target, Tensor mask, *, int scales=4, str "
      "reduction=\"image\", str definition=\"recommended\") -> (Tensor loss, Tensor per_image, "
      "Tensor scale, Tensor shift, Tensor dropped)",
      gradient_matching_op);
  m.def(
      "align(Tensor prediction, Tensor target, Tensor mask, *, str mode=\"robust\") -> (Tensor "
      "scale, Tensor shift, Tensor dropped)",
      align_op);
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) {
  m.impl("alignment_terms", alignment_terms_cpu);
  m.impl("alignment_terms_backward", alignment_terms_backward_cpu);
}
#ifdef DPT_WITH_CUDA
TORCH_LIBRARY_IMPL(dpt, CUDA, m) {
  m.impl("alignment_terms", alignment_terms_cuda);
  m.impl("alignment_terms_backward", alignment_terms_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(dpt, Meta, m) {
  m.impl("alignment_terms", alignment_terms_meta);
  m.impl("alignment_terms_backward", alignment_terms_backward_meta);
}
TORCH_LIBRARY_IMPL(dpt, Autograd, m) {
  m.impl("alignment_terms", alignment_terms_autograd);
  m.impl("alignment_terms_backward", alignment_terms_backward_autograd);
}

}  // namespace dpt::loss
