// csrc/dpt/optim/min_norm_solver.cpp -- dpt::min_norm on numbers: checks, an active-set method for
// a convex quadratic program on the simplex, and refinement to rounding.
//
// Gradients are divided by their norms n_t, so that tasks of any scale weigh alike in the rounding:
// with C the cosines, w_t = min(n) / n_t and b_t proportional to a_t n_t, the problem is
//   min b'Cb over P = {b >= 0, w'b = 1}.
// C may be singular, then b is not unique. So the method solves, from target = 0 on,
//   min b'Cb + damping |b - target|^2 over P
// which is strictly convex, and takes each solution for the next target until the damping no longer
// shows (the proximal point method). The first solution is close to the shortest b; later ones
// leave what C does not determine as it is.
#include "dpt/optim/min_norm_solver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dpt {
namespace {

using Vector = std::vector<double>;
using Indices = std::vector<size_t>;

constexpr double kRounding = std::numeric_limits<double>::epsilon();
// What inner products may be off by, relative to the norms: bfloat16 and TF32 lose half of that.
constexpr double kLimit = 1e-2;

struct Matrix {
  size_t n;
  Vector values = Vector(n * n);

  double& operator()(size_t i, size_t j) { return values[i * n + j]; }
  double operator()(size_t i, size_t j) const { return values[i * n + j]; }
};

double sum(const Vector& x) {
  double result = 0;
  for (const double value : x) result += value;
  return result;
}

double dot(const Vector& x, const Vector& y) {
  double result = 0;
  for (size_t i = 0; i < x.size(); ++i) result += x[i] * y[i];
  return result;
}

Vector pick(const Vector& x, const Indices& set) {
  Vector result;
  for (const size_t i : set) result.push_back(x[i]);
  return result;
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "min_norm: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// --- Cholesky factors ---

// L of L L' = C + damping I, restricted to the rows and columns in `set`. False: not positive.
bool factorise(const Matrix& C, const Indices& set, double damping, Matrix& L) {
  for (size_t i = 0; i < set.size(); ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double value = C(set[i], set[j]) + (i == j ? damping : 0);
      for (size_t k = 0; k < j; ++k) value -= L(i, k) * L(j, k);
      if (i == j && !(value > 0)) return false;
      L(i, j) = i == j ? std::sqrt(value) : value / L(j, j);
    }
  }
  return true;
}

// The x of L L' x = y.
Vector solve(const Matrix& L, Vector y) {
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t k = 0; k < i; ++k) y[i] -= L(i, k) * y[k];
    y[i] /= L(i, i);
  }
  for (size_t i = y.size(); i-- > 0;) {
    for (size_t k = i + 1; k < y.size(); ++k) y[i] -= L(k, i) * y[k];
    y[i] /= L(i, i);
  }
  return y;
}

// --- the quadratic program ---

struct Problem {
  Matrix C;
  Vector w;
};

// A point of P and where it is not zero.
struct Point {
  Vector b;
  Indices support;
};

// What rounding leaves of a product C b that ought to be zero.
double noise(const Point& point) {
  return 4 * kRounding * static_cast<double>(point.b.size()) * sum(point.b);
}

double row_times(const Matrix& C, size_t i, const Point& point) {
  double result = 0;
  for (const size_t j : point.support) result += C(i, j) * point.b[j];
  return result;
}

// How far the point is from min b'Cb over P, where Cb = m w on the support and Cb >= m w elsewhere.
double residual(const Problem& problem, const Point& point) {
  const auto& [C, w] = problem;
  Vector product(w.size());
  for (size_t i = 0; i < w.size(); ++i) product[i] = row_times(C, i, point);
  // m is b'Cb, too, but rounding would count |b|^2 there.
  const Vector w_here = pick(w, point.support);
  const double m = dot(w_here, pick(product, point.support)) / dot(w_here, w_here);
  double worst = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double slack = product[i] - m * w[i];
    worst = std::max(worst, point.b[i] > 0 ? std::abs(slack) : -slack);
  }
  return worst;
}

// Takes `point` to the minimum of b'Cb + damping |b - target|^2 over P: to the minimum on the plane
// of its support, or as far as no entry turns negative, where that entry leaves the support; from a
// minimum, the entry that lowers the value fastest enters. Each minimum is lower than the one
// before, so that no support comes twice. Rounding can break that, hence the bound on the number of
// steps, which is far above what is ever needed.
void descend(const Problem& problem, double damping, const Vector& target, Point& point) {
  const auto& [C, w] = problem;
  Vector& b = point.b;
  Indices& support = point.support;
  const size_t n = b.size();
  Matrix L{n};
  std::vector<bool> barred(n);
  for (size_t step = 0; step < 20 * (n + 5); ++step) {
    if (!factorise(C, support, damping, L)) return;
    const Vector w_here = pick(w, support);
    const Vector to_target = solve(L, pick(target, support)), to_w = solve(L, w_here);
    const double multiplier = (1 - damping * dot(w_here, to_target)) / dot(w_here, to_w);

    Vector minimum(support.size());
    double length = 1;
    size_t first = n;  // of the support, to turn negative
    for (size_t k = 0; k < support.size(); ++k) {
      minimum[k] = damping * to_target[k] + multiplier * to_w[k];
      if (minimum[k] > 0) continue;
      const double at = b[support[k]], until = at > 0 ? at / (at - minimum[k]) : 0;
      if (first == n || until < length) length = until, first = k;
    }
    if (first < n) {
      // What has just entered can only turn negative by rounding.
      if (length == 0) barred[support[first]] = true;
      for (size_t k = 0; k < support.size(); ++k) {
        const double at = b[support[k]];
        b[support[k]] = k == first ? 0 : std::max(0., at + length * (minimum[k] - at));
      }
      std::erase_if(support, [&](size_t i) { return b[i] == 0; });
      continue;
    }
    for (size_t k = 0; k < support.size(); ++k) b[support[k]] = minimum[k];

    double steepest = -noise(point);
    size_t enters = n;
    for (size_t i = 0; i < n; ++i) {
      if (b[i] > 0 || barred[i]) continue;
      const double slope = row_times(C, i, point) - damping * target[i] - multiplier * w[i];
      if (slope < steepest) steepest = slope, enters = i;
    }
    if (enters == n) return;
    support.push_back(enters);
  }
}

