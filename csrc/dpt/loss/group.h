// csrc/dpt/loss/group.h -- walking over the pixels of an image: sums, and selection by rank.
//
// A group is who walks: one thread of the host (Serial, here), or a block of threads of the GPU
// (Block, in scale_and_shift.cu). Plain C++ without torch.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dpt/ops/host_device.h"

namespace dpt::loss {

template <int N>
struct Sums {
  double at[N];
};

// --- order of floating point numbers as integers ---

template <class T>
using Key = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class To, class From>
DPT_DEVICE To bits_of(From from) {  // std::bit_cast, which is not for devices
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Increases with x; -0 and 0 are one.
template <class T>
DPT_DEVICE Key<T> to_key(T x) {
  constexpr Key<T> sign = Key<T>{1} << (8 * sizeof(T) - 1);
  const auto bits = bits_of<Key<T>>(x + T(0));
  return bits & sign ? ~bits : bits | sign;
}

template <class T>
DPT_DEVICE T from_key(Key<T> key) {
  constexpr Key<T> sign = Key<T>{1} << (8 * sizeof(T) - 1);
  return bits_of<T>(key & sign ? key ^ sign : ~key);
}

// Keys are read from the highest digit down, one histogram for each.
constexpr int kDigitBits = 11;
constexpr int kNumDigits = 1 << kDigitBits;
template <class T>
constexpr int kKeyBits = 8 * sizeof(T);

// The value of a rank among others: how many are below it, how many equal to it.
template <class T>
struct Selected {
  T value;
  int64_t num_below, num_equal;
};

// --- the host ---

// One thread. Sums run in lanes that the compiler turns into vectors.
class Serial {
  template <class T>
  using Pair = std::array<std::vector<T>, 2>;

 public:
  // f(i) for i in [0, n).
  template <class F>
  void for_each(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  // f(y, x) for all y in [0, height), x in [0, width).
  template <class F>
  void for_each(int64_t height, int64_t width, const F& f) const {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) f(y, x);
    }
  }

  // The sum of f(i), a Sums<N>.
  template <int N, class F>
  Sums<N> sum(int64_t n, const F& f) const {
    double lanes[N][kLanes] = {};
    add_row(n, f, lanes);
    return total(lanes);
  }

  // The sum of f(y, x), a Sums<N>.
  template <int N, class F>
  Sums<N> sum(int64_t height, int64_t width, const F& f) const {
    double lanes[N][kLanes] = {};
    for (int64_t y = 0; y < height; ++y) {
      add_row(width, [&](int64_t x) { return f(y, x); }, lanes);
    }
    return total(lanes);
  }

  // The value of rank `rank` (from 0) among value(i) of those i for which included(i).
  template <class T, class Included, class Value>
  Selected<T> select(int64_t n, int64_t rank, const Included& included, const Value& value) const {
    // One digit of all keys, then the others of those keys alone that have it.
    Key<T>* keys = memory<Key<T>>(0, n);
    int shift = kKeyBits<T> - kDigitBits;
    Counts counts = {};
    int64_t num_left = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key<T> key = to_key<T>(value(i));
      const bool counts_here = included(i);
      keys[num_left] = key;
      num_left += counts_here;
      counts[i % 2][key >> shift] += counts_here;
    }
    int64_t num_below = 0;
    Key<T> digit = find(counts, rank, num_below);
    num_left = keep(keys, num_left, [&](Key<T> key) { return key >> shift == digit; });
    while (shift > 0) {
      const int width = shift < kDigitBits ? shift : kDigitBits;
      shift -= width;
      const Key<T> last = (Key<T>{1} << width) - 1;
      counts = {};
      for (int64_t i = 0; i < num_left; ++i) ++counts[i % 2][keys[i] >> shift & last];
      digit = find(counts, rank, num_below);
      num_left = keep(keys, num_left, [&](Key<T> key) { return (key >> shift & last) == digit; });
    }
    return {from_key<T>(keys[0]), num_below, num_left};
  }

  // Memory for n values, `which` 0 or 1; kept for the next call.
  static constexpr bool kHasMemory = true;
  template <class T>
  T* memory(int which, int64_t n) const {
    std::vector<T>& values = std::get<Pair<T>>(memory_)[which];
    if (static_cast<int64_t>(values.size()) < n) values.resize(n);
    return values.data();
  }

  void sync() const {}

 private:
  static constexpr int kLanes = 32;

  // Takes the first n keys to those of them that are wanted; returns how many these are.
  template <class K, class Wanted>
  static int64_t keep(K* keys, int64_t n, const Wanted& wanted) {
    int64_t num_kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const K key = keys[i];
      keys[num_kept] = key;
      num_kept += wanted(key);
    }
    return num_kept;
  }

  // Two histograms: a digit often follows itself, and then would wait for its count.
  using Counts = std::array<std::array<uint32_t, kNumDigits>, 2>;

  // The digit that the key of this rank has, and how many keys are below those with it.
  static int find(const Counts& counts, int64_t rank, int64_t& num_below) {
    for (int digit = 0; digit < kNumDigits - 1; ++digit) {
      const int64_t count = counts[0][digit] + counts[1][digit];
      if (num_below + count > rank) return digit;
      num_below += count;
    }
    return kNumDigits - 1;
  }

  template <int N, class F>
  static void add_row(int64_t n, const F& f, double (&lanes)[N][kLanes]) {
    const int64_t num_whole = n / kLanes;
    for (int64_t whole = 0; whole < num_whole; ++whole) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const Sums<N> value = f(whole * kLanes + lane);
        for (int k = 0; k < N; ++k) lanes[k][lane] += value.at[k];
      }
    }
    for (int64_t i = num_whole * kLanes; i < n; ++i) {
      const Sums<N> value = f(i);
      for (int k = 0; k < N; ++k) lanes[k][0] += value.at[k];
    }
  }

  template <int N>
  static Sums<N> total(const double (&lanes)[N][kLanes]) {
    Sums<N> sums = {};
    for (int k = 0; k < N; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) sums.at[k] += lanes[k][lane];
    }
    return sums;
  }

  mutable std::tuple<Pair<uint32_t>, Pair<uint64_t>, Pair<float>, Pair<double>> memory_;
};

}  // namespace dpt::loss
