// csrc/dpt/ops/upsample_conv2d.cpp -- dpt::upsample_conv2d: CPU kernels, checks, autograd,
// registration.
#include "dpt/ops/upsample_conv2d.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "dpt/ops/autocast.h"
#include "dpt/ops/form.h"
#include "dpt/ops/resize.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias
using upsample::Source;

// --- checks ---

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t height,
           int64_t width) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0 && height > 0 && width > 0,
                    "upsample_conv2d: needs x [B, C, h, w] with sides of at least 1, got ",
                    x.sizes(), " and a size of ", height, " x ", width,
                    "; add a batch dimension with unsqueeze(0)");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 &&
                        weight.size(3) == 3 && bias.dim() == 1 && bias.size(0) == weight.size(0),
                    "upsample_conv2d: needs weight [K, C, 3, 3] and bias [K] with C = ", x.size(1),
                    ", got ", weight.sizes(), " and ", bias.sizes(),
                    "; other kernels have no operator, use resize and conv2d");
  TORCH_CHECK_VALUE(
      x.scalar_type() == weight.scalar_type() && x.scalar_type() == bias.scalar_type() &&
          at::isFloatingType(x.scalar_type()),
      "upsample_conv2d: x, weight and bias must be floating and of one type, got ", x.scalar_type(),
      ", ", weight.scalar_type(), " and ", bias.scalar_type(), "; convert them with to()");
}

// --- kernels ---

// The definition, and the fallback.
Tensor aten_form(const Tensor& x, const Tensor& weight, const Tensor& bias,
                 const c10::SymInt& height, const c10::SymInt& width, bool align_corners) {
  return at::conv2d(resize_bilinear(x, height, width, align_corners), weight, bias, {1, 1}, {1, 1});
}

Gradients aten_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        bool align_corners) {
  const std::array<c10::SymInt, 2> one{1, 1}, none{0, 0};
  const std::array<c10::SymInt, 1> channels{grad.sym_size(1)};
  const Tensor large = resize_bilinear(x, grad.sym_size(2), grad.sym_size(3), align_corners);
  auto [grad_large, grad_weight, grad_bias] =
      at::convolution_backward_symint(grad, large, weight, at::OptionalSymIntArrayRef(channels),
                                      one, one, one, false, none, 1, {true, true, true});
  return {resize_bilinear_backward(grad_large, x.sym_sizes(), align_corners), grad_weight,
          grad_bias};
}

// Which two inputs each output of one axis lies between.
template <class T>
std::vector<Source<T>> sources(int64_t in, int64_t out, bool align_corners) {
  std::vector<Source<T>> result(out);
  for (int64_t i = 0; i < out; ++i) {
    result[i] = upsample::source_of<T>(i, in, out, align_corners);
  }
  return result;
}

// One image: its taps [h, w, 3 (rows), 3 (columns), K] and its output [H, W, K].
struct Plan {
  int64_t h, w, H, W, K;
};

template <class T>
void add_scaled(T* to, const T* from, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

// Output rows from the taps: `mixed` [w, 3 (columns), K] is what the three rows of the kernel see,
// mixed vertically; then each output pixel takes its three columns out of it. A kernel row or
// column beyond the upsampled map adds nothing. Bound by the reads of `taps`, twice each.
template <class T>
void gather(const Plan& n, bool align_corners, const T* taps, const T* bias, T* out) {
  const auto rows = sources<T>(n.h, n.H, align_corners);
  const auto columns = sources<T>(n.w, n.W, align_corners);
  const int64_t K = n.K, row_taps = 3 * K, pixel_taps = 9 * K;
  at::parallel_for(0, n.H, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> mixed(n.w * row_taps);
    for (int64_t Y = begin; Y < end; ++Y) {
      std::fill(mixed.begin(), mixed.end(), T(0));
      for (int64_t i = 0; i < 3; ++i) {
        if (Y + i - 1 < 0 || Y + i - 1 >= n.H) continue;
        const auto& row = rows[Y + i - 1];
        const T* lo = taps + row.lo * n.w * pixel_taps + i * row_taps;
        const T* hi = taps + row.hi * n.w * pixel_taps + i * row_taps;
        for (int64_t x = 0; x < n.w; ++x) {
          T* to = mixed.data() + x * row_taps;
          const T *a = lo + x * pixel_taps, *b = hi + x * pixel_taps;
          const T keep = 1 - row.fraction, take = row.fraction;
#pragma omp simd
          for (int64_t k = 0; k < row_taps; ++k) to[k] += keep * a[k] + take * b[k];
        }
      }
      for (int64_t X = 0; X < n.W; ++X) {
        T* to = out + (Y * n.W + X) * K;
        std::copy(bias, bias + K, to);
        for (int64_t j = 0; j < 3; ++j) {
          if (X + j - 1 < 0 || X + j - 1 >= n.W) continue;
          const auto& column = columns[X + j - 1];
          const T* a = mixed.data() + (column.lo * 3 + j) * K;
          const T* b = mixed.data() + (column.hi * 3 + j) * K;
          const T keep = 1 - column.fraction, take = column.fraction;
#pragma omp simd
          for (int64_t k = 0; k < K; ++k) to[k] += keep * a[k] + take * b[k];
        }
      }
    }
  });
}

