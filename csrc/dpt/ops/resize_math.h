// csrc/dpt/ops/resize_math.h -- what the CPU and CUDA kernels of resize_bilinear_backward compute,
// per item.
#pragma once

#include "dpt/ops/upsample_add_math.h"

namespace dpt::resize {

using upsample::Acc;
using upsample::Size;
using upsample::Source;

// How the positions of one axis, `in` inputs and `out` outputs, lie to each other.
template <class A>
struct Axis {
  int64_t in, out;
  bool align_corners;
  A step;  // inputs per output

  DPT_HOST_DEVICE Source<A> source(int64_t i) const {
    return upsample::source(step, i, in, align_corners);
  }

  // The first output that may read input `k`. Rounding moves none by a whole position.
  DPT_HOST_DEVICE int64_t first_of(int64_t k) const {
    if (step == A(0) || k < 2) return 0;
    const A position = static_cast<A>(k - 1) / step - A(2);
    int64_t i = position > A(0) ? static_cast<int64_t>(position) : 0;
    while (i < out && source(i).hi < k) ++i;
    return i;
  }
};

template <class A>
Axis<A> axis(int64_t in, int64_t out, bool align_corners) {
  return {in, out, align_corners, upsample::scale<A>(in, out, align_corners)};
}

// The weight of input `k` in an output that lies there.
template <class A>
DPT_HOST_DEVICE A weight(const Source<A>& at, int64_t k) {
  return (at.lo == k ? A(1) - at.fraction : A(0)) + (at.hi == k ? at.fraction : A(0));
}

// Item `item` of the gradient of x [B, C, h, w], from `grad` [B, C, H, W]: V neighbours, channels
// of a pixel where channels come last, else V = 1 and C planes of each image. The outputs that read
// an input are added in their order.
template <int V, bool kChannelsLast, class T>
DPT_HOST_DEVICE void backward_item(const Size& n, const Axis<Acc<T>>& rows,
                                   const Axis<Acc<T>>& columns, const T* grad, T* out,
                                   int64_t item) {
  using A = Acc<T>;
  const int64_t groups = kChannelsLast ? n.C / V : 1;
  const int64_t pixel = item / groups, x = pixel % n.w, y = pixel / n.w % n.h;
  const int64_t image = pixel / n.w / n.h;  // or plane
  const int64_t step = kChannelsLast ? n.C : 1;
  const T* from = grad + image * n.H * n.W * step + item % groups * V;
  A sums[V] = {};
  const int64_t left = columns.first_of(x);
  for (int64_t i = rows.first_of(y); i < n.H; ++i) {
    const auto row = rows.source(i);
    if (row.lo > y) break;
    const A of_row = weight(row, y);
    for (int64_t j = left; j < n.W; ++j) {
      const auto column = columns.source(j);
      if (column.lo > x) break;
      const A factor = of_row * weight(column, x);
      const auto values = upsample::load<V>(from + (i * n.W + j) * step);
      for (int v = 0; v < V; ++v) sums[v] += factor * static_cast<A>(values.at[v]);
    }
  }
  upsample::Pack<T, V> result;
  for (int v = 0; v < V; ++v) result.at[v] = static_cast<T>(sums[v]);
  *reinterpret_cast<upsample::Pack<T, V>*>(out + item * V) = result;
}

}  // namespace dpt::resize
