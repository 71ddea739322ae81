// csrc/dpt/ops/upsample_add_math.h -- what the CPU and CUDA kernels of upsample_add compute, per
// axis and per item.
//
// Plain C++ without torch: nvcc compiles it for the device, and the C++ tests run the same
// functions on the host.
#pragma once

#include <cstdint>

#include "dpt/ops/host_device.h"

namespace dpt::upsample {

// The type of weights and sums: float for the half types.
template <class T>
struct Accumulate {
  using Type = float;
};
template <>
struct Accumulate<double> {
  using Type = double;
};
template <class T>
using Acc = typename Accumulate<T>::Type;

// x [B, C, h, w] to [B, C, H, W].
struct Size {
  int64_t B, C, h, w, H, W;
};

// Input steps per output step. ATen's area_pixel_compute_scale.
template <class A>
DPT_HOST_DEVICE A scale(int64_t in, int64_t out, bool align_corners = true) {
  if (!align_corners) return static_cast<A>(in) / static_cast<A>(out);
  return out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A(0);
}

// An output position lies between two input positions; `fraction` is the weight of `hi`.
template <class A>
struct Source {
  int64_t lo, hi;
  A fraction;
};

// As ATen's upsample_bilinear2d finds it; centres of pixels are at 0.5 without align_corners.
template <class A>
DPT_HOST_DEVICE Source<A> source(A scale, int64_t out_index, int64_t in,
                                 bool align_corners = true) {
  A position = scale * static_cast<A>(out_index);
  if (!align_corners) {
    position = (static_cast<A>(out_index) + A(0.5)) * scale - A(0.5);
    if (position < A(0)) position = A(0);
  }
  const auto floor = static_cast<int64_t>(position);
  const int64_t lo = floor < in ? floor : in - 1;  // rounding may reach past the last input
  const A fraction = position - static_cast<A>(lo);
  return {lo, lo < in - 1 ? lo + 1 : lo, fraction < A(1) ? fraction : A(1)};
}

template <class A>
DPT_HOST_DEVICE Source<A> source_of(int64_t out_index, int64_t in, int64_t out,
                                    bool align_corners) {
  return source(scale<A>(in, out, align_corners), out_index, in, align_corners);
}

template <class A>
DPT_HOST_DEVICE A mix(A lo, A hi, A fraction) {
  return (A(1) - fraction) * lo + fraction * hi;
}

// V neighbours that travel in one memory access.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T at[V];
};

template <int V, class T>
DPT_HOST_DEVICE Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

// Item `item` of a channels-last output: V channels of one pixel. V divides C. Index: any type that
// holds B*C*H*W.
template <int V, class Index, class T>
DPT_HOST_DEVICE void channels_last_item(const Size& n, Acc<T> scale_h, Acc<T> scale_w, const T* x,
                                        const T* skip, T* out, Index item) {
  using A = Acc<T>;
  const auto groups = static_cast<Index>(n.C / V), W = static_cast<Index>(n.W),
             H = static_cast<Index>(n.H);
  const Index pixel = item / groups, row = pixel / W, image = row / H;
  const auto rows = source<A>(scale_h, row - image * H, n.h);
  const auto columns = source<A>(scale_w, pixel - row * W, n.w);

  const T* channel = x + static_cast<int64_t>(item - pixel * groups) * V;
  const T* top = channel + (image * n.h + rows.lo) * n.w * n.C;
  const T* bottom = channel + (image * n.h + rows.hi) * n.w * n.C;
  const auto top_lo = load<V>(top + columns.lo * n.C), top_hi = load<V>(top + columns.hi * n.C);
  const auto bottom_lo = load<V>(bottom + columns.lo * n.C),
             bottom_hi = load<V>(bottom + columns.hi * n.C);

  const int64_t at = static_cast<int64_t>(item) * V;
  auto sum = load<V>(skip + at);
  for (int v = 0; v < V; ++v) {
    const A lo = mix(static_cast<A>(top_lo.at[v]), static_cast<A>(bottom_lo.at[v]), rows.fraction);
    const A hi = mix(static_cast<A>(top_hi.at[v]), static_cast<A>(bottom_hi.at[v]), rows.fraction);
    sum.at[v] = static_cast<T>(mix(lo, hi, columns.fraction) + static_cast<A>(sum.at[v]));
  }
  *reinterpret_cast<Pack<T, V>*>(out + at) = sum;
}

// Item `item` of a contiguous output: V columns of one row. V divides W.
template <int V, class Index, class T>
DPT_HOST_DEVICE void contiguous_item(const Size& n, Acc<T> scale_h, Acc<T> scale_w, const T* x,
                                     const T* skip, T* out, Index item) {
  using A = Acc<T>;
  const auto groups = static_cast<Index>(n.W / V), H = static_cast<Index>(n.H);
  const Index row = item / groups, plane = row / H;
  const auto rows = source<A>(scale_h, row - plane * H, n.h);
  const int64_t column = static_cast<int64_t>(item - row * groups) * V;

  const T* top = x + (plane * n.h + rows.lo) * n.w;
  const T* bottom = x + (plane * n.h + rows.hi) * n.w;
  const int64_t at = static_cast<int64_t>(item) * V;
  auto sum = load<V>(skip + at);
  for (int v = 0; v < V; ++v) {
    const auto columns = source<A>(scale_w, column + v, n.w);
    const A lo =
        mix(static_cast<A>(top[columns.lo]), static_cast<A>(bottom[columns.lo]), rows.fraction);
    const A hi =
        mix(static_cast<A>(top[columns.hi]), static_cast<A>(bottom[columns.hi]), rows.fraction);
    sum.at[v] = static_cast<T>(mix(lo, hi, columns.fraction) + static_cast<A>(sum.at[v]));
  }
  *reinterpret_cast<Pack<T, V>*>(out + at) = sum;
}

}  // namespace dpt::upsample