// The transpose of gather: grad [H, W, K] to that of the taps. First the columns of each output
// row, into `spread` [H, w, 3, K]; then each row of taps collects the output rows that read it, in
// their order, so the sums do not depend on the number of threads.
template <class T>
void scatter(const Plan& n, bool align_corners, const T* grad, T* spread, T* taps) {
  const auto rows = sources<T>(n.h, n.H, align_corners);
  const auto columns = sources<T>(n.w, n.W, align_corners);
  const int64_t K = n.K, row_taps = 3 * K, pixel_taps = 9 * K;
  at::parallel_for(0, n.H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t Y = begin; Y < end; ++Y) {
      T* to = spread + Y * n.w * row_taps;
      std::fill(to, to + n.w * row_taps, T(0));
      for (int64_t X = 0; X < n.W; ++X) {
        const T* from = grad + (Y * n.W + X) * K;
        for (int64_t j = 0; j < 3; ++j) {
          if (X + j - 1 < 0 || X + j - 1 >= n.W) continue;
          const auto& column = columns[X + j - 1];
          add_scaled(to + (column.lo * 3 + j) * K, from, 1 - column.fraction, K);
          add_scaled(to + (column.hi * 3 + j) * K, from, column.fraction, K);
        }
      }
    }
  });
  struct Reader {
    int64_t tap_row, output_row;
    T weight;
  };
  std::vector<std::vector<Reader>> readers(n.h);
  for (int64_t Y = 0; Y < n.H; ++Y) {
    for (int64_t i = 0; i < 3; ++i) {
      if (Y + i - 1 < 0 || Y + i - 1 >= n.H) continue;
      const auto& row = rows[Y + i - 1];
      readers[row.lo].push_back({i, Y, 1 - row.fraction});
      readers[row.hi].push_back({i, Y, row.fraction});
    }
  }
  at::parallel_for(0, n.h, 1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      T* to = taps + y * n.w * pixel_taps;
      std::fill(to, to + n.w * pixel_taps, T(0));
      for (const Reader& reader : readers[y]) {
        const T* from = spread + reader.output_row * n.w * row_taps;
        for (int64_t x = 0; x < n.w; ++x) {
          add_scaled(to + x * pixel_taps + reader.tap_row * row_taps, from + x * row_taps,
                     reader.weight, row_taps);
        }
      }
    }
  });
}

// weight [K, C, 3, 3] -> [C, 9 K], the taps of one input pixel as a matrix.
Tensor as_matrix(const Tensor& weight) {
  return weight.permute({1, 2, 3, 0}).contiguous().flatten(1);
}

// map [B, C, H, W] -> its pixels as rows, [B, H * W, C].
Tensor as_rows(const Tensor& map) { return map.permute({0, 2, 3, 1}).contiguous().flatten(1, 2); }

// Half types take ATen's form, an image at a time: maps that were upsampled are large.
Tensor half_form(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t height,
                 int64_t width, bool align_corners) {
  Tensor out = at::empty({x.size(0), weight.size(0), height, width}, x.options(),
                         at::MemoryFormat::ChannelsLast);
  for (int64_t i = 0; i < x.size(0); ++i) {
    out.narrow(0, i, 1).copy_(
        aten_form(x.narrow(0, i, 1), weight, bias, height, width, align_corners));
  }
  return out;
}

