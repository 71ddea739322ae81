// csrc/dpt/ops/group_norm_math.h -- what the CPU and CUDA kernels of group_norm compute.
//
// Plain C++ without torch: nvcc compiles it for the device, g++ the same functions for the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "dpt/ops/host_device.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt::norm {

using upsample::Acc;
using upsample::load;
using upsample::Pack;

// Maps [B, pixels, C], whose channels are `groups` runs.
struct Groups {
  int64_t B, pixels, C, groups;

  DPT_HOST_DEVICE int64_t width() const { return C / groups; }
};

// Of the values of a group less its first one, which is near enough to their mean that squares of
// the differences do not lose the variance.
template <class S>
struct Moments {
  S sum, squares;

  DPT_HOST_DEVICE void add(const Moments& other) {
    sum += other.sum;
    squares += other.squares;
  }
};

// Of pixels begin to end; `lanes` callers share them. x is the image.
template <class S, class T>
DPT_HOST_DEVICE Moments<S> moments(const Groups& n, const T* x, int64_t group, int64_t begin,
                                   int64_t end, int64_t lane, int64_t lanes) {
  const T* from = x + group * n.width();
  const auto first = static_cast<S>(from[0]);
  Moments<S> total{0, 0};
  for (int64_t pixel = begin + lane; pixel < end; pixel += lanes) {
    for (int64_t c = 0; c < n.width(); ++c) {
      const S d = static_cast<S>(from[pixel * n.C + c]) - first;
      total.add({d, d * d});
    }
  }
  return total;
}

// What becomes of a channel: (x - mean) * scale + shift, to which `add` is added.
template <class A>
struct Affine {
  A mean, scale, shift;

  DPT_HOST_DEVICE A operator()(A x, A add, bool relu) const {
    const A y = (x - mean) * scale + shift + add;
    return relu && y < A(0) ? A(0) : y;  // NaN stays NaN
  }
};

// Of channel c, from the moments of its group over all pixels.
template <class A, class S, class T>
DPT_HOST_DEVICE Affine<A> affine(const Groups& n, const T* x, int64_t c, const Moments<S>& total,
                                 const A* weight, const A* bias, A eps) {
  const auto count = static_cast<S>(n.pixels * n.width());
  const S off = total.sum / count;
  const S variance = total.squares / count - off * off;
  const S mean = static_cast<S>(x[c / n.width() * n.width()]) + off;
  const S deviation = std::sqrt((variance < S(0) ? S(0) : variance) + static_cast<S>(eps));
  return {static_cast<A>(mean), static_cast<A>(static_cast<S>(weight[c]) / deviation), bias[c]};
}

}  // namespace dpt::norm