Vector minimise(const Problem& problem) {
  const size_t n = problem.w.size();
  const size_t shortest = std::max_element(problem.w.begin(), problem.w.end()) - problem.w.begin();
  Point point{Vector(n), {shortest}};
  point.b[shortest] = 1;
  Vector target(n), best = point.b;
  double least = std::numeric_limits<double>::infinity();
  double damping = 1e-5;  // little beside C, much beside its rounding
  for (int round = 0; round < 40; ++round) {
    descend(problem, damping, target, point);
    const double now = residual(problem, point);
    // Gradients that are almost dependent: the damping still hides how.
    if (now > 0.1 * least) damping = std::max(0.1 * damping, kRounding);
    if (now < least) least = now, best = point.b;
    if (now <= noise(point)) break;
    target = point.b;
  }
  if (!(least <= 1e-8 * sum(best))) throw std::logic_error("min_norm: no solution was found");
  return best;
}

// --- checks ---

std::string entry(std::span<const double> gram, size_t n, size_t i, size_t j) {
  std::ostringstream text;
  text << "gram[" << i << "][" << j << "] = " << gram[i * n + j];
  return text.str();
}

void check(std::span<const double> gram, size_t n) {
  if (n == 0 || gram.size() != n * n) {
    fail("gram must be [T, T] with at least one task, got ", gram.size(), " values for T = ", n);
  }
  const auto at = [&](size_t i, size_t j) { return gram[i * n + j]; };
  // A gradient that is not finite has no finite norm, but spoils the products of the others, too:
  // those are named only if all norms are finite.
  const auto is_finite = [&](size_t i) {
    for (size_t j = 0; j < n; ++j) {
      if (!std::isfinite(at(i, j)) || !std::isfinite(at(j, i))) return false;
    }
    return true;
  };
  bool norms_are_finite = true;
  for (size_t i = 0; i < n; ++i) norms_are_finite &= std::isfinite(at(i, i));
  std::string names;
  for (size_t i = 0; i < n; ++i) {
    if (norms_are_finite ? is_finite(i) : std::isfinite(at(i, i))) continue;
    names += (names.empty() ? "" : ", ") + std::to_string(i);
  }
  if (!names.empty()) {
    fail("NaN or Inf in the inner products of task(s) ", names,
         ": their gradients are not finite, or too large for the dtype; leave these tasks out of "
         "the step");
  }
  for (size_t i = 0; i < n; ++i) {
    if (at(i, i) < 0) fail("squared norms cannot be negative, got ", entry(gram, n, i, i));
  }
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < i; ++j) {
      const double norms = std::sqrt(at(i, i)) * std::sqrt(at(j, j));
      // A zero norm may be an underflow, where the products with the other gradients are not yet.
      const double slack = kLimit * (norms > 0 ? norms : std::max(at(i, i), at(j, j)));
      if (std::abs(at(i, j) - at(j, i)) > slack) {
        fail("gram must be symmetric, got ", entry(gram, n, i, j), " and ", entry(gram, n, j, i));
      }
      if (std::abs(at(i, j)) > norms + slack) {
        fail("not inner products: ", entry(gram, n, i, j), " exceeds the product of the norms, ",
             norms);
      }
    }
  }
}

}  // namespace

std::vector<double> min_norm(std::span<const double> gram, size_t num_tasks) {
  const size_t T = num_tasks;
  check(gram, T);

  Indices tasks;  // with a gradient
  Vector norms;
  for (size_t t = 0; t < T; ++t) {
    if (gram[t * T + t] > 0) tasks.push_back(t), norms.push_back(std::sqrt(gram[t * T + t]));
  }
  const size_t n = tasks.size();
  if (n == 0) return Vector(T, 1 / static_cast<double>(T));

  Problem problem{Matrix{n}, Vector(n)};
  const double shortest = *std::min_element(norms.begin(), norms.end());
  Indices all;
  for (size_t i = 0; i < n; ++i) {
    all.push_back(i);
    problem.w[i] = shortest / norms[i];
    for (size_t j = 0; j < n; ++j) {
      const size_t ij = tasks[i] * T + tasks[j], ji = tasks[j] * T + tasks[i];
      problem.C(i, j) = 0.5 * (gram[ij] / norms[i] / norms[j] + gram[ji] / norms[j] / norms[i]);
    }
  }
  // As much on the diagonal as makes C positive: rounding, or it is no matrix of cosines.
  double shift = static_cast<double>(n) * kRounding;
  for (Matrix L{n}; !factorise(problem.C, all, shift, L); shift *= 2) {
    if (shift > static_cast<double>(n) * kLimit) {
      fail("gram must be positive semidefinite, got an eigenvalue below ", -shift,
           " once scaled to norms of one");
    }
  }
  for (size_t i = 0; i < n; ++i) problem.C(i, i) += shift;

  const Vector b = minimise(problem);
  Vector weights(T);
  for (size_t i = 0; i < n; ++i) weights[tasks[i]] = b[i] * problem.w[i];
  const double total = sum(weights);
  for (double& weight : weights) weight /= total;
  return weights;
}

}  // namespace dpt
