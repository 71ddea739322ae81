// tests/cpp/test_runtime_attention_gradient.cpp -- the runtime's gradient of attention against a
// slow float64 reference, where the processor has it.
#include <cmath>

#include "runtime_kernels.h"

namespace dpt::runtime::test {
namespace {

struct Case {
  int64_t batch, tokens, heads, head_dim;
  float size = 1;  // of queries and keys

  int64_t width() const { return heads * head_dim; }
  int64_t count() const { return batch * tokens * width(); }
};

// Bfloat16 in exactly the memory that they need.
struct Halves {
  std::vector<float> values;
  Buffer memory;

  explicit Halves(const std::vector<float>& from) : values(from), memory(2 * from.size()) {
    for (size_t i = 0; i < from.size(); ++i) {
      data()[i] = to_bfloat16(from[i]);
      values[i] = from_bfloat16(data()[i]);
    }
  }
  uint16_t* data() const { return static_cast<uint16_t*>(memory.data()); }
};

// q, k, v, out and its gradient of one head, [tokens, head_dim], in double.
struct Head {
  std::vector<double> q, k, v, out, grad;
};

// What the forward pass leaves, and what comes back.
struct Problem {
  Case at;
  Halves qkv, grad_out;
  std::vector<float> out, logsumexp;
  double scale;

  Problem(const Case& at, std::mt19937& random)
      : at(at),
        qkv(normal_floats(random, 3 * at.count(), at.size)),
        grad_out(normal_floats(random, at.count())),
        out(at.count()),
        logsumexp(at.batch * at.heads * at.tokens),
        scale(1 / std::sqrt(static_cast<double>(at.head_dim))) {
    for (int64_t head = 0; head < at.batch * at.heads; ++head) {
      const Head values = of(head, nullptr);
      for (int64_t i = 0; i < at.tokens; ++i) {
        const std::vector<double> row = scores(values, i);
        double sum = 0;
        for (const double x : row) sum += std::exp(x - row[i]);
        logsumexp[head * at.tokens + i] = static_cast<float>(std::log(sum) + row[i]);
        for (int64_t d = 0; d < at.head_dim; ++d) {
          double total = 0;
          for (int64_t j = 0; j < at.tokens; ++j) {
            total += std::exp(row[j] - row[i]) / sum * values.v[j * at.head_dim + d];
          }
          out[place(head, i, d)] = static_cast<float>(total);
        }
      }
    }
  }

  int64_t place(int64_t head, int64_t token, int64_t d) const {
    return (head / at.heads * at.tokens + token) * at.width() + head % at.heads * at.head_dim + d;
  }
  // Number `which` of query, key and value.
  int64_t place(int64_t head, int64_t token, int64_t which, int64_t d) const {
    return (head / at.heads * at.tokens + token) * 3 * at.width() + which * at.width() +
           head % at.heads * at.head_dim + d;
  }

  Head of(int64_t head, const std::vector<float>* rounded_out) const {
    Head result;
    for (int64_t i = 0; i < at.tokens; ++i) {
      for (int64_t d = 0; d < at.head_dim; ++d) {
        result.q.push_back(qkv.values[place(head, i, 0, d)]);
        result.k.push_back(qkv.values[place(head, i, 1, d)]);
        result.v.push_back(qkv.values[place(head, i, 2, d)]);
        result.grad.push_back(grad_out.values[place(head, i, d)]);
        if (rounded_out) result.out.push_back((*rounded_out)[place(head, i, d)]);
      }
    }
    return result;
  }

