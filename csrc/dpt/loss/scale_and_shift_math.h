// csrc/dpt/loss/scale_and_shift_math.h -- what the CPU and CUDA kernels of the scale- and
// shift-invariant losses compute for one image (docs/losses.md has the formulas).
//
// Plain C++ without torch: nvcc compiles it for the device, and the tests run the same functions on
// the host. `Group` walks over the pixels (loss/group.h); all its threads call these functions and
// get the same results. Sums are float64; a residual is stored in the type of the maps.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "dpt/loss/group.h"
#include "dpt/loss/terms.h"

namespace dpt::loss {

template <class T>
DPT_DEVICE T sign(T x) {
  return (x > 0 ? T(1) : T(0)) - (x < 0 ? T(1) : T(0));
}

DPT_DEVICE bool is_finite(double x) { return x - x == 0; }

// A map without spread has no scale. Relative to its size: 1e-7 is the rounding of float32.
DPT_DEVICE bool is_constant(double spread, double centre) {
  return !(spread > 1e-7 * std::abs(centre) && spread >= 1e-30);
}

// --- alignment ---

// Robust (MiDaS, eq. 5): centre = median, spread = mean absolute deviation from it.
template <class T, class Group>
DPT_DEVICE void robust(const Group& group, bool published, int64_t n, int64_t count,
                       const T* prediction, const T* target, const uint8_t* mask, Stats& stats) {
  const auto median = [&](const T* map) {
    if (published) {
      return group.template select<T>(
          n, (n - 1) / 2, [](int64_t) { return true; },
          [&](int64_t i) { return mask[i] ? map[i] : T(0); });
    }
    return group.template select<T>(
        n, (count - 1) / 2, [&](int64_t i) { return mask[i] != 0; },
        [&](int64_t i) { return map[i]; });
  };
  const auto of_prediction = median(prediction), of_target = median(target);
  const double t = of_prediction.value, u = of_target.value;
  const auto sums = group.template sum<3>(n, [&](int64_t i) {
    const double p = static_cast<double>(prediction[i]) - t;
    const double q = static_cast<double>(target[i]) - u;
    const double d = mask[i] ? p : 0, e = mask[i] ? q : 0;
    return Sums<3>{std::abs(d), std::abs(e), sign(d)};
  });
  stats.prediction_centre = t;
  stats.prediction_spread = sums.at[0] / static_cast<double>(count);
  stats.target_centre = u;
  stats.target_spread = sums.at[1] / static_cast<double>(count);
  stats.num_centre = static_cast<double>(of_prediction.num_equal);
  stats.sum_signs = sums.at[2];
}

template <class T, class Group>
DPT_DEVICE Sums<2> means(const Group& group, int64_t n, int64_t count, const T* prediction,
                         const T* target, const uint8_t* mask) {
  const auto sums = group.template sum<2>(n, [&](int64_t i) {
    const auto p = static_cast<double>(prediction[i]), t = static_cast<double>(target[i]);
    return Sums<2>{mask[i] ? p : 0, mask[i] ? t : 0};
  });
  return {sums.at[0] / static_cast<double>(count), sums.at[1] / static_cast<double>(count)};
}

// Least squares: centre = mean, spread = variance and covariance. Returns whether a map is
// constant.
template <class T, class Group>
DPT_DEVICE bool least_squares(const Group& group, int64_t n, int64_t count, const T* prediction,
                              const T* target, const uint8_t* mask, Stats& stats) {
  const auto M = static_cast<double>(count);
  const auto centres = means(group, n, count, prediction, target, mask);
  // Rounding of the means is made good by the first moments about them.
  const double near = centres.at[0], near_target = centres.at[1];
  const auto moments = group.template sum<6>(n, [&](int64_t i) {
    const double d = mask[i] ? static_cast<double>(prediction[i]) - near : 0;
    const double e = mask[i] ? static_cast<double>(target[i]) - near_target : 0;
    return Sums<6>{d, e, d * d, d * e, std::abs(d), std::abs(e)};
  });
  const double rest = moments.at[0] / M, rest_target = moments.at[1] / M;
  stats.prediction_centre = near + rest;
  stats.target_centre = near_target + rest_target;
  stats.prediction_spread = moments.at[2] / M - rest * rest;
  stats.target_spread = moments.at[3] / M - rest * rest_target;
  return is_constant(moments.at[4] / M, stats.prediction_centre) ||
         is_constant(moments.at[5] / M, stats.target_centre);
}

// Aligns prediction to target, maps of n pixels; `stats` is for the functions below.
template <class T, class Group>
DPT_DEVICE Aligned align(const Group& group, Alignment alignment, bool published, int64_t n,
                         const T* prediction, const T* target, const uint8_t* mask, Stats& stats) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const auto sums = group.template sum<2>(n, [&](int64_t i) {
    const T zero = (prediction[i] - prediction[i]) + (target[i] - target[i]);
    const double valid = mask[i] ? 1.0 : 0;
    return Sums<2>{valid, zero == 0 ? 0 : valid};
  });
  const auto count = static_cast<int64_t>(sums.at[0]);
  stats = {};
  if (alignment == Alignment::kNone) {
    if (count == 0) return {1, 0, kEmpty};
    if (sums.at[1] > 0) return {1, 0, kNotFinite};
    // A residual keeps its differences in the type of the maps only if it is near zero.
    const auto centres = means(group, n, count, prediction, target, mask);
    stats.prediction_centre = centres.at[0];
    stats.target_centre = centres.at[1];
    stats.count = sums.at[0];
    return {1, 0, kUsed};
  }
  if (count == 0) return {nan, nan, kEmpty};
  if (sums.at[1] > 0) return {nan, nan, kNotFinite};
  bool constant;
  if (alignment == Alignment::kRobust) {
    robust(group, published, n, count, prediction, target, mask, stats);
    constant = is_constant(stats.prediction_spread, stats.prediction_centre) ||
               is_constant(stats.target_spread, stats.target_centre);
  } else {
    constant = least_squares(group, n, count, prediction, target, mask, stats);
  }
  const double scale = stats.target_spread / stats.prediction_spread;
  const double shift = stats.target_centre - scale * stats.prediction_centre;
  // Sums of float64 maps beyond 1e150 overflow.
  const bool overflow = !is_finite(stats.prediction_spread) || !is_finite(stats.target_spread) ||
                        !is_finite(stats.prediction_centre) || !is_finite(stats.target_centre);
  if (overflow) return {nan, nan, kNotFinite};
  if (constant) return {0, stats.target_centre, kConstant};
  stats.count = sums.at[0];
  return {scale, shift, kUsed};
}

