// tests/cpp/test_runtime_attention.cpp -- the runtime's attention against a slow float64 reference.
#include <cmath>

#include "runtime_kernels.h"

namespace dpt::runtime::test {
namespace {

struct Case {
  int64_t batch, tokens, heads, head_dim;

  int64_t qkv_size() const { return batch * tokens * 3 * heads * head_dim; }
  int64_t out_size() const { return batch * tokens * heads * head_dim; }
  // Of number `d` of query (0), key (1) or value (2) of a token and a head.
  int64_t place(int64_t image, int64_t token, int64_t which, int64_t head, int64_t d) const {
    return (((image * tokens + token) * 3 + which) * heads + head) * head_dim + d;
  }
  int64_t out_place(int64_t image, int64_t token, int64_t head, int64_t d) const {
    return ((image * tokens + token) * heads + head) * head_dim + d;
  }
};

Attention work_of(const Case& at, const std::vector<float>& qkv, Output& out,
                  Precision precision = Precision::kFloat32) {
  Attention work;
  work.precision = precision;
  work.qkv = qkv.data();
  work.batch = at.batch;
  work.tokens = at.tokens;
  work.heads = at.heads;
  work.head_dim = at.head_dim;
  work.out = out.data();
  return work;
}

// How much the kernel may be off, by what its factors and weights are rounded to.
struct Rounding {
  double factor = 0;     // of q, k and v
  double weight = 2e-7;  // of exp
};

// Checks one head of one image. A score is a sum of head_dim products; its error moves a weight by
// as much, relatively, and the sum of weights likewise. The outputs are sums over the tokens.
void expect_close(const Case& at, const std::vector<float>& qkv, const Output& out, int64_t image,
                  int64_t head, Rounding rounding = {}) {
  const auto number = [&](int64_t token, int64_t which, int64_t d) {
    return static_cast<double>(qkv[at.place(image, token, which, head, d)]);
  };
  std::vector<double> score(at.tokens), weight(at.tokens);
  for (int64_t query = 0; query < at.tokens; ++query) {
    double greatest = -std::numeric_limits<double>::infinity(), size = 0;
    for (int64_t key = 0; key < at.tokens; ++key) {
      double absolute = 0;
      score[key] = 0;
      for (int64_t d = 0; d < at.head_dim; ++d) {
        score[key] += number(query, 0, d) * number(key, 1, d);
        absolute += std::abs(number(query, 0, d) * number(key, 1, d));
      }
      greatest = std::max(greatest, score[key]);
      size = std::max(size, absolute);
    }
    double sum = 0;
    for (int64_t key = 0; key < at.tokens; ++key) {
      weight[key] = std::exp(score[key] - greatest);
      sum += weight[key];
    }
    // Two scores are subtracted; each has head_dim roundings, and three of the exponent.
    const double score_error = 2 * size * ((at.head_dim + 3) * kEps + 2 * rounding.factor);
    const double relative = 2 * (std::expm1(score_error) + rounding.weight) +
                            (at.tokens + 8) * kEps * 2 + rounding.factor;
    for (int64_t d = 0; d < at.head_dim; ++d) {
      double expected = 0, absolute = 0;
      for (int64_t key = 0; key < at.tokens; ++key) {
        expected += weight[key] / sum * number(key, 2, d);
        absolute += weight[key] / sum * std::abs(number(key, 2, d));
      }
      ASSERT_NEAR(out[at.out_place(image, query, head, d)], expected, relative * absolute + 1e-37)
          << "image " << image << " head " << head << " query " << query << " d " << d;
    }
  }
}

void expect_close(const Case& at, const std::vector<float>& qkv, const Output& out,
                  Rounding rounding = {}) {
  for (int64_t image = 0; image < at.batch; ++image) {
    for (int64_t head = 0; head < at.heads; ++head) {
      expect_close(at, qkv, out, image, head, rounding);
    }
  }
}

class RuntimeAttention : public testing::TestWithParam<Isa> {
 protected:
  const Kernel<Attention>& kernel() const { return kernels(GetParam()).attention; }
};
INSTANTIATE_TEST_SUITE_P(Isa, RuntimeAttention, testing::ValuesIn(supported()),
                         [](const auto& info) { return to_string(info.param); });

const std::vector<Case> kCases = {
    {1, 1, 1, 1},    {2, 1, 3, 64},   {1, 2, 1, 32},   {1, 3, 2, 5},
    {2, 7, 2, 33},   {1, 8, 1, 128},  {1, 17, 3, 48},  {2, 33, 2, 40},
    {1, 63, 1, 127}, {1, 100, 2, 36}, {1, 193, 1, 64}, {1, 256, 1, 32},
    {1, 257, 2, 16}, {1, 385, 1, 96}, {1, 577, 1, 64}, {1, 1030, 1, 8}};

testing::Message named(const Case& at) {
  return testing::Message() << at.batch << " images, " << at.tokens << " tokens, " << at.heads
                            << " heads of " << at.head_dim;
}

TEST_P(RuntimeAttention, MatchesReferenceForAnyNumberOfTokens) {
  for (const Case& at : kCases) {
    SCOPED_TRACE(named(at));
    const std::vector<float> qkv = random_floats(at.qkv_size(), 1);
    Output out(at.out_size());
    run_all(kernel(), work_of(at, qkv, out), {&out});
    expect_close(at, qkv, out);
  }
}

// Numbers of which eight bits are all: only weights are rounded, to half of 2^-8.
TEST_P(RuntimeAttention, MatchesReferenceInBFloat16) {
  for (const Case& at : kCases) {
    SCOPED_TRACE(named(at));
    std::vector<float> qkv = random_floats(at.qkv_size(), 5, -127, 127);
    for (float& x : qkv) x = std::round(x) / 64;
    Output out(at.out_size());
    run_all(kernel(), work_of(at, qkv, out, Precision::kBFloat16), {&out});
    expect_close(at, qkv, out, {.weight = 1.0 / 512});
  }
}

TEST_P(RuntimeAttention, RoundsFactorsToNearestBFloat16) {
  const Case at{1, 50, 2, 64};
  const std::vector<float> qkv = random_floats(at.qkv_size(), 6, -0.5F, 0.5F);
  Output out(at.out_size());
  run_all(kernel(), work_of(at, qkv, out, Precision::kBFloat16), {&out});
  expect_close(at, qkv, out, {.factor = 1.0 / 512, .weight = 1.0 / 512});

  // One token: its value, rounded. Ties go to even.
  const Case one{1, 1, 1, 6};
  const std::vector<float> values = {1.00390625F, 1.01171875F, 1.004F, -1.00390625F, 303, 0};
  const std::vector<float> rounded = {1, 1.015625F, 1.0078125F, -1, 304, 0};
  std::vector<float> tie(one.qkv_size());
  for (int64_t d = 0; d < one.head_dim; ++d) tie[one.place(0, 0, 2, 0, d)] = values[d];
  Output single(one.out_size());
  run_all(kernel(), work_of(one, tie, single, Precision::kBFloat16), {&single});
  for (int64_t d = 0; d < one.head_dim; ++d) EXPECT_EQ(single[d], rounded[d]) << d;
}

TEST_P(RuntimeAttention, ComputesInFloat32ForInt8) {
  const Case at{1, 50, 2, 24};
  const std::vector<float> qkv = random_floats(at.qkv_size(), 7);
  Output expected(at.out_size()), out(at.out_size());
  run_all(kernel(), work_of(at, qkv, expected), {&expected});
  run_all(kernel(), work_of(at, qkv, out, Precision::kInt8), {&out});
  EXPECT_EQ(out.copy(), expected.copy());
}

TEST_P(RuntimeAttention, HasNoUnitsWithoutTokens) {
  const std::vector<float> qkv;
  Output out(0);
  const Attention work = work_of({1, 0, 2, 64}, qkv, out);
  EXPECT_EQ(kernel().units(work), 0);
  call(kernel(), work, 0, 0);
}

TEST_P(RuntimeAttention, MatchesReferenceForLargeScores) {
  const Case at{1, 300, 1, 32};
  std::vector<float> qkv = random_floats(at.qkv_size(), 2);
  for (int64_t token = 0; token < at.tokens; ++token) {
    for (int64_t d = 0; d < at.head_dim; ++d) qkv[at.place(0, token, 0, 0, d)] *= 300;
  }
  Output out(at.out_size());
  run_all(kernel(), work_of(at, qkv, out), {&out});
  expect_close(at, qkv, out);
}

// Two tokens whose scores are 0 and -x: the weight of the second, over the whole range of exp.
TEST_P(RuntimeAttention, WeighsFarScoresAccuratelyAndFartherOnesAsZero) {
  const Case at{1, 2, 1, 1};
  for (float x = 0; x < 120; x += 0.0173F) {
    const std::vector<float> qkv = {1, 0, 0, 1, -x, 1};
    Output out(at.out_size());
    call(kernel(), work_of(at, qkv, out), 0, 1);
    const double expected =
        std::exp(-static_cast<double>(x)) / (1 + std::exp(-static_cast<double>(x)));
    // Relative: exp, the roundings of the exponent, the sum and the quotient.
    if (x < 87) {
      ASSERT_NEAR(out[0] / expected, 1, 2e-7 + (4 * x + 6) * kEps) << x;
    } else if (x > 87.4F) {
      ASSERT_EQ(out[0], 0) << x;
    }
  }
}

TEST_P(RuntimeAttention, LeavesOutKeysOfScoreMinusInfinity) {
  const Case at{1, 40, 1, 8}, less{1, 39, 1, 8};
  std::vector<float> qkv = random_floats(at.qkv_size(), 3, 0.1F, 1);
  Output expected(less.out_size()), out(at.out_size());
  run_all(kernel(), work_of(less, qkv, expected), {&expected});
  qkv[at.place(0, 39, 1, 0, 0)] = -kInf;
  run_all(kernel(), work_of(at, qkv, out), {&out});
  for (int64_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(out[i], expected[i], 100 * kEps);
  }
}

TEST_P(RuntimeAttention, FindsScoresBehindABlockOfKeysOfMinusInfinity) {
  const Case at{1, 600, 1, 4};
  std::vector<float> qkv(at.qkv_size(), 1);
  for (int64_t token = 0; token < 599; ++token) qkv[at.place(0, token, 1, 0, 0)] = -kInf;
  for (int64_t d = 0; d < at.head_dim; ++d) qkv[at.place(0, 599, 2, 0, d)] = 7;
  Output out(at.out_size());
  run_all(kernel(), work_of(at, qkv, out), {&out});
  for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], 7);
}

