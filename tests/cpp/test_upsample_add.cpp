// tests/cpp/test_upsample_add.cpp -- dpt::upsample_add against a slow float64 reference.
#include "dpt/ops/upsample_add.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "dpt/ops/upsample_add_math.h"

namespace {

using at::Tensor;

struct Case {
  int64_t h, w, H, W;
};

const std::vector<Case> kCases = {
    {3, 5, 7, 11}, {12, 12, 24, 24}, {4, 7, 4, 7}, {7, 9, 3, 4}, {1, 1, 4, 3},
    {2, 3, 1, 1},  {1, 5, 6, 1},     {1, 1, 1, 1}, {5, 1, 5, 9}, {17, 40, 31, 80},
};

Tensor call_operator(const Tensor& x, const Tensor& skip) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("dpt::upsample_add", "")
      .typed<Tensor(const Tensor&, const Tensor&)>()
      .call(x, skip);
}

// The corners of input and output coincide, so output i lies at i * (in - 1) / (out - 1).
Tensor reference(const Tensor& x, const Tensor& skip) {
  const Tensor from = x.to(at::kDouble).contiguous(),
               out = skip.to(at::kDouble).clone(at::MemoryFormat::Contiguous);
  const auto value = from.accessor<double, 4>();
  auto result = out.accessor<double, 4>();
  const auto position = [](int64_t i, int64_t in, int64_t n) {
    return n == 1 ? 0.0 : static_cast<double>(i * (in - 1)) / static_cast<double>(n - 1);
  };
  for (int64_t b = 0; b < out.size(0); ++b) {
    for (int64_t c = 0; c < out.size(1); ++c) {
      for (int64_t i = 0; i < out.size(2); ++i) {
        for (int64_t j = 0; j < out.size(3); ++j) {
          const double y = position(i, from.size(2), out.size(2)),
                       z = position(j, from.size(3), out.size(3));
          for (int64_t k = 0; k < from.size(2); ++k) {
            for (int64_t l = 0; l < from.size(3); ++l) {
              const double weight =
                  std::max(0.0, 1 - std::abs(y - k)) * std::max(0.0, 1 - std::abs(z - l));
              result[b][c][i][j] += weight * value[b][c][k][l];
            }
          }
        }
      }
    }
  }
  return out;
}

// A position is off by a few ulps of the input's side, times a difference of neighbours (below 16
// for normal values); the sum is then rounded to its dtype once (ulps of values below 16).
double tolerance(at::ScalarType type, const Case& c) {
  const double index = type == at::kDouble ? std::numeric_limits<double>::epsilon() : 0x1p-23;
  const double unit = type == at::kHalf ? 0x1p-10 : type == at::kBFloat16 ? 0x1p-7 : index;
  return 16 * index * static_cast<double>(std::max(c.h, c.w)) + 8 * unit;
}

void expect_close(const Tensor& got, const Tensor& want, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  if (got.numel() == 0) return;
  EXPECT_LE((got.to(at::kDouble) - want).abs().max().item<double>(), tolerance) << what;
}

std::string name(const Case& c, at::ScalarType type) {
  return std::to_string(c.h) + "x" + std::to_string(c.w) + " to " + std::to_string(c.H) + "x" +
         std::to_string(c.W) + " " + c10::toString(type);
}

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16};
constexpr at::MemoryFormat kFormats[] = {at::MemoryFormat::Contiguous,
                                         at::MemoryFormat::ChannelsLast};

TEST(UpsampleAdd, EqualsReferenceInEveryDtypeAndLayout) {
  for (const auto& c : kCases) {
    for (const auto type : kTypes) {
      const Tensor x = at::randn({2, 6, c.h, c.w}).to(type),
                   skip = at::randn({2, 6, c.H, c.W}).to(type);
      const Tensor want = reference(x, skip);
      for (const auto x_format : kFormats) {
        for (const auto skip_format : kFormats) {
          const Tensor out = call_operator(x.contiguous(x_format), skip.contiguous(skip_format));
          EXPECT_EQ(out.scalar_type(), type);
          EXPECT_TRUE(out.is_contiguous(skip_format)) << name(c, type);
          expect_close(out, want, tolerance(type, c), name(c, type));
        }
      }
    }
  }
}

