#include "dpt/runtime/rewrites.h"

#include <cmath>

namespace dpt::runtime {

namespace {

// Bias of all output pixels by where they are, [16, n]: `bias_of_tap` [kh, kw, n] summed over the
// taps that read inside of the input. `above` and `left` as of Product.
Tensor border_of(const Tensor& bias_of_tap, int64_t above, int64_t left) {
  const int64_t kh = bias_of_tap.size(0), kw = bias_of_tap.size(1);
  std::vector<Tensor> rows;
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < 4; ++c) {
      Tensor total = at::zeros_like(bias_of_tap[0][0]);
      for (int64_t i = 0; i < kh; ++i) {
        for (int64_t j = 0; j < kw; ++j) {
          const int64_t dy = i - above, dx = j - left;
          const bool outside = (dy < 0 && (r & 1)) || (dy > 0 && (r & 2)) || (dx < 0 && (c & 1)) ||
                               (dx > 0 && (c & 2));
          if (!outside) total = total + bias_of_tap[i][j];
        }
      }
      rows.push_back(total);
    }
  }
  return at::stack(rows);
}

}  // namespace

Product fold_norm(Product conv, const BatchNorm2d& norm) {
  if (conv.weight.is_meta()) {
    conv.bias = shape_of({conv.n()});
    return conv;
  }
  const auto wide = [](const Tensor& t) { return t.to(at::kDouble); };
  const Tensor scale = wide(norm.weight) * (wide(norm.running_var) + 1e-5).rsqrt();
  const Tensor shift = wide(norm.bias) - wide(norm.running_mean) * scale;
  conv.weight = conv.weight * scale.view({-1, 1, 1, 1});
  conv.bias = conv.bias.defined() ? conv.bias * scale + shift : shift;
  return conv;
}

Product fold_norm(const LayerNorm& norm, Product linear) {
  if (linear.weight.is_meta()) {
    linear.bias = shape_of({linear.n()});
    return linear;
  }
  const Tensor shift = linear.weight.flatten(1).mv(norm.bias.to(at::kDouble));  // [n]
  linear.weight = linear.weight * norm.weight.to(at::kDouble).view({1, -1, 1, 1});
  linear.bias = linear.bias.defined() ? linear.bias + shift : shift;
  return linear;
}

void fold_attention(Product& qkv, Product& proj, int64_t heads) {
  if (qkv.weight.is_meta()) return;
  const int64_t width = qkv.channels();
  const double scale = 1 / std::sqrt(static_cast<double>(width / heads));
  const auto weights = qkv.weight.split(width), biases = qkv.bias.split(width);
  qkv.weight = at::cat({weights[0] * scale, weights[1], weights[2]});
  proj.bias = proj.bias + proj.weight.flatten(1).mv(biases[2]);
  const Tensor none = at::zeros_like(biases[1]);
  qkv.bias = at::cat({biases[0] * scale, none, none});
}

Product fold_project(const Product& project, const Product& conv) {
  Product folded = conv;
  if (conv.weight.is_meta()) {
    folded.weight =
        shape_of({conv.n(), project.channels(), conv.weight.size(2), conv.weight.size(3)});
    if (project.bias.defined()) folded.border = shape_of({16, conv.n()});
    return folded;
  }
  const Tensor inner = project.weight.flatten(1);  // [c, d]
  folded.weight = at::einsum("ocij,cd->odij", {conv.weight, inner});
  if (project.bias.defined()) {
    const Tensor bias_of_tap = at::einsum("ocij,c->ijo", {conv.weight, project.bias});
    const Tensor border = border_of(bias_of_tap, conv.above, conv.left);
    folded.border = conv.border.defined() ? conv.border + border : border;
  }
  return folded;
}

std::vector<Product> fold_up(const Tensor& up, const Tensor& up_bias, const Product& conv) {
  const int64_t s = up.size(2), n = conv.n();
  const bool shapes = conv.weight.is_meta();
  const Tensor bias_of_tap =
      shapes ? Tensor() : at::einsum("ocij,c->ijo", {conv.weight, up_bias});  // [3, 3, n]
  std::vector<Product> phases;
  for (int64_t p = 0; p < s; ++p) {
    for (int64_t q = 0; q < s; ++q) {
      // Of a phase at the edge of its cell the neighbouring cell is read, too.
      Product phase;
      phase.above = p == 0 ? 1 : 0;
      phase.left = q == 0 ? 1 : 0;
      const int64_t kh = p == 0 || p == s - 1 ? 2 : 1, kw = q == 0 || q == s - 1 ? 2 : 1;
      phase.bias = conv.bias;
      if (shapes) {
        phase.weight = shape_of({n, up.size(0), kh, kw});
        phase.border = shape_of({16, n});
        phases.push_back(std::move(phase));
        continue;
      }
      phase.weight = at::zeros({n, up.size(0), kh, kw}, conv.weight.options());
      // Taps of the full convolution that share a cell; outside of the map they fall with it.
      std::vector<Tensor> cells(kh * kw, at::zeros({n}, conv.weight.options()));
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t j = 0; j < 3; ++j) {
          const int64_t y = p + i - 1 + s, x = q + j - 1 + s;  // in the cell above and left
          const int64_t row = y / s - 1 + phase.above, column = x / s - 1 + phase.left;
          phase.weight.select(2, row).select(2, column) +=
              at::matmul(conv.weight.select(3, j).select(2, i),
                         up.select(3, x % s).select(2, y % s).transpose(0, 1));
          cells[row * kw + column] = cells[row * kw + column] + bias_of_tap[i][j];
        }
      }
      phase.border = border_of(at::stack(cells).view({kh, kw, n}), phase.above, phase.left);
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

}  // namespace dpt::runtime
