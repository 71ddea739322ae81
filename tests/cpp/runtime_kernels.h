// tests/cpp/runtime_kernels.h -- what the tests of the runtime's kernels share: random numbers,
// weights and scratch in guarded memory, outputs between canaries, and any division of the work
// among calls.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "dpt/runtime/kernels.h"

namespace dpt::runtime::test {

// Half a unit in the last place: the relative error of one operation in float32.
constexpr double kEps = 1.0 / (1 << 24);
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
// What outputs are filled with where nothing may be written; no kernel computes it.
constexpr float kCanary = -12345.678F;

inline std::vector<Isa> supported() {
  std::vector<Isa> result;
  for (const Isa isa : kIsas) {
    if (is_supported(isa)) result.push_back(isa);
  }
  return result;
}

inline std::vector<float> random_floats(int64_t count, uint32_t seed, float low = -1,
                                        float high = 1) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> draw(low, high);
  std::vector<float> result(count);
  for (float& x : result) x = draw(engine);
  return result;
}

inline std::vector<float> normal_floats(std::mt19937& engine, int64_t count, float scale = 1) {
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> result(count);
  for (float& x : result) x = draw(engine);
  return result;
}

// Half to even; not for NaN.
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Aligned to 64 bytes and filled with ones, which are NaN as floats. It ends where its bytes end,
// so that the sanitizer sees what reaches beyond.
class Buffer {
 public:
  explicit Buffer(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, std::max<size_t>(bytes, 1)) != 0) std::abort();
    std::memset(memory, 0xff, bytes);
    memory_.reset(memory);
  }
  void* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
};

// What `pack(data)` writes, which must be within so many bytes.
template <class Pack>
Buffer packed(size_t bytes, const Pack& pack) {
  Buffer buffer(bytes + 64);
  pack(buffer.data());
  const auto* end = static_cast<const unsigned char*>(buffer.data()) + bytes;
  EXPECT_TRUE(std::all_of(end, end + 64, [](unsigned char c) { return c == 0xff; }))
      << "pack wrote past its bytes";
  return buffer;
}

// Floats between two guards.
class Output {
 public:
  explicit Output(int64_t size) : all_(size + 2 * kGuard, kCanary) {}

  float* data() { return all_.data() + kGuard; }
  int64_t size() const { return static_cast<int64_t>(all_.size()) - 2 * kGuard; }
  float operator[](int64_t i) const { return all_[i + kGuard]; }
  void clear() { std::fill(all_.begin(), all_.end(), kCanary); }
  bool untouched(int64_t i) const { return (*this)[i] == kCanary; }
  bool guarded() const {
    const auto untouched = [](float x) { return x == kCanary; };
    return std::all_of(all_.begin(), all_.begin() + kGuard, untouched) &&
           std::all_of(all_.end() - kGuard, all_.end(), untouched);
  }
  std::vector<float> copy() const { return {all_.begin() + kGuard, all_.end() - kGuard}; }
  std::vector<float>& all() { return all_; }

 private:
  static constexpr int64_t kGuard = 64;
  std::vector<float> all_;
};

// Of kernels that only processors with tiles have.
class TilesTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const Isa isa : supported()) {
      EXPECT_EQ(kernels(isa).matrix_product.run != nullptr, isa == Isa::kAmx);
      EXPECT_EQ(kernels(isa).attention_gradient.run != nullptr, isa == Isa::kAmx);
    }
    if (!is_supported(Isa::kAmx)) GTEST_SKIP() << "this processor has no tiles";
  }
};

template <class Work>
void call(const Kernel<Work>& kernel, const Work& work, int64_t begin, int64_t end) {
  const Buffer scratch(kernel.scratch(work));
  kernel.run(work, begin, end, scratch.data());
}

// Runs all units in one call, and then again in random parts and in any order, which must give the
// same bits. `work` writes into `outs`, which may hold what it adds to.
template <class Work>
void run_all(const Kernel<Work>& kernel, const Work& work,
             const std::vector<std::vector<float>*>& outs) {
  std::vector<std::vector<float>> before, whole;
  for (const auto* out : outs) before.push_back(*out);
  const int64_t units = kernel.units(work);
  call(kernel, work, 0, units);
  for (const auto* out : outs) whole.push_back(*out);
  std::mt19937 engine(static_cast<uint32_t>(units));
  for (const int64_t num_cuts : {int64_t{3}, std::min<int64_t>(units, 40)}) {
    std::vector<int64_t> cuts = {0, units};
    for (int64_t i = 0; i < num_cuts; ++i) cuts.push_back(engine() % (units + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::pair<int64_t, int64_t>> parts;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) parts.emplace_back(cuts[i], cuts[i + 1]);
    std::shuffle(parts.begin(), parts.end(), engine);
    for (size_t i = 0; i < outs.size(); ++i) {
      std::copy(before[i].begin(), before[i].end(), outs[i]->begin());  // `work` points there
    }
    for (const auto& [begin, end] : parts) call(kernel, work, begin, end);
    for (size_t i = 0; i < outs.size(); ++i) {
      const size_t bytes = whole[i].size() * sizeof(float);
      EXPECT_EQ(std::memcmp(outs[i]->data(), whole[i].data(), bytes), 0)
          << units << " units in " << parts.size() << " parts";
    }
  }
}

template <class Work>
void run_all(const Kernel<Work>& kernel, const Work& work, std::initializer_list<Output*> outs) {
  std::vector<std::vector<float>*> all;
  for (Output* out : outs) {
    out->clear();
    all.push_back(&out->all());
  }
  run_all(kernel, work, all);
  for (const Output* out : outs) EXPECT_TRUE(out->guarded());
}

}  // namespace dpt::runtime::test