Gradients half_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        bool align_corners) {
  Tensor grad_x = at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast);
  Tensor grad_weight = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
  Tensor grad_bias = at::zeros({weight.size(0)}, grad_weight.options());
  for (int64_t i = 0; i < x.size(0); ++i) {
    const auto [of_x, of_weight, of_bias] =
        aten_backward(grad.narrow(0, i, 1), x.narrow(0, i, 1), weight, align_corners);
    grad_x.narrow(0, i, 1).copy_(of_x);
    grad_weight += of_weight;
    grad_bias += of_bias;
  }
  return {grad_x, grad_weight.to(x.scalar_type()), grad_bias.to(x.scalar_type())};
}

Tensor upsample_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                           int64_t height, int64_t width, bool align_corners) {
  check(x, weight, bias, height, width);
  if (at::isReducedFloatingType(x.scalar_type())) {
    return half_form(x, weight, bias, height, width, align_corners);
  }
  const Plan n{x.size(2), x.size(3), height, width, weight.size(0)};
  const Tensor matrix = as_matrix(weight), rows = as_rows(x), dense_bias = bias.contiguous();
  Tensor out = at::empty({x.size(0), n.K, n.H, n.W}, x.options(), at::MemoryFormat::ChannelsLast);
  Tensor taps = at::empty({n.h * n.w, 9 * n.K}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "upsample_conv2d", [&] {
    for (int64_t image = 0; image < x.size(0); ++image) {
      at::mm_out(taps, rows[image], matrix);
      gather(n, align_corners, taps.const_data_ptr<scalar_t>(),
             dense_bias.const_data_ptr<scalar_t>(), out[image].mutable_data_ptr<scalar_t>());
    }
  });
  return out;
}

Gradients upsample_conv2d_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                       bool align_corners) {
  if (at::isReducedFloatingType(x.scalar_type())) {
    return half_backward(grad, x, weight, align_corners);
  }
  const Plan n{x.size(2), x.size(3), grad.size(2), grad.size(3), weight.size(0)};
  const int64_t B = x.size(0), C = x.size(1);
  const Tensor matrix = as_matrix(weight), rows = as_rows(x), grad_rows = as_rows(grad);
  const Tensor grad_x = at::empty({B, n.h * n.w, C}, x.options());
  Tensor grad_matrix = at::zeros({C, 9 * n.K}, x.options());
  const Tensor spread = at::empty({n.H, n.w, 3, n.K}, x.options());
  const Tensor taps = at::empty({n.h * n.w, 9 * n.K}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "upsample_conv2d_backward", [&] {
    for (int64_t image = 0; image < B; ++image) {
      scatter(n, align_corners, grad_rows[image].const_data_ptr<scalar_t>(),
              spread.mutable_data_ptr<scalar_t>(), taps.mutable_data_ptr<scalar_t>());
      Tensor to = grad_x[image];
      at::mm_out(to, taps, matrix.t());
      grad_matrix.addmm_(rows[image].t(), taps);
    }
  });
  return {grad_x.unflatten(1, {n.h, n.w}).permute({0, 3, 1, 2}),
          grad_matrix.view({C, 3, 3, n.K}).permute({3, 0, 1, 2}).contiguous(),
          grad_rows.flatten(0, 1).sum(0)};
}

Tensor upsample_conv2d_default(const Tensor& x, const Tensor& weight, const Tensor& bias,
                               int64_t height, int64_t width, bool align_corners) {
  check(x, weight, bias, height, width);
  return aten_form(x, weight, bias, height, width, align_corners)
      .contiguous(at::MemoryFormat::ChannelsLast);
}

Gradients upsample_conv2d_backward_default(const Tensor& grad, const Tensor& x,
                                           const Tensor& weight, bool align_corners) {
  const auto [grad_x, grad_weight, grad_bias] = aten_backward(grad, x, weight, align_corners);
  return {grad_x.contiguous(at::MemoryFormat::ChannelsLast), grad_weight.contiguous(), grad_bias};
}