TEST(UpsampleAdd, TakesTensorsThatAreNotDense) {
  const Case c{5, 6, 9, 13};
  const Tensor x = at::randn({2, 6, 2 * c.h, c.w}).slice(2, 0, std::nullopt, 2);
  const Tensor skip = at::randn({6, 2, c.W, c.H}).permute({1, 0, 3, 2});
  expect_close(call_operator(x, skip), reference(x, skip), tolerance(at::kFloat, c), "strided");
  const Tensor expanded = skip.slice(1, 0, 1).expand({2, 6, c.H, c.W});
  expect_close(call_operator(x, expanded), reference(x, expanded), tolerance(at::kFloat, c),
               "expanded");
}

TEST(UpsampleAdd, TakesEmptyBatchAndNoChannels) {
  for (const auto format : kFormats) {
    const Tensor x = at::randn({0, 4, 3, 3}).contiguous(format),
                 skip = at::randn({0, 4, 6, 6}).contiguous(format);
    EXPECT_EQ(call_operator(x, skip).sizes(), skip.sizes());
    EXPECT_EQ(call_operator(at::randn({2, 0, 3, 3}), at::randn({2, 0, 6, 6})).numel(), 0);
  }
}

TEST(UpsampleAdd, CoreFunctionEqualsReferenceAndPromotes) {
  const Case c{5, 6, 9, 13};
  for (const auto type : kTypes) {
    const Tensor x = at::randn({2, 6, c.h, c.w}).to(type),
                 skip = at::randn({2, 6, c.H, c.W}).to(type);
    // Twice the tolerance: the ATen form of half types rounds before and after it adds.
    expect_close(dpt::upsample_add(x, skip), reference(x, skip), 2 * tolerance(type, c),
                 name(c, type));
  }
  const Tensor x = at::randn({2, 6, c.h, c.w}).to(at::kBFloat16),
               skip = at::randn({2, 6, c.H, c.W});
  const Tensor out = dpt::upsample_add(x, skip);
  EXPECT_EQ(out.scalar_type(), at::kFloat);
  expect_close(out, reference(x, skip), tolerance(at::kBFloat16, c), "mixed dtypes");
}

// d/dt of sum(weight * f(x + t * direction)) at 0 against <grad, direction>; f is linear, so the
// difference is exact.
TEST(UpsampleAdd, GradientEqualsFiniteDifference) {
  for (const bool deterministic : {false, true}) {
    at::globalContext().setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    for (const auto& c : kCases) {
      const auto options = at::TensorOptions().dtype(at::kDouble);
      const Tensor x = at::randn({2, 3, c.h, c.w}, options).requires_grad_();
      const Tensor skip = at::randn({2, 3, c.H, c.W}, options).requires_grad_();
      const Tensor weight = at::randn({2, 3, c.H, c.W}, options);
      const auto grads =
          torch::autograd::grad({(dpt::upsample_add(x, skip) * weight).sum()}, {x, skip});

      const Tensor direction = at::randn_like(x.detach());
      const auto loss = [&](double t) {
        return (reference(x.detach() + t * direction, skip.detach()) * weight).sum();
      };
      const double want = ((loss(1) - loss(-1)) / 2).item<double>();
      EXPECT_NEAR((grads[0] * direction).sum().item<double>(), want, 1e-9) << name(c, at::kDouble);
      EXPECT_TRUE(at::equal(grads[1], weight)) << name(c, at::kDouble);
    }
  }
  at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
}

TEST(UpsampleAdd, GradientOfOneInputAlone) {
  const Tensor x = at::randn({1, 2, 3, 3}), skip = at::randn({1, 2, 6, 6}).requires_grad_();
  const auto grads = torch::autograd::grad({dpt::upsample_add(x, skip).sum()}, {skip});
  EXPECT_TRUE(at::equal(grads[0], at::ones_like(skip)));
  EXPECT_FALSE(dpt::upsample_add(x, skip.detach()).requires_grad());
}

