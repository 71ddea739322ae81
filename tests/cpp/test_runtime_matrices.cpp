// Products of two matrices of the CPU runtime against sums in double, where the processor has them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "dpt/runtime/kernels.h"
#include "runtime_kernels.h"

namespace {

using namespace dpt::runtime;
using namespace dpt::runtime::test;

// A factor in exactly the memory that it needs.
struct Matrix {
  std::vector<float> values;  // [rows, k], rounded
  Buffer memory;
  Factor factor;

  Matrix(int64_t rows, int64_t k, bool bfloat16, bool across, std::mt19937& random)
      : memory(extent(rows, k, across) * (bfloat16 ? 2 : 4)) {
    const int64_t stride = (across ? rows : k) + kGap;
    factor = {.data = memory.data(), .bfloat16 = bfloat16, .across = across, .stride = stride};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        const float x = normal_floats(random, 1)[0];
        const int64_t at = across ? i * stride + row : row * stride + i;
        if (bfloat16) {
          static_cast<uint16_t*>(memory.data())[at] = to_bfloat16(x);
        } else {
          static_cast<float*>(memory.data())[at] = x;
        }
        values.push_back(from_bfloat16(to_bfloat16(x)));
      }
    }
  }

 private:
  static constexpr int64_t kGap = 3;
  static int64_t extent(int64_t rows, int64_t k, bool across) {
    return across ? (k - 1) * (rows + kGap) + rows : (rows - 1) * (k + kGap) + k;
  }
};

struct Problem {
  int64_t m, n, k;
  bool left_bfloat16 = true, left_across = false, right_bfloat16 = true, right_across = false;
  bool bias = false, out_bfloat16 = false;
};

void check(const Kernels& table, const Problem& p, std::mt19937& random) {
  const Matrix left(p.m, p.k, p.left_bfloat16, p.left_across, random);
  const Matrix right(p.n, p.k, p.right_bfloat16, p.right_across, random);
  const std::vector<float> bias = normal_floats(random, p.n);
  const int64_t stride = p.n + 6;  // even: a float holds two bfloat16
  Output out(p.out_bfloat16 ? p.m * stride / 2 : p.m * stride);
  MatrixProduct work{.left = left.factor,
                     .right = right.factor,
                     .m = p.m,
                     .n = p.n,
                     .k = p.k,
                     .bias = p.bias ? bias.data() : nullptr,
                     .out = out.data(),
                     .out_bfloat16 = p.out_bfloat16,
                     .out_stride = stride};
  const Buffer weights = packed(table.matrix_bytes(work), [&](void* to) {
    work.packed = to;
    const int64_t units = table.matrix_pack.units(work);
    call(table.matrix_pack, work, units / 2, units);
    call(table.matrix_pack, work, 0, units / 2);
  });
  work.packed = weights.data();
  run_all(table.matrix_product, work, {&out});
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = p.bias ? bias[j] : 0, size = std::abs(sum);
      for (int64_t l = 0; l < p.k; ++l) {
        const double term =
            static_cast<double>(left.values[i * p.k + l]) * right.values[j * p.k + l];
        sum += term;
        size += std::abs(term);
      }
      float got;
      if (p.out_bfloat16) {
        uint16_t half;
        std::memcpy(&half, reinterpret_cast<const char*>(out.data()) + (i * stride + j) * 2, 2);
        got = from_bfloat16(half);
      } else {
        got = out[i * stride + j];
      }
      // Sums in float32, in any order; then half a unit of bfloat16.
      const double rounding = p.out_bfloat16 ? std::abs(sum) / 256 : 0;
      ASSERT_NEAR(got, sum, size * static_cast<double>(p.k + 2) * kEps + rounding)
          << p.m << " x " << p.n << " x " << p.k << " at " << i << ", " << j;
    }
    for (int64_t j = p.n; j < stride && !p.out_bfloat16; ++j) {
      EXPECT_TRUE(out.untouched(i * stride + j));
    }
  }
}

class RuntimeMatrices : public TilesTest {
 protected:
  std::mt19937 random{7};
};

TEST_F(RuntimeMatrices, Sizes) {
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1},
                                                                                  {1, 40, 3},
                                                                                  {16, 16, 32},
                                                                                  {17, 33, 34},
                                                                                  {32, 32, 64},
                                                                                  {33, 15, 31},
                                                                                  {70, 100, 257},
                                                                                  {330, 48, 600},
                                                                                  {40, 500, 1300},
                                                                                  {31, 64, 2100}}) {
    for (const bool across : {false, true}) {
      check(kernels(Isa::kAmx), {m, n, k, true, across, true, across, false, false}, random);
    }
  }
}

TEST_F(RuntimeMatrices, TypesAndLayouts) {
  for (int bits = 0; bits < 64; ++bits) {
    check(kernels(Isa::kAmx),
          {50, 44, 70, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0,
           (bits & 16) != 0, (bits & 32) != 0},
          random);
  }
}

// What is not a number spoils its row and no other.
TEST_F(RuntimeMatrices, NaN) {
  constexpr int64_t kM = 40, kN = 20, kK = 50;
  Matrix left(kM, kK, false, true, random);
  const Matrix right(kN, kK, true, false, random);
  static_cast<float*>(left.memory.data())[49 * left.factor.stride + 3] = kNaN;
  Output out(kM * kN);
  const Kernels& table = kernels(Isa::kAmx);
  MatrixProduct work{.left = left.factor,
                     .right = right.factor,
                     .m = kM,
                     .n = kN,
                     .k = kK,
                     .out = out.data(),
                     .out_stride = kN};
  const Buffer weights(table.matrix_bytes(work));
  work.packed = weights.data();
  call(table.matrix_pack, work, 0, table.matrix_pack.units(work));
  run_all(table.matrix_product, work, {&out});
  for (int64_t i = 0; i < kM * kN; ++i) EXPECT_EQ(std::isnan(out[i]), i / kN == 3) << i;
}

}  // namespace
