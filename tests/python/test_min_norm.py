"""torchdpt.optim: min_norm against support enumeration in NumPy and by its optimality conditions; gram."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch

import torchdpt
from torchdpt.optim import gram, min_norm

Array = np.ndarray


# --- 10,000 random problems -------------------------------------------------------------------------------------------
# Each function changes gradients [P, T, D] of P problems, normally distributed, T of 1 to 10.


def independent(rng: np.random.Generator, g: Array) -> Array:
    return g


def agreeing(rng: np.random.Generator, g: Array) -> Array:
    return g + 2 * rng.normal(size=g[:, :1].shape)


def conflicting(rng: np.random.Generator, g: Array) -> Array:
    half = g.shape[1] // 2
    g[:, :half] = -g[:, g.shape[1] - half :] * rng.choice([0.5, 1], (len(g), 1, 1))
    return g


def of_few_dimensions(rng: np.random.Generator, g: Array) -> Array:
    return g * (np.arange(g.shape[2]) <= g.shape[1] // 3)


def of_small_integers(rng: np.random.Generator, g: Array) -> Array:
    g = np.round(g)
    g[:, :, 0] += 0.5  # no gradient is zero
    return of_few_dimensions(rng, g)


def duplicate(rng: np.random.Generator, g: Array) -> Array:
    return np.take_along_axis(g, rng.integers(0, g.shape[1], g.shape[:2])[:, :, None], 1)


def collinear(rng: np.random.Generator, g: Array) -> Array:
    return duplicate(rng, g) * rng.choice([-2, -1, 0.5, 1, 3], (*g.shape[:2], 1))


def nearly_singular(rng: np.random.Generator, g: Array) -> Array:
    return duplicate(rng, g) + 10 ** rng.uniform(-16, -1, (len(g), 1, 1)) * rng.normal(size=g.shape)


def of_some_scales(rng: np.random.Generator, g: Array) -> Array:
    return g * 10 ** rng.uniform(-3, 3, (*g.shape[:2], 1))


def of_all_scales(rng: np.random.Generator, g: Array) -> Array:
    return g * 10 ** rng.uniform(-20, 20, (*g.shape[:2], 1))


KINDS = [independent, agreeing, conflicting, of_few_dimensions, of_small_integers]
KINDS += [duplicate, collinear, nearly_singular, of_some_scales, of_all_scales]


class Problems(NamedTuple):
    gradients: Array  # [1000, T, 12], 100 of each kind
    gram: Array  # [1000, T, T]
    norms: Array  # [1000, T]
    weights: Array  # [1000, T], what min_norm says

    def of(self, *kinds: object) -> Array:
        return np.repeat([kind in kinds for kind in KINDS], 100)


def solve(grams: Array) -> Array:
    return np.stack([min_norm(torch.from_numpy(G)).numpy() for G in grams])


def products(g: Array) -> Array:
    G = g @ g.swapaxes(1, 2)
    return (G + G.swapaxes(1, 2)) / 2


def combine(weights: Array, g: Array) -> Array:
    return np.einsum("pt,ptd->pd", weights, g)


@pytest.fixture(scope="module")
def problems() -> list[Problems]:
    rng, of_each_size = np.random.default_rng(0), []
    for T in range(1, 11):
        g = np.concatenate([make(rng, rng.normal(size=(100, T, 12))) for make in KINDS])
        G = products(g)
        of_each_size.append(Problems(g, G, np.sqrt(np.einsum("pii->pi", G)), solve(G)))
    assert sum(len(p.gram) for p in of_each_size) == 10_000
    return of_each_size


def size_of_parts(weights: Array, norms: Array) -> Array:
    """Sum of |a_t g_t|, [P, 1]: what the sum of gradients is rounded relative to."""
    return (weights * norms).sum(1, keepdims=True)


def enumerate_supports(G: Array) -> Array:
    """Weights of many problems [P, T, T], by trying all supports.

    On each support the stationary point of a'Ga with sum(a) = 1 solves a linear system; if no weight is negative, it is
    a candidate, and the best candidate is a solution: there is one whose support has independent gradients.
    """
    P, T, _ = G.shape
    norms = np.sqrt(np.einsum("pii->pi", G))
    best, weights = np.full(P, np.inf), np.zeros((P, T))
    for size in range(1, T + 1):
        for support in map(list, itertools.combinations(range(T), size)):
            # The unknowns are a_t |g_t|, in units of the shortest gradient. The last row and column: sum(a) = 1.
            n = norms[:, support]
            system = np.zeros((P, size + 1, size + 1))
            system[:, :size, :size] = G[:, support][:, :, support] / n[:, :, None] / n[:, None, :]
            system[:, range(size), range(size)] += 1e-14  # where gradients are dependent, another support is as good
            system[:, :size, size] = system[:, size, :size] = n.min(1, keepdims=True) / n
            right = np.zeros((P, size + 1, 1))
            right[:, size] = 1
            found = np.linalg.solve(system, right)[:, :size, 0] / n
            usable = (found >= 0).all(1) & (found > 0).any(1)
            candidate = np.zeros((P, T))
            candidate[:, support] = np.where(usable[:, None], found, 1)
            candidate /= candidate.sum(1, keepdims=True)
            # Of values that rounding cannot tell apart, the one with shorter parts.
            value = np.einsum("pi,pij,pj->p", candidate, G, candidate) + 3e-15 * (candidate * norms).sum(1) ** 2
            better = usable & (value < best)
            best[better], weights[better] = value[better], candidate[better]
    return weights


def test_agrees_with_support_enumeration(problems: list[Problems]) -> None:
    for p in problems:
        want = enumerate_supports(p.gram)
        got_value, want_value = (np.einsum("pi,pij,pj->p", a, p.gram, a) for a in (p.weights, want))
        # Values are rounded relative to their parts; the reference prefers those by 3e-15.
        parts = np.maximum(size_of_parts(p.weights, p.norms), size_of_parts(want, p.norms))[:, 0]
        assert (np.abs(got_value - want_value) <= 1e-14 * parts**2).all()
        # The problems with one solution, which rounding hardly moves.
        definite = p.of(independent, agreeing) & (np.linalg.cond(p.gram) < 1e3)
        assert definite.sum() >= 50
        assert np.abs(p.weights - want)[definite].max() <= 1e-11


def test_satisfies_optimality_conditions(problems: list[Problems]) -> None:
    for p in problems:
        assert (p.weights >= 0).all()
        assert np.abs(p.weights.sum(1) - 1).max() <= 1e-14
        # With x the weighted sum: <x, g_t> is |x|^2 where there is weight, and not less elsewhere. 1e-14 is about six
        # roundings for each of up to ten tasks.
        x = combine(p.weights, p.gradients)
        excess = np.einsum("pij,pj->pi", p.gram, p.weights) - (x * x).sum(1, keepdims=True)
        parts = size_of_parts(p.weights, p.norms)
        rounding = 1e-14 * parts * (p.norms + parts)
        assert (excess >= -rounding).all()
        assert (np.abs(excess) <= rounding)[p.weights > 0].all()


def test_step_conflicts_with_no_gradient(problems: list[Problems]) -> None:
    for p in problems:
        slope = np.einsum("pd,ptd->pt", combine(p.weights, p.gradients), p.gradients)
        assert (slope >= -1e-14 * size_of_parts(p.weights, p.norms) * p.norms).all()


def test_order_of_tasks_does_not_matter(problems: list[Problems]) -> None:
    rng = np.random.default_rng(1)
    for p in problems:
        order = rng.permuted(np.tile(np.arange(p.gram.shape[1]), (1000, 1)), axis=1)
        moved = np.take_along_axis(np.take_along_axis(p.gram, order[:, :, None], 1), order[:, None, :], 2)
        again = np.empty_like(p.weights)
        np.put_along_axis(again, order, solve(moved), 1)
        # |x|^2 is flat where it is least, and known to 1e-15 of the parts.
        parts, change = size_of_parts(p.weights, p.norms), again - p.weights
        assert (np.linalg.norm(combine(change, p.gradients), axis=1, keepdims=True) <= 1e-7 * parts).all()
        # Nearly dependent gradients: rounding decides between weights. Duplicates are as stable as independent ones.
        assert (np.abs(change) * p.norms <= 1e-9 * parts)[~p.of(nearly_singular)].all()


# --- what can be said without a computer ------------------------------------------------------------------------------


def weights_of(*gradients: list[float]) -> list[float]:
    return min_norm(gram([[torch.tensor(g, dtype=torch.float64)] for g in gradients])).tolist()


def test_two_tasks_equal_closed_form() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-20, 1.0, 1e20):
        g = rng.normal(size=(500, 2, 2)) * scale
        first, second = g[:, 0], g[:, 1]
        want = ((second - first) * second).sum(1) / ((second - first) ** 2).sum(1)
        assert np.abs(solve(products(g))[:, 0] - want.clip(0, 1)).max() <= 1e-11
        assert ((want < 0) | (want > 1)).any()


def test_one_task_gets_all_weight() -> None:
    assert weights_of([3.0, 4.0]) == [1.0]
    assert weights_of([0.0]) == [1.0]


def test_equal_gradients_share_their_weight() -> None:
    got = weights_of([1, 0], [0, 2], [1, 0], [0, 2], [1, 0])
    assert got == pytest.approx([4 / 15, 1 / 10, 4 / 15, 1 / 10, 4 / 15], abs=1e-10)


def test_tasks_with_zero_gradient_do_not_stop_the_others() -> None:
    assert weights_of([0, 0], [1, 0], [0, 0], [0, 2]) == pytest.approx([0, 0.8, 0, 0.2], abs=1e-14)
    assert weights_of([0, 0], [0, 0], [0, 0], [0, 0]) == [0.25] * 4
    rng = np.random.default_rng(0)
    for _ in range(100):
        g = rng.normal(size=(1, 8, 5))
        keep = rng.random(8) > 0.4
        if keep.any():
            got = solve(products(g * keep[:, None]))[0]
            assert (got[~keep] == 0).all()
            assert np.abs(got[keep] - solve(products(g[:, keep]))[0]).max() <= 1e-9


def test_takes_more_tasks_than_usual() -> None:
    g = np.random.default_rng(0).normal(size=(1, 100, 150)) + 0.1
    G = products(g)[0]
    got = solve(G[None])[0]
    x = got @ G
    assert (x >= (1 - 1e-12) * (got @ G @ got)).all()


# --- the operator -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_keeps_dtype_and_device(device: str, dtype: torch.dtype) -> None:
    g = torch.randn(5, 8, dtype=torch.float64)
    G = (g @ g.T).to(device, dtype)
    got = min_norm(G)
    assert (got.dtype, got.device, got.shape) == (dtype, G.device, (5,))
    assert torch.equal(got, min_norm(G.double().cpu()).to(G))
    assert torch.equal(min_norm(torch.stack([G, G], 2)[..., 1]), got)


def test_float32_gram_of_dependent_gradients_is_no_error() -> None:
    for _ in range(200):
        g = torch.randn(6, 2) @ torch.randn(2, 1000)
        got = min_norm(g @ g.T)
        assert (got @ g @ g.T >= -1e-5 * (got @ g.norm(dim=1)) * g.norm(dim=1)).all()


def test_opcheck(device: str) -> None:
    g = torch.randn(4, 6, device=device)
    torch.library.opcheck(torch.ops.dpt.min_norm.default, (g @ g.T,))
    torch.library.opcheck(torch.ops.dpt.min_norm.default, ((g @ g.T).double().requires_grad_(),))


def test_has_no_gradient() -> None:
    assert not min_norm(torch.eye(3, requires_grad=True)).requires_grad


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(lambda g: min_norm(g @ g.T) @ g, fullgraph=True, backend="aot_eager")
    g = torch.randn(4, 6)
    torch.testing.assert_close(compiled(g), min_norm(g @ g.T) @ g)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0]], r"gram must be \[T, T\] with at least one task, got \[1, 2\]"),
        ([1.0], r"gram must be \[T, T\] with at least one task, got \[1\]"),
        ([[1]], "gram must be of a floating point type, got Long"),
        ([[1.0, 0.0], [0.0, -2.0]], r"squared norms cannot be negative, got gram\[1\]\[1\] = -2"),
        ([[1.0, 0.5], [-0.5, 1.0]], r"must be symmetric, got gram\[1\]\[0\] = -0.5 and gram\[0\]\[1\] = 0.5"),
        ([[1.0, 2.0], [2.0, 1.0]], r"not inner products: gram\[1\]\[0\] = 2 exceeds the product of the norms, 1"),
        ([[0.0, 1.0], [1.0, 1.0]], "not inner products"),
        ([[1.0, -0.9, -0.9], [-0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]], "gram must be positive semidefinite"),
        ([[1.0, 0.0, NAN], [0.0, 1.0, NAN], [NAN, NAN, NAN]], r"inner products of task\(s\) 2: .*; leave these tasks"),
        ([[INF, 0.0, NAN], [0.0, 1.0, NAN], [NAN, NAN, NAN]], r"NaN or Inf in the inner products of task\(s\) 0, 2:"),
        ([[1.0, INF], [INF, 1.0]], r"task\(s\) 0, 1:"),
    ],
)
def test_error_messages(device: str, rows: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match="^min_norm: .*" + message):
        min_norm(torch.tensor(rows, device=device))


def test_refuses_no_tasks() -> None:
    with pytest.raises(ValueError, match=r"at least one task, got \[0, 0\]"):
        min_norm(torch.zeros(0, 0))
    with pytest.raises(ValueError, match="at least one task"):
        min_norm(torch.zeros(0, 0, device="meta"))
    with pytest.raises(ValueError, match=r"gram: .* counts"):
        gram([])


@pytest.mark.parametrize("bad", [NAN, INF])
def test_names_tasks_whose_gradients_are_not_finite(bad: float) -> None:
    gradients = torch.randn(5, 8, dtype=torch.float64)
    gradients[1, 3] = gradients[4, 0] = bad
    with pytest.raises(ValueError, match=r"task\(s\) 1, 4:"):
        min_norm(gradients @ gradients.T)


# --- gram -------------------------------------------------------------------------------------------------------------


def test_gram_sums_over_parameters(device: str) -> None:
    shapes = [(3, 4), (5,), (), (2, 1, 2)]
    gradients = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(3)]
    flat = torch.stack([torch.cat([g.flatten() for g in task]) for task in gradients]).double()
    got = gram(gradients)
    assert (got.dtype, got.device) == (torch.float64, flat.device)
    torch.testing.assert_close(got, flat @ flat.T, rtol=1e-14, atol=1e-14)


def test_gram_takes_none_for_zero() -> None:
    a, b = torch.randn(2, 3), torch.randn(4)
    zero_a, zero_b = torch.zeros(2, 3), torch.zeros(4)
    assert torch.equal(gram([[a, None], [None, b], [None, None]]), gram([[a, zero_b], [zero_a, b], [zero_a, zero_b]]))
    assert torch.equal(gram([[None], [None]]), torch.zeros(2, 2, dtype=torch.float64))


def test_gram_accumulates_in_float64() -> None:
    g = torch.full((1 << 20,), 0.1)
    assert gram([[g]]).item() == pytest.approx(2**20 * g[0].item() ** 2, rel=1e-10)  # a million roundings, one way
    half = torch.full((1000,), 100.0, dtype=torch.float16)
    assert gram([[half]]).item() == 1e7


def test_gram_refuses_uneven_tasks() -> None:
    g = torch.ones(2)
    with pytest.raises(ValueError, match=r"gram: each task must have a gradient .* got counts \[2, 1\]"):
        gram([[g, g], [g]])


def test_from_losses_to_a_step() -> None:
    """Two losses over shared parameters, one of which the second does not use."""
    model = torch.nn.Linear(3, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    losses = [model(x).square().mean(), (model.weight - 1).square().sum()]
    shared = list(model.parameters())
    gradients = [torch.autograd.grad(loss, shared, allow_unused=True, retain_graph=True) for loss in losses]
    weights = torchdpt.optim.min_norm(torchdpt.optim.gram(gradients))
    step = torch.autograd.grad((weights * torch.stack(losses)).sum(), shared)
    square = sum(s.square().sum() for s in step)
    for task in gradients:
        slope = sum((s * g).sum() for s, g in zip(step, task, strict=True) if g is not None)
        assert slope >= square * (1 - 1e-12)


def test_gram_refuses_gradients_of_other_shapes() -> None:
    g = torch.ones(2)
    with pytest.raises(
        ValueError, match=r"gradients of parameter 1 must have one shape, got \[\[2, 3\], None, \[3, 2\]\]"
    ):
        gram([[g, torch.ones(2, 3)], [g, None], [g, torch.ones(3, 2)]])


def test_gram_takes_iterators() -> None:
    gradients = [[torch.randn(3), torch.randn(2)] for _ in range(2)]
    assert torch.equal(gram(iter(map(iter, gradients))), gram(gradients))