// --- residuals ---

// Aligned prediction - target, in units of the target's spread where the alignment is robust; NaN
// where the mask is false, and everywhere if the image is dropped.
template <class T, class Group>
DPT_DEVICE void residuals(const Group& group, Alignment alignment, int64_t n, const Stats& stats,
                          const T* prediction, const T* target, const uint8_t* mask, T* residual) {
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  const bool used = stats.count > 0;
  double scale = 1, target_scale = 1;
  if (alignment == Alignment::kRobust) {
    scale = 1 / stats.prediction_spread;
    target_scale = 1 / stats.target_spread;
  } else if (alignment == Alignment::kLeastSquares) {
    scale = stats.target_spread / stats.prediction_spread;
  }
  group.for_each(n, [&](int64_t i) {
    const double d = static_cast<double>(prediction[i]) - stats.prediction_centre;
    const double e = static_cast<double>(target[i]) - stats.target_centre;
    residual[i] = used && mask[i] ? static_cast<T>(scale * d - target_scale * e) : nan;
  });
}

// Of `count` residuals among n, how large those are that count: see Stats.
template <class T, class Group>
DPT_DEVICE void trim(const Group& group, int64_t trim_millionths, int64_t n, int64_t count,
                     const T* residual, Stats& stats) {
  constexpr int64_t million = 1'000'000;
  const int64_t num_kept = count * (million - trim_millionths) / million;
  stats.threshold = -1;
  stats.kept_at_threshold = 0;
  if (num_kept == 0) return;
  const auto largest = group.template select<T>(
      n, num_kept - 1, [&](int64_t i) { return residual[i] == residual[i]; },
      [&](int64_t i) { return std::abs(residual[i]); });
  stats.threshold = largest.value;
  stats.kept_at_threshold =
      static_cast<double>(num_kept - largest.num_below) / static_cast<double>(largest.num_equal);
}

// --- terms: numerators and counts of the data term and of each scale of the gradient term ---

template <class T, class Group>
DPT_DEVICE double data_term(const Group& group, DataTerm data, int64_t n, const T* residual,
                            const Stats& stats) {
  const auto sum = [&](const auto& of) {
    return group.template sum<1>(n, [&](int64_t i) {
      const double r = std::abs(static_cast<double>(residual[i]));
      return Sums<1>{r == r ? of(r) : 0};
    });
  };
  const double threshold = stats.threshold, share = stats.kept_at_threshold;
  switch (data) {
    case DataTerm::kNone:
      return 0;
    case DataTerm::kTrimmed:
      return sum([&](double r) { return r < threshold    ? r
                                        : r == threshold ? share * r
                                                         : 0; })
          .at[0];
    case DataTerm::kAbsolute:
      return sum([](double r) { return r; }).at[0];
    case DataTerm::kSquared:
      return sum([](double r) { return r * r; }).at[0];
  }
  return 0;
}

