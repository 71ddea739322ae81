"""Which samples a step sees: a function of seed, step and rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from torchdpt.data import Draw, Mixture
from torchdpt.data.mixing import random_numbers


def pairs(mixture: Mixture, steps: int) -> list[tuple[int, int]]:
    return [(draw.dataset, draw.sample) for step in range(steps) for draw in mixture.draws(step)]


@pytest.mark.parametrize("lengths", [[50], [7, 1, 300]], ids=["one", "three"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_processes_share_the_batch_of_one(lengths: list[int], world_size: int) -> None:
    mixture = Mixture(lengths, batch_size=12, seed=3)
    for step in (0, 1, 1000, 10**12):
        parts = [mixture.draws(step, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {12 // world_size}
        whole = [draw for part in parts for draw in part]
        assert whole == Mixture(lengths, batch_size=12, seed=3).draws(step)
        assert [(draw.step, draw.place) for draw in whole] == [(step, place) for place in range(12)]


def test_draws_depend_on_nothing_that_was_drawn_before() -> None:
    mixture = Mixture([10, 20], batch_size=8, seed=1)
    first = [mixture.draws(step) for step in range(5)]
    assert [mixture.draws(step) for step in (4, 2, 0)] == [first[4], first[2], first[0]]


@pytest.mark.parametrize("lengths", [[1000], [1000, 1000]], ids=["one", "two"])
def test_other_seeds_and_steps_give_other_draws(lengths: list[int]) -> None:
    drawn = [
        tuple((draw.dataset, draw.sample) for draw in Mixture(lengths, batch_size=16, seed=seed).draws(step))
        for seed, step in itertools.product((0, 1, 2, 2**63 - 1), (0, 1, 2, 3))
    ]
    assert len(set(drawn)) == len(drawn)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_data_sets_are_drawn_by_their_weights_whatever_their_lengths() -> None:
    weights = [1.0, 2.0, 0.0, 5.0]
    drawn = pairs(Mixture([3, 1000, 10, 50], weights, batch_size=64, seed=5), 500)
    counts = np.bincount([dataset for dataset, _ in drawn], minlength=4)
    assert counts[2] == 0
    expected = len(drawn) * np.array([1, 2, 5]) / 8
    # Of two degrees of freedom: above 20 once in 20,000 seeds.
    assert chi_square(counts[[0, 1, 3]], expected) < 20


def test_without_weights_data_sets_are_drawn_equally_and_their_samples_uniformly() -> None:
    drawn = pairs(Mixture([20, 5], batch_size=64, seed=6), 400)
    counts = np.bincount([dataset for dataset, _ in drawn])
    assert chi_square(counts, np.full(2, len(drawn) / 2)) < 16  # one degree of freedom: once in 16,000 seeds
    for dataset, length in ((0, 20), (1, 5)):
        samples = np.bincount([sample for number, sample in drawn if number == dataset], minlength=length)
        assert len(samples) == length
        # length - 1 degrees of freedom, whose mean this is; 60 is out of reach of both.
        assert chi_square(samples, np.full(length, samples.sum() / length)) < 60


def test_weights_count_up_to_a_factor() -> None:
    one, other = (Mixture([9, 9], weights, batch_size=8) for weights in ([1, 3], [0.5, 1.5]))
    assert pairs(one, 10) == pairs(other, 10)


@pytest.mark.parametrize(("length", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 2)])
def test_each_epoch_of_one_data_set_is_an_order_of_its_own(length: int, batch_size: int) -> None:
    epochs = 6
    samples = [s for _, s in pairs(Mixture([length], batch_size=batch_size), -(-epochs * length // batch_size))]
    orders = [tuple(samples[epoch * length : (epoch + 1) * length]) for epoch in range(epochs)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert len(set(orders)) >= {12: epochs, 10: epochs, 3: 2, 1: 1}[length]


def test_augmentation_has_random_numbers_of_its_own_for_each_draw() -> None:
    mixture = Mixture([4, 4], batch_size=4, seed=7)
    draws = [draw for step in range(3) for draw in mixture.draws(step)]
    numbers = [tuple(mixture.augmentation(draw).random(40)) for draw in draws]
    of_steps = {x for step in range(3) for x in random_numbers(7, step).random(40)}  # which decide the draws
    assert len({x for of_draw in numbers for x in of_draw} | of_steps) == 40 * (len(draws) + 3)
    assert numbers == [tuple(mixture.augmentation(draw).random(40)) for draw in draws]
    other = Mixture([4, 4], batch_size=4, seed=8)
    assert tuple(other.augmentation(draws[0]).random(40)) != numbers[0]
    # The place in the batch decides, not the sample: a sample drawn twice is augmented twice.
    assert tuple(mixture.augmentation(Draw(0, 1, 0, 0)).random(4)) != tuple(
        mixture.augmentation(Draw(0, 0, 0, 0)).random(4)
    )


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_data_sets_without_samples_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="wanted data sets with at least one sample each"):
        Mixture(lengths, batch_size=1)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="wanted 2 weights of 0 or more, not all 0"):
        Mixture([1, 1], weights, batch_size=1)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 1, "seed": -1}, {"batch_size": 1, "seed": 2**63}]
)
def test_batch_size_and_seed_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted batch_size >= 1 and 0 <= seed"):
        Mixture([1], **options)


@pytest.mark.parametrize(("step", "rank", "world_size"), [(-1, 0, 1), (0, 2, 2), (0, -1, 2), (0, 0, 3)])
def test_step_or_process_that_is_not_there_is_refused(step: int, rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="wanted a process in"):
        Mixture([5], batch_size=4).draws(step, rank, world_size)
