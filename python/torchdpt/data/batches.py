"""From draws to batches: samples are read, augmented and stacked, in worker processes if wanted."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data.mixing import Draw, Mixture
from torchdpt.data.sample import Dataset, Sample
from torchdpt.data.transforms import Augmentation

__all__ = ["Batch", "batches", "stack"]


@dataclasses.dataclass
class Batch:
    """Samples of one size.

    Attributes:
        images: uint8 [B, H, W, 3], RGB.
        inverse_depth: float32 [B, H, W], 0 in the sky and where nothing is known.
        mask: bool [B, H, W]: where inverse depth is known.
        labels: int64 [B, H, W], classes; `IGNORE_INDEX` where nothing is known.
        datasets: int64 [B], numbers of the data sets.
        names: B names of samples, "data set/id".
        errors: Messages of samples that could not be read: they are black here, and nothing of them is known.
    """

    images: Tensor
    inverse_depth: Tensor
    mask: Tensor
    labels: Tensor
    datasets: Tensor
    names: list[str]
    errors: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Batch:
        """Some of the samples; all of the errors."""
        return Batch(**{name: value if name == "errors" else value[part] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Batch:
        """On another device; copies from pinned memory do not wait."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory from which a GPU copies; DataLoader asks for it."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **changed)


def stack(samples: Sequence[Sample], datasets: Sequence[int], errors: Sequence[str] = ()) -> Batch:
    """A batch of samples.

    Raises:
        ValueError: if they are not of one size.
    """
    sizes = {tuple(sample.image.shape[:2]) for sample in samples}
    if len(sizes) != 1:
        raise ValueError(
            "images of a batch must be of one size, got "
            + ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
            + " (height x width); set augmentation.crop"
        )
    size = next(iter(sizes))
    nothing, unknown = torch.zeros(size), torch.full(size, IGNORE_INDEX, dtype=torch.uint8)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        inverse_depth=torch.stack([nothing if s.target is None else s.inverse_depth() for s in samples]),
        mask=torch.stack([nothing.bool() if s.mask is None else s.mask for s in samples]),
        labels=torch.stack([unknown if s.labels is None else s.labels for s in samples]).long(),
        datasets=torch.tensor(datasets),
        names=[str(sample) for sample in samples],
        errors=[*errors],
    )


class _Batches:
    """A data set, as DataLoader sees it, whose items are whole batches, or the error that ends the run: raised in a
    worker it would bring its traceback along."""

    def __init__(self, datasets: Sequence[Dataset], mixture: Mixture, augmentation: Augmentation) -> None:
        self.datasets = datasets
        self.mixture = mixture
        self.augmentation = augmentation

    def __getitem__(self, draws: list[Draw]) -> Batch | Exception:
        try:
            return self._read(draws)
        except (ValueError, ImportError) as error:
            return error

    def _read(self, draws: list[Draw]) -> Batch:
        samples: list[Sample | None] = []
        errors = []
        for draw in draws:
            try:
                sample = self.datasets[draw.dataset][draw.sample]
                samples.append(self.augmentation(sample, self.mixture.augmentation(draw)))
            except (ValueError, OSError) as error:
                errors.append(f"{self.datasets[draw.dataset].name}, sample {draw.sample}: {error}")
                samples.append(None)
        good = [sample for sample in samples if sample is not None]
        if good:
            size = tuple(good[0].image.shape)
        elif self.augmentation.crop is not None:
            size = (*self.augmentation.crop, 3)
        else:
            raise ValueError(f"no sample of the batch could be read: {'; '.join(errors)}")
        filled = [
            Sample(
                image=torch.zeros(size, dtype=torch.uint8),
                dataset=self.datasets[draw.dataset].name,
                id=f"sample {draw.sample} (unreadable)",
            )
            if sample is None
            else sample
            for draw, sample in zip(draws, samples, strict=True)
        ]
        return stack(filled, [draw.dataset for draw in draws], errors)


class _Steps:
    """The draws of one step after the other."""

    def __init__(self, mixture: Mixture, steps: range, rank: int, world_size: int) -> None:
        self.mixture = mixture
        self.steps = steps
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.mixture.draws(step, self.rank, self.world_size) for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def batches(
    datasets: Sequence[Dataset],
    mixture: Mixture,
    augmentation: Augmentation,
    steps: range,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of these steps. Who may not take all closes it (`contextlib.closing`): that ends the workers.

    Args:
        datasets: Those of which the mixture draws.
        mixture: Which samples.
        augmentation: What is done to them.
        steps: The steps, from that one with which a run goes on.
        rank: Number of this process.
        world_size: How many processes share a batch.
        workers: Processes that read ahead; 0 reads when a batch is asked for.
        pin_memory: Whether batches are put where a GPU copies them from faster.

    Raises:
        ValueError: if the samples of a batch are not of one size, or none of them could be read.
        ImportError: if files need a package that is not there.
    """
    loader: DataLoader[Batch | Exception] = DataLoader(
        _Batches(datasets, mixture, augmentation),  # type: ignore[arg-type]
        sampler=_Steps(mixture, steps, rank, world_size),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
    )
    return _each(iter(loader))


def _each(items: Any) -> Generator[Batch, None, None]:
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        if hasattr(items, "_shutdown_workers"):  # they ignore the signal by which Python ends those that are left
            items._shutdown_workers()


def _ignore_signals(_: int) -> None:
    """Those that end a run go to all of its processes; the trainer ends its workers when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
