// csrc/dpt/optim/min_norm_solver.h -- the weights of a multi-objective step, from numbers alone. No
// torch.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "dpt/export.h"

namespace dpt {

// The weights a of T tasks (a >= 0, sum 1) for which |sum_t a_t g_t| is least, from the inner
// products of their gradients, gram[i * T + j] = <g_i, g_j> (Sener & Koltun 2018, eq. 3). The
// optimality conditions hold to rounding relative to the norms of the gradients, whatever their
// scales. Where several weights give that sum (duplicates, gradients that are dependent), those
// with the least sum of |a_t g_t|^2 are preferred: tasks with one gradient share its weight.
//
// A task with a zero gradient gets no weight, so that it does not stop the others; if all are zero,
// the weights are equal.
//
// Throws std::invalid_argument on what is not finite (naming the tasks), and on what differs by
// more than rounding, even that of half types, from a matrix of inner products: not symmetric,
// negative on the diagonal, not positive semidefinite.
DPT_API std::vector<double> min_norm(std::span<const double> gram, size_t num_tasks);

}  // namespace dpt
