"""Looking at every sample of a data set before a network is trained on it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from torchdpt.classes import IGNORE_INDEX, Classes
from torchdpt.data.paired import DataError, FileDataset
from torchdpt.data.sample import Dataset, Sample

PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
BLOCK = 512  # samples under way at a time
VALUES = 256  # of each map, for the percentiles


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_dataset` found.

    Attributes:
        dataset: Name of the data set.
        samples: How many there are; images without truth are not.
        problems: What is wrong, and with which samples or files: "unreadable file"; "image without truth", "truth
            without image"; "other size than the image"; "empty map" (nothing is known in it), "constant map"; "8-bit
            depth" (a file of 8 bits, or one of 16 of which only 8 are used), "no scale", "wrong unit" (metres above
            1000, or half of a map nearer than 5 cm), "negative values"; "label out of range".
        sizes: How many images there are of each size, "640 x 480", the most frequent first.
        depth: Of maps of depth their "kind" and "unit", "min", "max", the percentiles "p1", "p10", "p25", "p50", "p75",
            "p90", "p99" (of 256 pixels drawn from each map), all without the sky; "known", the share of pixels where it
            is known, and "sky", the share of sky. Empty if there are none.
        classes: Share of the pixels with a class that each class has, by its name or number, those that occur.
    """

    dataset: str
    samples: int
    problems: dict[str, list[str]]
    sizes: dict[str, int]
    depth: dict[str, Any]
    classes: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For json.dumps; of each problem where it is, all of them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass
class _Seen:
    """What one sample adds to the report."""

    problems: list[tuple[str, str]]
    size: str = ""
    kind: tuple[str, str] | None = None
    pixels: int = 0
    known: int = 0
    sky: int = 0
    low: float = math.inf
    high: float = -math.inf
    values: Any = ()
    labels: Any = 0


def check_dataset(dataset: Dataset, *, workers: int | None = None, progress: bool = False) -> Report:
    """Read every sample, and tell what is in them and what is wrong. A bad file stops nothing.

    Args:
        dataset: Any; of one of files opened with skip_incomplete=True what has no partner is told, too.
        workers: Threads. Default: one for each processor.
        progress: Show a bar on stderr.

    Raises:
        ImportError: if its files need a package that is not there.
    """
    from tqdm import tqdm

    problems: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()
    kinds: Counter[tuple[str, str]] = Counter()
    values = []
    labels = np.zeros(IGNORE_INDEX, np.int64)
    pixels = known = sky = 0
    low, high = math.inf, -math.inf
    if isinstance(dataset, FileDataset):
        unpaired = {"image without truth": dataset.incomplete, "truth without image": dataset.unused}
        problems |= {problem: list(files) for problem, files in unpaired.items() if files}
    count = len(dataset)
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        with tqdm(total=count, unit="sample", disable=not progress) as bar:
            for begin in range(0, count, BLOCK):
                block = range(begin, min(begin + BLOCK, count))
                for seen in pool.map(lambda index: _look(dataset, index), block):
                    bar.update()
                    for problem, where in seen.problems:
                        problems.setdefault(problem, []).append(where)
                    if seen.size:
                        sizes[seen.size] += 1
                    if seen.kind:
                        kinds[seen.kind] += 1
                    values.append(seen.values)
                    labels += seen.labels
                    pixels, known, sky = pixels + seen.pixels, known + seen.known, sky + seen.sky
                    low, high = min(low, seen.low), max(high, seen.high)
    finally:
        pool.shutdown(cancel_futures=True)
    depth: dict[str, Any] = {}
    if kinds:
        kind, unit = kinds.most_common(1)[0][0]
        depth = {"kind": kind, "unit": unit}
        if high >= low:
            found = np.percentile(np.concatenate(values), PERCENTILES)
            depth |= {"min": low, "max": high}
            depth |= {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
        depth |= {"known": known / pixels, "sky": sky / pixels}
    classes: Classes | None = getattr(dataset, "classes", None)
    shares = {
        classes.names[label] if classes else str(label): float(labels[label] / labels.sum())
        for label in np.flatnonzero(labels).tolist()
    }
    return Report(dataset.name, count, problems, dict(sizes.most_common()), depth, shares)


def _look(dataset: Dataset, index: int) -> _Seen:
    try:
        sample = dataset[index]
    except ImportError:  # no fault of the file
        raise
    except DataError as error:
        return _Seen([(error.problem, str(error))])
    except Exception as error:  # whatever it is, the others are looked at
        where, text = _where(dataset, index), str(error) or type(error).__name__
        named = isinstance(dataset, FileDataset) and str(dataset.root) in text  # which file, of several
        return _Seen([("unreadable file", text if named else f"{where}: {text}")])
    height, width = sample.image.shape[:2]
    seen = _Seen([], size=f"{width} x {height}")
    if sample.target is not None:
        _look_at_depth(dataset, index, sample, seen)
    if sample.labels is not None:
        seen.labels = torch.bincount(sample.labels.flatten(), minlength=IGNORE_INDEX + 1).numpy()[:IGNORE_INDEX]
        if not seen.labels.any():
            seen.problems.append(("empty map", f"{_where(dataset, index, 'labels')}: no pixel has a class"))
    return seen


def _look_at_depth(dataset: Dataset, index: int, sample: Sample, seen: _Seen) -> None:
    """Add what there is to say of its map of depth."""
    assert sample.target is not None
    assert sample.mask is not None
    where = _where(dataset, index, "depth")
    far = sample.target.isinf() if sample.kind == "depth" else sample.target == 0
    seen.kind = (sample.kind, sample.unit)
    seen.pixels, seen.known = sample.mask.numel(), int(sample.mask.sum())
    # Of relative inverse depth 0 is only the least that there is.
    sky = torch.zeros_like(far) if (sample.kind, sample.unit) == ("inverse_depth", "relative") else sample.mask & far
    seen.sky = int(sky.sum())
    values = sample.target[sample.mask & ~sky].numpy()
    if seen.known == 0:
        seen.problems.append(("empty map", f"{where}: depth is known nowhere"))
    if values.size == 0:
        return
    seen.low, seen.high = float(values.min()), float(values.max())
    seen.values = values
    if values.size > VALUES:  # drawn: every so manieth would be of the same columns in each row
        seen.values = values[np.random.default_rng(index).integers(0, values.size, VALUES)]
    if values.size > 1 and seen.low == seen.high:
        seen.problems.append(("constant map", f"{where}: {seen.low:g} everywhere"))
    if sample.unit == "metre":
        metres = values if sample.kind == "depth" else 1 / values
        most, middle = float(metres.max()), float(np.median(metres))
        if most > 1000 or middle < 0.05:
            seen.problems.append(("wrong unit", f"{where}: up to {most:g} m, half of it within {middle:g} m"))
    if isinstance(dataset, FileDataset) and dataset.depth and dataset.depth.scale and where.lower().endswith(".png"):
        counts = seen.high / dataset.depth.scale
        if counts < 255.5:
            seen.problems.append(("8-bit depth", f"{where}: no number above {counts:.0f}, as if 8 bits had been kept"))


def _where(dataset: Dataset, index: int, part: str = "image") -> str:
    """A file of a sample, or its number."""
    if isinstance(dataset, FileDataset):
        files = dataset.files[index]
        return str(dataset.root / (getattr(files, part) or files.image))
    return f"{dataset.name}, sample {index}"
