// csrc/dpt/ops/quantize_rows_math.h -- what the CPU and CUDA kernels of quantize_rows compute.
//
// Plain C++ without torch: nvcc compiles it for the device, g++ the same functions for the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dpt/ops/host_device.h"
#include "dpt/ops/upsample_add_math.h"

namespace dpt::float8 {

using upsample::load;
using upsample::Pack;

// Of e4m3fn: four bits of exponent, three of mantissa, no infinity.
constexpr float kLargest = 448;

// The nearest value of e4m3fn, halves to the even one; beyond the largest that one.
DPT_HOST_DEVICE uint8_t to_e4m3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7F;  // NaN
  float size;
  std::memcpy(&size, &bits, sizeof bits);
  if (size >= kLargest) return sign | 0x7E;
  if (size < 0x1p-6F) {  // multiples of 2^-9, which is the ulp of 2^14
    const float sum = size + 0x1p14F;
    std::memcpy(&bits, &sum, sizeof bits);
    return sign | static_cast<uint8_t>(bits & 0xF);
  }
  bits += 0x7FFFF + (bits >> 20 & 1);
  return sign | static_cast<uint8_t>((bits >> 20) - ((127 - 7) << 3));
}

// One row of D values: out = to_e4m3(x / scale), and the scale, which makes its largest value 448.
// `lanes` callers share the row, V neighbours at a time; V divides D, and largest(value) is the
// largest of all of them, known to each.
template <int V, class T, class Largest>
DPT_HOST_DEVICE float quantize_row(const T* x, uint8_t* out, int64_t D, int64_t lane, int64_t lanes,
                                   const Largest& largest) {
  float size = 0;
  for (int64_t k = lane * V; k < D; k += lanes * V) {
    const auto a = load<V>(x + k);
    for (int v = 0; v < V; ++v) size = std::fmax(size, std::fabs(static_cast<float>(a.at[v])));
  }
  size = largest(size);
  const bool any = size > 1e-30F;  // what is less has no inverse
  const float inverse = any ? kLargest / size : 1;
  for (int64_t k = lane * V; k < D; k += lanes * V) {
    const auto a = load<V>(x + k);
    Pack<uint8_t, V> codes;
    for (int v = 0; v < V; ++v) codes.at[v] = to_e4m3(static_cast<float>(a.at[v]) * inverse);
    *reinterpret_cast<Pack<uint8_t, V>*>(out + k) = codes;
  }
  return any ? size / kLargest : 1;
}

}  // namespace dpt::float8