Tensor upsample_conv2d_meta(const Tensor& x, const Tensor& weight, const Tensor& /*bias*/,
                            c10::SymInt height, c10::SymInt width, bool /*align_corners*/) {
  const std::array<c10::SymInt, 4> shape{x.sym_size(0), weight.sym_size(0), height, width};
  return at::empty_symint(shape, x.options(), at::MemoryFormat::ChannelsLast);
}

Gradients upsample_conv2d_backward_meta(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                        bool /*align_corners*/) {
  const std::array<c10::SymInt, 1> bias{weight.sym_size(0)};
  return {at::empty_symint(x.sym_sizes(), x.options(), at::MemoryFormat::ChannelsLast),
          at::empty_symint(weight.sym_sizes(), x.options()), at::empty_symint(bias, x.options())};
}

// --- autograd ---

Tensor call(const Tensor& x, const Tensor& weight, const Tensor& bias, const c10::SymInt& height,
            const c10::SymInt& width, bool align_corners) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::upsample_conv2d", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, c10::SymInt,
                                           c10::SymInt, bool)>();
  return op.call(x, weight, bias, height, width, align_corners);
}

Gradients call_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                        bool align_corners) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dpt::upsample_conv2d_backward", "")
                             .typed<Gradients(const Tensor&, const Tensor&, const Tensor&, bool)>();
  return op.call(grad, x, weight, align_corners);
}

struct UpsampleConv2d : torch::autograd::Function<UpsampleConv2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const c10::SymInt& height, const c10::SymInt& width,
                        bool align_corners) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["align_corners"] = align_corners;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call(x, weight, bias, height, width, align_corners);
  }

  // The backward operator has no gradient of its own: a second derivative takes the ATen form.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const NoAutocast no_autocast;
    const variable_list saved = ctx->get_saved_variables();
    const bool align_corners = ctx->saved_data["align_corners"].toBool();
    const auto& form = at::GradMode::is_enabled() ? aten_backward : call_backward;
    const auto [grad_x, grad_weight, grad_bias] = form(grads[0], saved[0], saved[1], align_corners);
    return {grad_x, grad_weight, grad_bias, {}, {}, {}};
  }
};

Tensor upsample_conv2d_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                c10::SymInt height, c10::SymInt width, bool align_corners) {
  return UpsampleConv2d::apply(x, weight, bias, height, width, align_corners);
}

}  // namespace

// --- the face of the operator ---

Tensor upsample_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const c10::SymInt& height, const c10::SymInt& width, bool align_corners) {
  if (x.is_cpu() && !traced(x) && !traced(weight)) {
    const auto cast = autocast_to_lower(x), cast_weight = autocast_to_lower(weight),
               cast_bias = autocast_to_lower(bias);
    const at::ScalarType dtype = cast.scalar_type();
    if (dtype != at::kDouble && cast_weight.scalar_type() == dtype &&
        cast_bias.scalar_type() == dtype) {
      return call(cast, cast_weight, cast_bias, height, width, align_corners);
    }
  }
  return aten_form(x, weight, bias, height, width, align_corners);
}

// --- registration ---

TORCH_LIBRARY_FRAGMENT(dpt, m) {
  m.def(
      "upsample_conv2d(Tensor x, Tensor weight, Tensor bias, SymInt height, SymInt width, bool "
      "align_corners) -> Tensor");
  m.def(
      "upsample_conv2d_backward(Tensor grad, Tensor x, Tensor weight, bool align_corners) -> "
      "(Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(dpt, CPU, m) {
  m.impl("upsample_conv2d", upsample_conv2d_cpu);
  m.impl("upsample_conv2d_backward", upsample_conv2d_backward_cpu);
}
TORCH_LIBRARY_IMPL(dpt, CompositeExplicitAutograd, m) {
  m.impl("upsample_conv2d", upsample_conv2d_default);
  m.impl("upsample_conv2d_backward", upsample_conv2d_backward_default);
}
TORCH_LIBRARY_IMPL(dpt, Meta, m) {
  m.impl("upsample_conv2d", upsample_conv2d_meta);
  m.impl("upsample_conv2d_backward", upsample_conv2d_backward_meta);
}
TORCH_LIBRARY_IMPL(dpt, Autograd, m) { m.impl("upsample_conv2d", upsample_conv2d_autograd); }

}  // namespace dpt