// Every step-th row and column of [H, W]. Step is int64_t, or a constant of that type, which lets
// the compiler see neighbours.
template <class Step>
struct Grid {
  Step step;
  int64_t width, rows, columns;

  DPT_DEVICE Grid(int64_t H, int64_t W, Step step)
      : step(step), width(W), rows((H + step - 1) / step), columns((W + step - 1) / step) {}
  DPT_DEVICE int64_t operator()(int64_t y, int64_t x) const { return (y * width + x) * step; }
};

using One = std::integral_constant<int64_t, 1>;

// f(grid, map), the grid of scale k on the map [H, W]; or, if the group has memory for it, on a
// dense copy.
template <class T, class Group, class F>
DPT_DEVICE auto on_grid(const Group& group, int64_t H, int64_t W, int k, const T* map, const F& f) {
  if (k == 0) return f(Grid(H, W, One{}), map);
  const Grid at(H, W, int64_t{1} << k);
  if constexpr (Group::kHasMemory) {
    T* dense = group.template memory<T>(0, at.rows * at.columns);
    group.for_each(at.rows, at.columns,
                   [&](int64_t y, int64_t x) { dense[y * at.columns + x] = map[at(y, x)]; });
    return f(Grid(at.rows, at.columns, One{}), static_cast<const T*>(dense));
  } else {
    return f(at, map);
  }
}

struct ScaleTerm {
  double sum, count;
};

// Differences of neighbours on a grid, both valid.
template <class T, class Group, class Step>
DPT_DEVICE ScaleTerm scale_term(const Group& group, const Grid<Step>& at, const T* residual) {
  const auto difference = [&](int64_t i, int64_t j) {
    const T r = std::abs(residual[j] - residual[i]);
    return Sums<1>{static_cast<double>(r == r ? r : T(0))};
  };
  const auto across = group.template sum<1>(at.rows, at.columns - 1, [&](int64_t y, int64_t x) {
    return difference(at(y, x), at(y, x + 1));
  });
  const auto down = group.template sum<1>(at.rows - 1, at.columns, [&](int64_t y, int64_t x) {
    return difference(at(y, x), at(y + 1, x));
  });
  const auto count = group.template sum<1>(at.rows, at.columns, [&](int64_t y, int64_t x) {
    const T r = residual[at(y, x)];
    return Sums<1>{r == r ? 1.0 : 0};
  });
  return {across.at[0] + down.at[0], count.at[0]};
}

// --- an image, all of it ---

// Everything up to trimming.
template <class T, class Group>
DPT_DEVICE Aligned align_and_subtract(const Group& group, const Terms& terms, int64_t n,
                                      const T* prediction, const T* target, const uint8_t* mask,
                                      Stats& stats, T* residual) {
  const Aligned aligned =
      align(group, terms.alignment, terms.published, n, prediction, target, mask, stats);
  residuals(group, terms.alignment, n, stats, prediction, target, mask, residual);
  return aligned;
}

// Everything after trimming: numerators and counts of pixels, [1 + num_scales] each.
template <class T, class Group>
DPT_DEVICE void sum_terms(const Group& group, const Terms& terms, int64_t H, int64_t W,
                          const Stats& stats, const T* residual, double* sums, double* counts) {
  sums[0] = data_term(group, terms.data, H * W, residual, stats);
  counts[0] = stats.count;
  for (int k = 0; k < terms.num_scales; ++k) {
    const ScaleTerm term = on_grid(group, H, W, k, residual, [&](const auto& at, const T* map) {
      return scale_term(group, at, map);
    });
    sums[1 + k] = term.sum;
    counts[1 + k] = term.count;
  }
}

// --- gradient ---

