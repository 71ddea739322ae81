// tests/cpp/runtime_kernel.h -- what the tests of the runtime's kernels share: calls with scratch
// that holds NaN, outputs between canaries, and any division of the work among calls.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "dpt/runtime/kernels.h"

namespace dpt::runtime::test {

// Half a unit in the last place: the relative error of one operation in float32.
constexpr double kEps = 1.0 / (1 << 24);
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

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

// Floats between two guards. All of it is filled with a number that no kernel computes.
class Output {
 public:
  explicit Output(int64_t size) : all_(size + 2 * kGuard, kUntouched) {}

  float* data() { return all_.data() + kGuard; }
  int64_t size() const { return static_cast<int64_t>(all_.size()) - 2 * kGuard; }
  float operator[](int64_t i) const { return all_[i + kGuard]; }
  void clear() { std::fill(all_.begin(), all_.end(), kUntouched); }
  bool untouched(int64_t i) const { return (*this)[i] == kUntouched; }
  bool guarded() const {
    return std::all_of(all_.begin(), all_.begin() + kGuard, is_untouched) &&
           std::all_of(all_.end() - kGuard, all_.end(), is_untouched);
  }
  std::vector<float> copy() const { return {all_.begin() + kGuard, all_.end() - kGuard}; }

 private:
  static constexpr int64_t kGuard = 64;
  static constexpr float kUntouched = -12345.678F;
  static bool is_untouched(float x) { return x == kUntouched; }
  std::vector<float> all_;
};

template <class Work>
void call(const Kernel<Work>& kernel, const Work& work, int64_t begin, int64_t end) {
  const size_t size = kernel.scratch(work);
  void* scratch = nullptr;
  ASSERT_EQ(posix_memalign(&scratch, 64, std::max<size_t>(size, 1)), 0);
  const std::unique_ptr<void, decltype(&std::free)> owner(scratch, std::free);
  std::memset(scratch, 0xFF, size);
  kernel.run(work, begin, end, scratch);
}

// Runs all units in one call, and then again in random parts and in another order, which must give
// the same bits. `work` writes into `outs`.
template <class Work>
void run_all(const Kernel<Work>& kernel, const Work& work, std::vector<Output*> outs) {
  const int64_t units = kernel.units(work);
  call(kernel, work, 0, units);
  std::vector<std::vector<float>> whole;
  for (const Output* out : outs) whole.push_back(out->copy());
  std::mt19937 engine(static_cast<uint32_t>(units));
  for (int round = 0; round < 2; ++round) {
    std::vector<int64_t> cuts = {0, units};
    const int64_t parts = round == 0 ? 3 : std::min<int64_t>(units, 40);
    for (int64_t i = 0; i < parts; ++i) cuts.push_back(engine() % (units + 1));
    std::sort(cuts.begin(), cuts.end());
    for (Output* out : outs) out->clear();
    for (size_t i = cuts.size() - 1; i > 0; --i) call(kernel, work, cuts[i - 1], cuts[i]);
    for (size_t i = 0; i < outs.size(); ++i) {
      const std::vector<float> again = outs[i]->copy();
      EXPECT_EQ(std::memcmp(again.data(), whole[i].data(), again.size() * sizeof(float)), 0)
          << "units " << units << ", round " << round;
    }
  }
  for (const Output* out : outs) EXPECT_TRUE(out->guarded());
}

}  // namespace dpt::runtime::test
