"""Which samples a step of training sees: a function of (seed, step, rank), so that a run goes on from one number."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Draw", "Mixture"]


class Draw(NamedTuple):
    """One sample of a step.

    Attributes:
        step: The step, from 0.
        place: Its place in the batch of all processes, from 0.
        dataset: Number of the data set.
        sample: Number of the sample in it.
    """

    step: int
    place: int
    dataset: int
    sample: int


class Mixture:
    """Draws a data set, then one of its samples, as MiDaS and DPT do; the same for any number of processes.

    Samples are drawn with replacement. With one data set alone they are not: each epoch shows every sample once, in an
    order of its own.

    Args:
        lengths: How many samples each data set has.
        weights: How often each is drawn, up to a factor. Default: equally often.
        batch_size: Samples of a step, of all processes together.
        seed: Of the random numbers.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, lengths: Sequence[int], weights: Sequence[float] | None = None, *, batch_size: int, seed: int = 0
    ) -> None:
        chosen = [1.0] * len(lengths) if weights is None else [float(weight) for weight in weights]
        if not lengths or min(lengths) < 1:
            raise ValueError(f"Mixture: wanted data sets with at least one sample each, got lengths {[*lengths]}")
        if len(chosen) != len(lengths) or min(chosen) < 0 or not 0 < math.fsum(chosen) < math.inf:
            raise ValueError(f"Mixture: wanted {len(lengths)} weights of 0 or more, not all 0, got {chosen}")
        if batch_size < 1 or not 0 <= seed < 2**63:
            raise ValueError(f"Mixture: wanted batch_size >= 1 and 0 <= seed < 2^63, got {batch_size} and {seed}")
        self.lengths = [*lengths]
        self.weights = np.array(chosen) / math.fsum(chosen)
        self.batch_size = batch_size
        self.seed = seed

    def draws(self, step: int, rank: int = 0, world_size: int = 1) -> list[Draw]:
        """The samples of a process in a step.

        Args:
            step: From 0.
            rank: Number of the process.
            world_size: How many processes there are: each gets as many samples, and all together get the batch that one
                process alone would get.

        Raises:
            ValueError: if `batch_size` cannot be divided among the processes, or there is no such step or process.
        """
        if self.batch_size % world_size or not 0 <= rank < world_size or step < 0:
            raise ValueError(
                f"Mixture: wanted a process in [0, {world_size}), a step of 0 or more and a batch size that "
                f"{world_size} divides, got {rank}, {step} and {self.batch_size}"
            )
        if len(self.lengths) == 1:
            datasets = [0] * self.batch_size
            indices = [self._in_epochs(step * self.batch_size + place) for place in range(self.batch_size)]
        else:
            rng = random_numbers(self.seed, step)
            datasets = rng.choice(len(self.lengths), self.batch_size, p=self.weights).tolist()
            indices = [int(rng.integers(self.lengths[dataset])) for dataset in datasets]
        local = self.batch_size // world_size
        places = range(rank * local, (rank + 1) * local)
        return [Draw(step, place, datasets[place], indices[place]) for place in places]

    def augmentation(self, draw: Draw) -> np.random.Generator:
        """The random numbers with which the sample of a draw is augmented."""
        return random_numbers(self.seed, draw.step, draw.place + 1)

    def _in_epochs(self, number: int) -> int:
        epoch, position = divmod(number, self.lengths[0])
        return int(_order(self.seed, epoch, self.lengths[0])[position])


def random_numbers(seed: int, step: int, place: int = 0) -> np.random.Generator:
    """Random numbers by their coordinates: those of different ones have nothing to do with each other."""
    # A counter of 256 bits that is moved on in its upper half: no generator reaches the numbers of another.
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, place, 0]))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1])).permutation(length)
