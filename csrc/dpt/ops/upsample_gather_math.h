// csrc/dpt/ops/upsample_gather_math.h -- what the CPU and CUDA kernels of upsample_gather compute,
// per channels of an output pixel.
//
// Plain C++ without torch: nvcc compiles it for the device, and the C++ tests run the same
// functions on the host.
#pragma once

#include <cstdint>

#include "dpt/ops/host_device.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt::upsample {

// Products [B, h, w, 9, n] of a map with the nine taps of a 3x3 convolution, and the map that comes
// of them, [B, H, W, n].
struct Gathering {
  int64_t B, h, w, n, H, W;
  bool align_corners;
};

// What is added to the sum: bias [n], and border [16, n], a bias by where the output pixel is, at
// number 4 * r + c with r = 1 in the first row plus 2 in the last one, and c likewise of columns.
// Both may be null.
template <class A>
struct GatherBias {
  const A* bias;
  const A* border;
};

// What becomes of a pixel where only one value of it is wanted:
//   d = relu(sum over channels of dot * relu(x) + dot_bias), or 1 / max(scale * d + shift, 1e-8).
template <class A>
struct GatherDot {
  const A* dot;       // [n]
  const A* dot_bias;  // [1]
  bool invert;
  A scale, shift;
};

// Channels k .. k + V of the convolution at output pixel (b, y, x), with the bias.
template <int V, class T>
DPT_HOST_DEVICE Pack<Acc<T>, V> gathered(const Gathering& g, const T* in,
                                         const GatherBias<Acc<T>>& bias, int64_t b, int64_t y,
                                         int64_t x, int64_t k) {
  using A = Acc<T>;
  Pack<A, V> sum;
  const int64_t place =
      4 * ((y == 0 ? 1 : 0) + (y == g.H - 1 ? 2 : 0)) + (x == 0 ? 1 : 0) + (x == g.W - 1 ? 2 : 0);
  for (int v = 0; v < V; ++v) {
    sum.at[v] = bias.bias != nullptr ? bias.bias[k + v] : A(0);
    if (bias.border != nullptr) sum.at[v] += bias.border[place * g.n + k + v];
  }
  for (int i = 0; i < 3; ++i) {
    const int64_t Y = y + i - 1;
    if (Y < 0 || Y >= g.H) continue;
    const auto rows = source_of<A>(Y, g.h, g.H, g.align_corners);
    for (int j = 0; j < 3; ++j) {
      const int64_t X = x + j - 1;
      if (X < 0 || X >= g.W) continue;
      const auto columns = source_of<A>(X, g.w, g.W, g.align_corners);
      const T* tap = in + (3 * i + j) * g.n + k;
      const T* top = tap + (b * g.h + rows.lo) * g.w * 9 * g.n;
      const T* bottom = tap + (b * g.h + rows.hi) * g.w * 9 * g.n;
      const int64_t lo = columns.lo * 9 * g.n, hi = columns.hi * 9 * g.n;
      const auto top_lo = load<V>(top + lo), top_hi = load<V>(top + hi);
      const auto bottom_lo = load<V>(bottom + lo), bottom_hi = load<V>(bottom + hi);
      for (int v = 0; v < V; ++v) {
        const A left =
            mix(static_cast<A>(top_lo.at[v]), static_cast<A>(bottom_lo.at[v]), rows.fraction);
        const A right =
            mix(static_cast<A>(top_hi.at[v]), static_cast<A>(bottom_hi.at[v]), rows.fraction);
        sum.at[v] += mix(left, right, columns.fraction);
      }
    }
  }
  return sum;
}

// NaN stays NaN.
template <class A>
DPT_HOST_DEVICE A positive(A x) {
  return x < A(0) ? A(0) : x;
}

// Item `item` of the map: V channels of one pixel; V divides n.
template <int V, class Index, class T>
DPT_HOST_DEVICE void gather_item(const Gathering& g, const T* in, const GatherBias<Acc<T>>& bias,
                                 bool relu, T* out, Index item) {
  const auto groups = static_cast<Index>(g.n / V), W = static_cast<Index>(g.W),
             H = static_cast<Index>(g.H);
  const Index pixel = item / groups, row = pixel / W, b = row / H;
  const int64_t k = static_cast<int64_t>(item - pixel * groups) * V;
  const auto sum = gathered<V>(g, in, bias, b, row - b * H, pixel - row * W, k);
  Pack<T, V> result;
  for (int v = 0; v < V; ++v) {
    result.at[v] = static_cast<T>(relu ? positive(sum.at[v]) : sum.at[v]);
  }
  *reinterpret_cast<Pack<T, V>*>(out + static_cast<int64_t>(item) * V) = result;
}

// The share of the same item in the dot product of its pixel.
template <int V, class Index, class T>
DPT_HOST_DEVICE Acc<T> dot_item(const Gathering& g, const T* in, const GatherBias<Acc<T>>& bias,
                                const GatherDot<Acc<T>>& to, Index item) {
  const auto groups = static_cast<Index>(g.n / V), W = static_cast<Index>(g.W),
             H = static_cast<Index>(g.H);
  const Index pixel = item / groups, row = pixel / W, b = row / H;
  const int64_t k = static_cast<int64_t>(item - pixel * groups) * V;
  const auto sum = gathered<V>(g, in, bias, b, row - b * H, pixel - row * W, k);
  Acc<T> share = 0;
  for (int v = 0; v < V; ++v) share += to.dot[k + v] * positive(sum.at[v]);
  return share;
}

// From the sum of the shares to the value of the pixel.
template <class A>
DPT_HOST_DEVICE A finished(const GatherDot<A>& to, A sum) {
  const A d = positive(sum + *to.dot_bias);
  if (!to.invert) return d;
  const A depth = to.scale * d + to.shift;
  return A(1) / (depth < A(1e-8) ? A(1e-8) : depth);
}

}  // namespace dpt::upsample