  double dot(const std::vector<double>& a, int64_t i, const std::vector<double>& b,
             int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < at.head_dim; ++d)
      sum += a[i * at.head_dim + d] * b[j * at.head_dim + d];
    return sum;
  }
  std::vector<double> scores(const Head& values, int64_t query) const {
    std::vector<double> row;
    for (int64_t j = 0; j < at.tokens; ++j)
      row.push_back(scale * dot(values.q, query, values.k, j));
    return row;
  }
};

void check(const Case& at, std::mt19937& random) {
  const Problem problem(at, random);
  const Halves out(problem.out);
  Output grad((3 * at.count() + 1) / 2);
  const AttentionGradient work{.qkv = problem.qkv.data(),
                               .out = out.data(),
                               .grad_out = problem.grad_out.data(),
                               .logsumexp = problem.logsumexp.data(),
                               .batch = at.batch,
                               .tokens = at.tokens,
                               .heads = at.heads,
                               .head_dim = at.head_dim,
                               .scale = static_cast<float>(problem.scale),
                               .grad = reinterpret_cast<uint16_t*>(grad.data())};
  run_all(kernels(Isa::kAmx).attention_gradient, work, {&grad});
  EXPECT_TRUE(grad.guarded());
  std::vector<uint16_t> got(3 * at.count());
  if (!got.empty()) std::memcpy(got.data(), grad.data(), got.size() * sizeof(uint16_t));

  const int64_t tokens = at.tokens, dim = at.head_dim;
  for (int64_t head = 0; head < at.batch * at.heads; ++head) {
    const Head values = problem.of(head, &out.values);
    std::vector<double> want(3 * tokens * dim), size(3 * tokens * dim);
    const auto add = [&](int64_t which, int64_t token, int64_t d, double weight, double weight_size,
                         double factor) {
      want[(which * tokens + token) * dim + d] += weight * factor;
      size[(which * tokens + token) * dim + d] += weight_size * std::abs(factor);
    };
    for (int64_t i = 0; i < tokens; ++i) {
      const std::vector<double> row = problem.scores(values, i);
      const double delta = problem.dot(values.grad, i, values.out, i);
      for (int64_t j = 0; j < tokens; ++j) {
        const double weight = std::exp(row[j] - problem.logsumexp[head * tokens + i]);
        const double of_weight = problem.dot(values.grad, i, values.v, j);
        const double of_score = weight * (of_weight - delta);
        // Sums in float32 round what they are the difference of; a score moves the weight by as
        // much, relatively.
        const double rounding = kEps * (dim + 8) * 256 * weight *
                                (std::abs(of_weight) + std::abs(delta) + 1) *
                                (1 + std::abs(row[j]));
        for (int64_t d = 0; d < dim; ++d) {
          const double absolute = std::abs(of_score) + rounding;
          add(0, i, d, of_score * problem.scale, absolute * problem.scale, values.k[j * dim + d]);
          add(1, j, d, of_score * problem.scale, absolute * problem.scale, values.q[i * dim + d]);
          add(2, j, d, weight, weight + rounding, values.grad[i * dim + d]);
        }
      }
    }
    for (int64_t which = 0; which < 3; ++which) {
      for (int64_t i = 0; i < tokens; ++i) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t at_want = (which * tokens + i) * dim + d;
          // Weights and gradients of scores are rounded to bfloat16, by 1 in 512 at the most, and
          // so is the result; the power of two is off by 1 in 9000.
          ASSERT_NEAR(from_bfloat16(got[problem.place(head, i, which, d)]), want[at_want],
                      size[at_want] / 256 + std::abs(want[at_want]) / 512 + 1e-12)
              << "tokens " << tokens << ", dim " << dim << ", head " << head << ", which " << which
              << ", token " << i << ", d " << d;
        }
      }
    }
  }
}

class RuntimeAttentionGradient : public TilesTest {
 protected:
  std::mt19937 random{11};
};

TEST_F(RuntimeAttentionGradient, Sizes) {
  for (const Case& at : std::vector<Case>{{1, 1, 1, 1},
                                          {1, 2, 1, 64},
                                          {1, 31, 2, 7},
                                          {2, 32, 3, 32},
                                          {1, 33, 2, 64},
                                          {3, 65, 1, 40},
                                          {1, 145, 2, 80},
                                          {1, 577, 1, 64}}) {
    check(at, random);
  }
}

// Scores of hundreds: nearly all weights are zero, and the logsumexp is far from it.
TEST_F(RuntimeAttentionGradient, LargeScores) { check({1, 70, 2, 64, 8}, random); }

TEST_F(RuntimeAttentionGradient, Nothing) {
  for (const Case& at : std::vector<Case>{{0, 5, 2, 8}, {2, 0, 2, 8}}) check(at, random);
}

}  // namespace
}  // namespace dpt::runtime::test