// Adds weight * the gradient of scale_term() with respect to the residuals.
template <class T, class Group, class Step>
DPT_DEVICE void add_scale_gradient(const Group& group, const Grid<Step>& at, double weight,
                                   const T* residual, T* grad) {
  // A pixel at the border is its own neighbour.
  const auto add = [&](int64_t y, int64_t x, int64_t left, int64_t right) {
    const int64_t up = y > 0 ? y - 1 : 0, down = y + 1 < at.rows ? y + 1 : y, i = at(y, x);
    const T r = residual[i];
    const auto from = [&](int64_t j) { return sign(r - residual[j]); };
    const T g = from(at(y, left)) + from(at(y, right)) + from(at(up, x)) + from(at(down, x));
    grad[i] += static_cast<T>(weight) * g;
  };
  const int64_t last = at.columns - 1;
  group.for_each(at.rows, last - 1, [&](int64_t y, int64_t x) { add(y, x + 1, x, x + 2); });
  group.for_each(last > 0 ? 2 : 1, at.rows, [&](int64_t side, int64_t y) {
    if (side == 0) {
      add(y, 0, 0, last > 0 ? 1 : 0);
    } else {
      add(y, last, last - 1, last);
    }
  });
}

// The gradient with respect to the prediction [H, W], from those of the terms, [1 + num_scales].
template <class T, class Group>
DPT_DEVICE void backward(const Group& group, const Terms& terms, int64_t H, int64_t W,
                         const double* grad_terms, const Stats& stats, const T* prediction,
                         const T* target, const T* residual, T* grad) {
  const int64_t n = H * W;
  if (stats.count == 0) {
    group.for_each(n, [&](int64_t i) { grad[i] = 0; });
    return;
  }
  // With respect to the residuals.
  const auto grad_data = static_cast<T>(grad_terms[0]);
  const auto threshold = static_cast<T>(stats.threshold);
  const auto share = static_cast<T>(stats.kept_at_threshold);
  group.for_each(n, [&](int64_t i) {
    const T r = residual[i], size = std::abs(r);
    T g = 0;
    if (terms.data == DataTerm::kTrimmed) {
      g = (size < threshold ? T(1) : size == threshold ? share : T(0)) * sign(r);
    } else if (terms.data == DataTerm::kAbsolute) {
      g = sign(r);
    } else if (terms.data == DataTerm::kSquared) {
      g = r == r ? 2 * r : T(0);
    }
    grad[i] = grad_data * g;
  });
  for (int k = 0; k < terms.num_scales; ++k) {
    group.sync();
    on_grid(group, H, W, k, residual, [&](const auto& at, const T* map) {
      const double weight = grad_terms[1 + k];
      if constexpr (Group::kHasMemory) {
        if (map != residual) {  // a copy
          T* dense = group.template memory<T>(1, at.rows * at.columns);
          group.for_each(at.rows * at.columns, [&](int64_t i) { dense[i] = 0; });
          add_scale_gradient(group, at, weight, map, dense);
          const Grid to(H, W, int64_t{1} << k);
          group.for_each(at.rows, at.columns, [&](int64_t y, int64_t x) {
            grad[to(y, x)] += dense[y * at.columns + x];
          });
          return;
        }
      }
      add_scale_gradient(group, at, weight, map, grad);
    });
  }
  if (terms.alignment == Alignment::kNone) return;
  // Then through the alignment.
  const double centre = stats.prediction_centre, M = stats.count;
  group.sync();
  const auto sums = group.template sum<2>(n, [&](int64_t i) {
    const auto g = static_cast<double>(grad[i]);
    const double d = static_cast<double>(prediction[i]) - centre;
    return Sums<2>{g, residual[i] == residual[i] ? g * d : 0};
  });
  if (terms.alignment == Alignment::kRobust) {
    // residual = (d - t) / s - ..., ds = mean(sign(d - t) (dd - dt)), and dt is the mean of dd over
    // the pixels equal to t.
    const double scale = 1 / stats.prediction_spread;
    const double of_spread = sums.at[1] * scale / M;
    const double of_centre = (sums.at[0] - of_spread * stats.sum_signs) / stats.num_centre;
    group.for_each(n, [&](int64_t i) {
      const double d = static_cast<double>(prediction[i]) - centre;
      const double g =
          static_cast<double>(grad[i]) - of_spread * sign(d) - (d == 0 ? of_centre : 0);
      grad[i] = residual[i] == residual[i] ? static_cast<T>(scale * g) : T(0);
    });
  } else {
    // residual = s (d - mean) - ..., s = covariance / variance.
    const double scale = stats.target_spread / stats.prediction_spread;
    const double mean = sums.at[0] / M, of_scale = sums.at[1] / (stats.prediction_spread * M);
    group.for_each(n, [&](int64_t i) {
      const double d = static_cast<double>(prediction[i]) - centre;
      const double e = static_cast<double>(target[i]) - stats.target_centre;
      const double g =
          scale * (static_cast<double>(grad[i]) - mean) + of_scale * (e - 2 * scale * d);
      grad[i] = residual[i] == residual[i] ? static_cast<T>(g) : T(0);
    });
  }
}

}  // namespace dpt::loss