void expect_value_error(const Tensor& x, const Tensor& skip, const std::string& message) {
  try {
    call_operator(x, skip);
    FAIL() << "expected: " << message;
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(UpsampleAdd, ErrorsSayWhatWasWantedAndWhatCame) {
  const Tensor x = at::randn({2, 4, 3, 3}), skip = at::randn({2, 4, 6, 6});
  expect_value_error(x[0], skip, "must have 4 dimensions, got x [4, 3, 3] and skip [2, 4, 6, 6]");
  expect_value_error(x, skip.to(at::kDouble), "must have one dtype, got x Float and skip Double");
  expect_value_error(x.to(at::kLong), skip.to(at::kLong),
                     "must be float32, float64, float16 or bfloat16, got Long");
  expect_value_error(x, skip.slice(1, 0, 3),
                     "same batch size and channels, got x [2, 4, 3, 3] and skip [2, 3, 6, 6]");
  expect_value_error(x.slice(2, 0, 0), skip, "must be at least 1, got x [2, 4, 0, 3]");
  expect_value_error(x, skip.to(at::kMeta), "must be on one device, got x on cpu and skip on meta");
}

// --- the functions that the CUDA kernel runs, on the host ---

TEST(UpsampleMath, SourceStaysInsideAndHitsBothCorners) {
  for (int64_t in = 1; in <= 65; ++in) {
    for (int64_t out = 1; out <= 130; ++out) {
      const float scale = dpt::upsample::scale<float>(in, out);
      for (int64_t i = 0; i < out; ++i) {
        const auto s = dpt::upsample::source(scale, i, in);
        const double want =
            out == 1 ? 0 : static_cast<double>(i * (in - 1)) / static_cast<double>(out - 1);
        ASSERT_GE(s.lo, 0);
        ASSERT_LT(s.hi, in);
        ASSERT_LE(s.hi - s.lo, 1);
        ASSERT_GE(s.fraction, 0);
        ASSERT_LE(s.fraction, 1);
        // Scale, product and difference round once each, at the size of `in`.
        ASSERT_NEAR(s.lo + (s.hi > s.lo ? s.fraction : 0), want,
                    3 * 0x1p-24 * static_cast<double>(in));
      }
    }
  }
}

TEST(UpsampleMath, EqualSizesCopy) {
  for (int64_t n = 1; n < 2000; ++n) {
    const float scale = dpt::upsample::scale<float>(n, n);
    for (const int64_t i : {int64_t{0}, n / 2, n - 1}) {
      const auto s = dpt::upsample::source(scale, i, n);
      ASSERT_EQ(s.lo, i);
      ASSERT_EQ(s.fraction, 0);
    }
  }
}

template <class T, int V, class Index>
void expect_items_equal_reference(const Case& c) {
  namespace up = dpt::upsample;
  using A = up::Acc<T>;
  const auto type = c10::CppTypeToScalarType<T>::value;
  const Tensor x = at::randn({2, 8, c.h, c.w}).to(type),
               skip = at::randn({2, 8, c.H, c.W}).to(type);
  const Tensor want = reference(x, skip);
  const up::Size n{2, 8, c.h, c.w, c.H, c.W};
  const A scale_h = up::scale<A>(c.h, c.H), scale_w = up::scale<A>(c.w, c.W);
  for (const auto format : kFormats) {
    const bool channels_last = format == at::MemoryFormat::ChannelsLast;
    if (!channels_last && c.W % V != 0) continue;
    const Tensor from = x.contiguous(format), add = skip.contiguous(format),
                 out = at::empty_like(add);
    for (Index item = 0; item < static_cast<Index>(out.numel() / V); ++item) {
      if (channels_last) {
        up::channels_last_item<V>(n, scale_h, scale_w, from.const_data_ptr<T>(),
                                  add.const_data_ptr<T>(), out.mutable_data_ptr<T>(), item);
      } else {
        up::contiguous_item<V>(n, scale_h, scale_w, from.const_data_ptr<T>(),
                               add.const_data_ptr<T>(), out.mutable_data_ptr<T>(), item);
      }
    }
    expect_close(out, want, tolerance(type, c),
                 name(c, type) + (channels_last ? " channels-last" : ""));
  }
}

TEST(UpsampleMath, KernelItemsEqualReference) {
  for (const auto& c : kCases) {
    expect_items_equal_reference<float, 1, uint32_t>(c);
    expect_items_equal_reference<float, 4, uint32_t>(c);
    expect_items_equal_reference<float, 4, uint64_t>(c);
    expect_items_equal_reference<double, 1, uint64_t>(c);
    expect_items_equal_reference<double, 2, uint32_t>(c);
    expect_items_equal_reference<at::Half, 8, uint32_t>(c);
    expect_items_equal_reference<at::BFloat16, 8, uint32_t>(c);
    expect_items_equal_reference<at::BFloat16, 1, uint32_t>(c);
  }
}

}  // namespace
