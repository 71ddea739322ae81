// tests/cpp/runtime_kernels.h -- what the tests of the CPU runtime's kernels share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "dpt/runtime/kernels.h"

namespace dpt::runtime::testing {

// What outputs are filled with where nothing may be written.
constexpr float kCanary = -12345.0f;

// Aligned to 64 bytes.
struct Buffer {
  explicit Buffer(size_t bytes) : storage(bytes + 64) {}
  void* data() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(storage.data());
    return reinterpret_cast<void*>((at + 63) / 64 * 64);
  }
  std::vector<char> storage;
};

inline std::vector<float> random_floats(std::mt19937& random, int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kIsas) {
    if (is_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace dpt::runtime::testing