TEST_P(RuntimeAttention, IsNaNWithoutAnyFiniteScore) {
  const Case at{1, 5, 1, 4};
  std::vector<float> qkv(at.qkv_size(), 1);
  for (int64_t token = 0; token < at.tokens; ++token) qkv[at.place(0, token, 1, 0, 2)] = -kInf;
  Output out(at.out_size());
  run_all(kernel(), work_of(at, qkv, out), {&out});
  for (int64_t i = 0; i < out.size(); ++i) EXPECT_TRUE(std::isnan(out[i]));
}

// Also NaNs with a payload in their low bits: those are where exponents are made, and what
// bfloat16 rounds off.
TEST_P(RuntimeAttention, CarriesNaNWhereItBelongs) {
  const Case at{2, 300, 2, 16};
  const std::vector<float> clean = random_floats(at.qkv_size(), 4);
  for (const uint32_t bits : {0x7FC00000U, 0xFFC00000U, 0x7FC00101U, 0x7F800001U, 0x7FFFFFFFU}) {
    for (int64_t which = 0; which < 3; ++which) {
      for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
        std::vector<float> qkv = clean;
        std::memcpy(&qkv[at.place(1, 290, which, 1, 3)], &bits, sizeof bits);
        Output out(at.out_size());
        run_all(kernel(), work_of(at, qkv, out, precision), {&out});
        for (int64_t image = 0; image < at.batch; ++image) {
          for (int64_t token = 0; token < at.tokens; ++token) {
            for (int64_t head = 0; head < at.heads; ++head) {
              for (int64_t d = 0; d < at.head_dim; ++d) {
                const bool wanted =
                    image == 1 && head == 1 && (which == 0 ? token == 290 : which == 1 || d == 3);
                ASSERT_EQ(std::isnan(out[at.out_place(image, token, head, d)]), wanted)
                    << which << ' ' << image << ' ' << token << ' ' << head << ' ' << d;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace dpt::runtime::test
