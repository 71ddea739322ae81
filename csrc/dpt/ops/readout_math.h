// csrc/dpt/ops/readout_math.h -- what the CPU and CUDA kernels of readout compute.
//
// Plain C++ without torch: nvcc compiles it for the device, g++ the same functions for the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "dpt/ops/host_device.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt::patches {

using upsample::Acc;
using upsample::load;
using upsample::Pack;

// Tokens [B, P + N, D].
struct Shape {
  int64_t B, P, N, D;
};

// The exact one, by erf.
template <class A>
DPT_HOST_DEVICE A gelu(A x) {
  return A(0.5) * x * (A(1) + std::erf(x * A(0.70710678118654752440)));
}

// Row `row` of all B * N of out: GELU(patch + token). `lanes` callers share it, V neighbours at a
// time; V divides D.
template <int V, class T>
DPT_HOST_DEVICE void readout_row(const Shape& n, const T* tokens, const T* token, T* out,
                                 int64_t row, int64_t lane, int64_t lanes) {
  using A = Acc<T>;
  const int64_t image = row / n.N;
  tokens += (row + (image + 1) * n.P) * n.D;
  token += image * n.D;
  out += row * n.D;
  for (int64_t k = lane * V; k < n.D; k += lanes * V) {
    auto values = load<V>(tokens + k);
    const auto more = load<V>(token + k);
    for (int v = 0; v < V; ++v) {
      values.at[v] =
          static_cast<T>(gelu(static_cast<A>(values.at[v]) + static_cast<A>(more.at[v])));
    }
    *reinterpret_cast<Pack<T, V>*>(out + k) = values;
  }
}

}  // namespace dpt::patches
