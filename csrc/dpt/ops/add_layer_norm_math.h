// csrc/dpt/ops/add_layer_norm_math.h -- what the CPU and CUDA kernels of add_layer_norm compute.
//
// Plain C++ without torch: nvcc compiles it for the device, g++ the same function for the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "dpt/ops/host_device.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt::norm {

using upsample::Acc;
using upsample::load;
using upsample::Pack;

// One row of D values: x = x + y, rounded to T, then out = (x - mean) / sqrt(variance + eps) of
// what was rounded. `lanes` callers share the row, V neighbours at a time; V divides D, and
// sum(value) is the sum over all of them, known to each.
template <int V, class T, class Sum>
DPT_HOST_DEVICE void add_layer_norm_row(T* x, const T* y, T* out, int64_t D, Acc<T> eps,
                                        int64_t lane, int64_t lanes, const Sum& sum) {
  using A = Acc<T>;
  A total = 0;
  for (int64_t k = lane * V; k < D; k += lanes * V) {
    auto a = load<V>(static_cast<const T*>(x) + k);
    const auto b = load<V>(y + k);
    for (int v = 0; v < V; ++v) {
      a.at[v] = static_cast<T>(static_cast<A>(a.at[v]) + static_cast<A>(b.at[v]));
      total += static_cast<A>(a.at[v]);
    }
    *reinterpret_cast<Pack<T, V>*>(x + k) = a;
  }
  const A mean = sum(total) / static_cast<A>(D);
  // Each caller reads again what it wrote itself.
  A squares = 0;
  for (int64_t k = lane * V; k < D; k += lanes * V) {
    const auto a = load<V>(static_cast<const T*>(x) + k);
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(a.at[v]) - mean;
      squares += d * d;
    }
  }
  const A scale = A(1) / std::sqrt(sum(squares) / static_cast<A>(D) + eps);
  for (int64_t k = lane * V; k < D; k += lanes * V) {
    auto a = load<V>(static_cast<const T*>(x) + k);
    for (int v = 0; v < V; ++v) a.at[v] = static_cast<T>((static_cast<A>(a.at[v]) - mean) * scale);
    *reinterpret_cast<Pack<T, V>*>(out + k) = a;
  }
}

}  // namespace dpt::norm
