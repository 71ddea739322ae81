// csrc/dpt/runtime/simd.inl -- vectors of floats, as wide as the instruction set that the including
// file is compiled for. GCC's and clang's vector extensions: one source for all of them, portable.
//
// Files that include this one use nothing of the standard library but types: an inline function
// compiled here with AVX-512 may be the one that the linker keeps for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dpt::runtime::DPT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using Vec = float __attribute__((vector_size(kWidth * sizeof(float))));
using IntVec = int32_t __attribute__((vector_size(kWidth * sizeof(float))));
using UnalignedVec =
    float __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec broadcast(float x) { return x - Vec{}; }

// The first `count` lanes, of fewer than kWidth; zeros behind.
inline Vec load_first(const float* p, int64_t count) {
  float lanes[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_first(float* p, Vec v, int64_t count) {
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }
// NaN stays NaN, as in ATen.
inline Vec relu(Vec x) { return select(x < Vec{}, Vec{}, x); }

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += v[i];
  return total;
}
inline float max_of(Vec v) {
  float most = v[0];
  for (int i = 1; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Takes the parts of what a call works on from its scratch memory, or only counts them (null).
template <class T>
struct Scratch {
  T* begin;
  int64_t count = 0;

  T* take(int64_t size) {
    T* part = begin == nullptr ? nullptr : begin + count;
    count += size;
    return part;
  }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// --- bfloat16 ---

using UIntVec = uint32_t __attribute__((vector_size(kWidth * sizeof(uint32_t))));

// Rounded to bfloat16, half to even, in the upper halves of the lanes. NaN stays NaN.
inline UIntVec to_bfloat16(Vec x) {
  const UIntVec bits = reinterpret_cast<UIntVec>(x);
  const UIntVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (x != x ? bits | 0x400000 : rounded) & 0xffff0000;
}

}  // namespace
}  // namespace dpt::runtime::DPT_ISA
