"""Multi-objective training: one step that serves several losses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["gram", "min_norm"]


@torch.no_grad()
def gram(gradients: Iterable[Iterable[Tensor | None]]) -> Tensor:
    """The inner products of the gradients of several tasks, summed in float64.

    Args:
        gradients: For each of T tasks the gradients of its loss with respect to the same parameters, in the same order,
            as `torch.autograd.grad(..., allow_unused=True)` returns them; None is zero.

    Returns:
        [T, T] float64, on the device of the gradients. Processes that hold different samples add up their gradients
        first: inner products of parts do not add up.

    Raises:
        ValueError: if there is no task, or if the tasks' gradients differ in number or shape.
    """
    tasks = [list(task) for task in gradients]
    counts = [len(task) for task in tasks]
    if len(set(counts)) != 1:
        raise ValueError(f"gram: each task must have a gradient (or None) for each parameter, got counts {counts}")
    total = torch.zeros(len(counts), len(counts), dtype=torch.float64)
    for i, of_tasks in enumerate(zip(*tasks, strict=True)):
        given = [gradient for gradient in of_tasks if gradient is not None]
        if len({gradient.shape for gradient in given}) > 1:
            shapes = [None if gradient is None else list(gradient.shape) for gradient in of_tasks]
            raise ValueError(f"gram: the gradients of parameter {i} must have one shape, got {shapes}")
        if given:
            zero = torch.zeros_like(given[0])
            rows = torch.stack([(zero if gradient is None else gradient).flatten() for gradient in of_tasks]).double()
            total = total.to(rows.device) + rows @ rows.T
    return total


def min_norm(gram: Tensor) -> Tensor:
    """The weights of the tasks' gradients g_t for which |sum_t weight_t g_t| is least: weights >= 0, their sum 1.

    A small step against that sum lowers the loss of each task: its inner product with a gradient that is not zero is at
    least its own squared norm. If the sum is zero, no direction lowers all losses.

    The solution is exact up to rounding for any number of tasks, whatever the scales of their gradients. Where several
    weights give that sum (equal or dependent gradients), those with the least sum of |weight_t g_t|^2 are preferred:
    tasks with the same gradient share its weight. A task with a zero gradient gets no weight, so that it does not stop
    the others; if all are zero, the weights are equal.

    Args:
        gram: [T, T], inner products of the gradients with respect to the shared parameters, as from `gram`. Any
            floating point type and device; computed in float64 on the CPU, where a float32 matrix still has lost what
            float64 would tell about nearly dependent gradients.

    Returns:
        Weights [T], dtype and device of `gram`; no gradient flows to it.

    Raises:
        ValueError: if inner products are NaN or infinite (the message names the tasks), or if `gram` differs by more
            than rounding from a matrix of inner products: not square, not symmetric, not positive semidefinite.

    Reference: Sener and Koltun (2018), "Multi-Task Learning as Multi-Objective Optimization", eq. 3.
    """
    return torch.ops.dpt.min_norm(gram)  # type: ignore[no-any-return]
