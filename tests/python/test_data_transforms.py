"""Transforms keep an image and its truth together; batches read, augment and stack them."""

from __future__ import annotations

import dataclasses
import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from torchdpt import ImageProcessor
from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Augmentation, Batch, Mixture, Sample, SceneDataset, batches
from torchdpt.data.transforms import add_noise, blur, change_colors, crop, flip, resize

POLICIES = ("lower_bound", "upper_bound", "minimal", "exact")


def placed(height: int, width: int, name: str = "placed") -> Sample:
    """A sample whose every pixel says where it is: in the image by red and green, in the target and the labels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([255 * (rows + 0.5) / height, 255 * (columns + 0.5) / width, torch.full_like(rows, 128)], 2)
    return Sample(
        image=image.round().to(torch.uint8),
        dataset=name,
        id=f"{height}x{width}",
        target=(1 + 1000 * rows + columns).float(),
        mask=(rows + columns) % 3 != 0,
        labels=((3 * rows + columns) % 200).to(torch.uint8),
    )


def maps(sample: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert sample.target is not None
    assert sample.mask is not None
    assert sample.labels is not None
    return sample.target, sample.mask, sample.labels


def assert_together(sample: Sample, original: Sample, tolerance: float) -> int:
    """Each pixel of the truth is a whole pixel of the original's, and near where the image says. Returns how many."""
    target, mask, labels = maps(sample)
    there, masked, classes = maps(original)
    height, width = there.shape
    assert set(target.flatten().tolist()) <= {*there.flatten().tolist(), 0.0}
    padded = target == 0
    assert not mask[padded].any()
    assert (labels[padded] == IGNORE_INDEX).all()
    assert not sample.image[padded].any()
    place = target[~padded].long() - 1
    rows, columns = place // 1000, place % 1000
    assert torch.equal(mask[~padded], masked[rows, columns])
    assert torch.equal(labels[~padded], classes[rows, columns])
    seen = sample.image[~padded].double() / 255 * torch.tensor([height, width, 1]) - 0.5
    assert (seen[:, 0] - rows).abs().max() <= tolerance * max(1, height / 255)
    assert (seen[:, 1] - columns).abs().max() <= tolerance * max(1, width / 255)
    return int((~padded).sum())


@pytest.mark.parametrize("policy", ["none", *POLICIES])
@pytest.mark.parametrize("size", [(37, 53), (101, 41), (24, 24)])
def test_image_and_truth_stay_together(policy: Any, size: tuple[int, int]) -> None:
    original = placed(*size)
    augmentation = Augmentation(size=(31, 43), resize=policy, rescale=(0.6, 1.7), crop=(33, 29))
    rng = np.random.default_rng(0)
    known, mirrored = [], 0
    for _ in range(30):
        sample = augmentation(original, rng)
        assert sample.image.shape == (33, 29, 3)
        # A pixel of the smaller image: half of one by rounding to the nearest, the rest by uint8 and the edges.
        known.append(assert_together(sample, original, 4.5))
        red = sample.image[0, :, 1].float()
        mirrored += int(red[red > 0][0] > red[red > 0][-1])
    assert 5 < mirrored < 25
    assert len(set(known)) > 1 or min(known) == 33 * 29


def test_crop_goes_everywhere_with_equal_chance() -> None:
    original = placed(9, 12)
    augmentation = Augmentation(resize="none", crop=(7, 10), flip=False)
    rng = np.random.default_rng(1)
    corners = [int(maps(augmentation(original, rng))[0][0, 0]) for _ in range(900)]
    counts = {corner: corners.count(corner) for corner in corners}
    assert sorted(counts) == [1 + 1000 * row + column for row in range(3) for column in range(3)]
    assert min(counts.values()) > 60  # of 100 on average, deviation 9.4


@pytest.mark.parametrize("old", [(5, 7), (64, 48), (3, 1), (100, 99)])
@pytest.mark.parametrize("new", [(5, 7), (7, 5), (1, 1), (64, 64), (13, 200)])
def test_truth_is_of_the_nearest_pixel(old: tuple[int, int], new: tuple[int, int]) -> None:
    original = placed(*old)
    target, mask, labels = maps(resize(original, *new))
    there, masked, classes = maps(original)
    for i in range(new[0]):
        for j in range(new[1]):
            # Whole numbers: the pixel that holds the centre, the later one of two that share it.
            row = max(r for r in range(old[0]) if 2 * r * new[0] <= (2 * i + 1) * old[0])
            column = max(c for c in range(old[1]) if 2 * c * new[1] <= (2 * j + 1) * old[1])
            assert target[i, j] == there[row, column]
            assert mask[i, j] == masked[row, column]
            assert labels[i, j] == classes[row, column]


@pytest.mark.parametrize("new", [(25, 33), (91, 131), (61, 79)])
def test_truth_is_not_shifted_against_the_image(new: tuple[int, int]) -> None:
    sample = resize(placed(60, 80), *new)
    inner = (slice(4, -4), slice(4, -4))
    place = maps(sample)[0][inner].long() - 1
    seen = sample.image[inner].double() / 255
    # Rounding to the nearest goes both ways; half a pixel of the new image would be 0.3 and more.
    assert abs((seen[:, :, 0] * 60 - 0.5 - place // 1000).mean()) < 0.1
    assert abs((seen[:, :, 1] * 80 - 0.5 - place % 1000).mean()) < 0.1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(480, 640), (37, 53), (300, 100)])
def test_sizes_are_those_of_the_image_processor(policy: Any, size: tuple[int, int]) -> None:
    augmentation = Augmentation(size=(48, 64), resize=policy, crop=None, flip=False)
    sample = augmentation(placed(*size), np.random.default_rng(0))
    wanted = ImageProcessor((48, 64), resize=policy, multiple_of=1).network_size(*size)
    assert sample.image.shape[:2] == wanted


def test_paper_resizes_the_shorter_side_and_crops() -> None:
    sample = Augmentation()(placed(60, 90), np.random.default_rng(0))
    assert sample.image.shape == (384, 384, 3)
    target, _, _ = maps(sample)
    assert (target > 0).all()
    assert len({int(value) // 1000 for value in target[:, 0].tolist()}) == 60  # of the rows, all


@pytest.mark.parametrize("factors", [(0.5, 0.5), (2.0, 2.0)])
def test_rescale_multiplies_the_size(factors: tuple[float, float]) -> None:
    for policy in ("none", "exact"):
        augmentation = Augmentation(size=(20, 30), resize=policy, rescale=factors, crop=None)  # type: ignore[arg-type]
        sample = augmentation(placed(20, 30), np.random.default_rng(0))
        assert sample.image.shape[:2] == (20 * factors[0], 30 * factors[0])


def test_same_random_numbers_give_the_same_bits() -> None:
    augmentation = Augmentation(size=(40, 40), rescale=(0.5, 2), crop=(32, 32), colors=0.8, blur=3, noise=0.1)
    first, second, other = (augmentation(placed(50, 70), np.random.default_rng(seed)) for seed in (4, 4, 5))
    for one, two in zip((first.image, *maps(first)), (second.image, *maps(second)), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize(("name", "value", "share"), [("colors", 1.0, 1.0), ("blur", 4.0, 0.5), ("noise", 0.2, 0.5)])
def test_what_changes_pixels_leaves_the_truth_alone(name: str, value: float, share: float) -> None:
    original = placed(40, 40)
    plain = Augmentation(size=(40, 40), crop=(30, 30), rescale=(0.8, 1.2))
    strong = dataclasses.replace(plain, **{name: value})  # type: ignore[arg-type]
    changed = 0
    for seed in range(60):
        one, two = (augmentation(original, np.random.default_rng(seed)) for augmentation in (plain, strong))
        assert (two.image.dtype, two.image.shape) == (torch.uint8, one.image.shape)
        changed += int(not torch.equal(one.image, two.image))
        for map, same in zip(maps(one), maps(two), strict=True):
            assert torch.equal(map, same)
    assert changed == 60 if share == 1 else 15 < changed < 45


def test_blur_takes_detail_and_leaves_the_rest() -> None:
    checks = torch.tensor([0, 255], dtype=torch.uint8).repeat(16)[:, None, None].expand(32, 32, 3)
    assert (blur(checks, 4).float() - 127.5).abs().max() < 20
    gray = torch.full((9, 7, 3), 80, dtype=torch.uint8)
    assert torch.equal(blur(gray, 3), gray)
    assert torch.equal(blur(checks, 1), checks)


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    gray = torch.full((100, 100, 3), 128, dtype=torch.uint8)
    noisy = add_noise(gray, 0.05, np.random.default_rng(0)).float() - 128
    # 30,000 values: the mean is off by 0.07, the deviation by 0.05.
    assert abs(noisy.mean()) < 0.3
    assert abs(noisy.std() - 0.05 * 255) < 0.3
    assert torch.equal(add_noise(gray, 0, np.random.default_rng(0)), gray)


@pytest.mark.parametrize(("name", "value"), [("blur", 8.0), ("noise", 0.2)])
def test_blur_and_noise_are_of_any_strength_up_to_the_setting(name: str, value: float) -> None:
    stripes = torch.tensor([64, 192], dtype=torch.uint8).repeat_interleave(8).repeat(4)[:, None, None]
    sample = Sample(image=stripes.expand(64, 64, 3).contiguous(), dataset="stripes", id="0")
    augmentation = Augmentation(resize="none", crop=None, flip=False, **{name: value})

    def change(image: Tensor) -> float:
        return float((image.float() - sample.image).std())

    most = change(blur(sample.image, 8) if name == "blur" else add_noise(sample.image, 0.2, np.random.default_rng(0)))
    changes = [change(augmentation(sample, np.random.default_rng(seed)).image) for seed in range(60)]
    changed = [x / most for x in changes if x]
    assert 15 < len(changed) < 45
    assert min(changed) < 0.35
    assert 0.35 < float(np.median(changed)) < 0.9
    assert 0.9 < max(changed) < 1.3


def test_colours_of_no_strength_change_nothing_and_strong_ones_stay_in_range() -> None:
    image = SceneDataset(height=48, width=64)[0].image
    assert torch.equal(change_colors(image, 0, np.random.default_rng(0)), image)
    grays = 0
    means = []
    for seed in range(60):
        changed = change_colors(image, 1, np.random.default_rng(seed))
        assert (changed.dtype, changed.shape) == (torch.uint8, image.shape)
        means.append(changed.float().mean().item())
        spread = changed.float().amax(2) - changed.float().amin(2)
        gray = change_colors(torch.full((4, 4, 3), 100, dtype=torch.uint8), 1, np.random.default_rng(seed)).float()
        grays += int((spread - spread.mean()).abs().max() < 120 and bool((gray - gray[0, 0]).abs().max() == 0))
    assert grays > 0
    assert max(means) - min(means) > 40


def test_input_is_left_as_it_was() -> None:
    original = placed(30, 30)
    before = [tensor.clone() for tensor in (original.image, *maps(original))]
    augmentation = Augmentation(size=(30, 30), crop=(40, 20), colors=1)
    for seed in range(4):
        sample = augmentation(original, np.random.default_rng(seed))
        sample.image.add_(1)
        maps(sample)[0].add_(1)
    for tensor, same in zip((original.image, *maps(original)), before, strict=True):
        assert torch.equal(tensor, same)


def test_flip_is_its_own_inverse() -> None:
    original = placed(5, 8)
    assert torch.equal(maps(flip(original))[0], maps(original)[0].flip(1))
    for one, two in zip(maps(flip(flip(original))), maps(original), strict=True):
        assert torch.equal(one, two)


def test_crop_beyond_the_edge_is_black_and_unknown() -> None:
    sample = crop(placed(6, 9), 4, 5, 5, 7)
    target, mask, labels = maps(sample)
    assert target[:2, :4].min() == 1 + 4000 + 5
    for outside in (slice(2, None), slice(None)), (slice(None), slice(4, None)):
        assert not sample.image[outside].any()
        assert not target[outside].any()
        assert not mask[outside].any()
        assert (labels[outside] == IGNORE_INDEX).all()


def test_samples_without_truth_pass() -> None:
    sample = Sample(image=torch.zeros(20, 30, 3, dtype=torch.uint8), dataset="a", id="b")
    sample = Augmentation(size=(16, 16), crop=(24, 24))(sample, np.random.default_rng(0))
    assert (sample.target, sample.mask, sample.labels) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": (0, 1)}, "rescale must be"),
        ({"rescale": (2, 1)}, "rescale must be"),
        ({"rescale": (1, float("inf"))}, "rescale must be"),
        ({"colors": 1.5}, "colors and noise must be from 0 to 1"),
        ({"colors": float("nan")}, "colors and noise must be from 0 to 1"),
        ({"noise": -0.1}, "colors and noise must be from 0 to 1"),
        ({"blur": 0.5}, "blur 1 or more"),
        ({"blur": float("inf")}, "blur 1 or more"),
        ({"size": (0, 4)}, "size and crop must be positive"),
        ({"crop": (4, -1)}, "size and crop must be positive"),
        ({"resize": "larger"}, "resize must be one of none, lower_bound"),
    ],
)
def test_augmentation_out_of_range_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_sizes_and_corners_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="resize: height and width must be positive"):
        resize(placed(4, 4), 0, 4)
    for corner in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match="does not begin inside of 4 x 4"):
            crop(placed(4, 4), *corner, 2, 2)


# --- samples ---


def test_depth_and_inverse_depth_are_each_others_inverse() -> None:
    values = torch.tensor([[2.0, torch.inf, 0.0]])
    known = torch.tensor([[True, True, False]])
    image = torch.zeros(1, 3, 3, dtype=torch.uint8)
    metres = Sample(image=image, dataset="a", id="b", target=values, mask=known, unit="metre")
    assert metres.depth().tolist() == [[2.0, torch.inf, 0.0]]
    assert metres.inverse_depth().tolist() == [[0.5, 0.0, 0.0]]
    inverse = metres.replace(target=metres.inverse_depth(), kind="inverse_depth")
    assert inverse.depth().tolist() == [[2.0, torch.inf, 0.0]]
    with pytest.raises(ValueError, match="a/b: a relative inverse depth has an unknown shift"):
        inverse.replace(unit="relative").depth()
    with pytest.raises(ValueError, match="a/b: has no depth map"):
        Sample(image=image, dataset="a", id="b").inverse_depth()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(2, 2, 3)}, "image must be uint8"),
        ({"image": torch.zeros(2, 2, dtype=torch.uint8)}, "image must be uint8"),
        ({"mask": None}, "target and mask go together"),
        ({"target": torch.zeros(2, 2, dtype=torch.float64)}, r"target must be torch.float32 \[2, 2\]"),
        ({"mask": torch.zeros(2, 3, dtype=torch.bool)}, r"mask must be torch.bool \[2, 2\]"),
        ({"labels": torch.zeros(2, 2, dtype=torch.int64)}, r"labels must be torch.uint8 \[2, 2\]"),
    ],
)
def test_tensors_of_another_type_or_size_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"placed/2x2: {message}"):
        placed(2, 2).replace(**changes)


def test_scenes_are_the_same_for_an_index_and_named_by_their_seed() -> None:
    scenes = SceneDataset(5, first=10, height=16, width=24)
    assert torch.equal(scenes[3].image, SceneDataset(9, first=13, height=16, width=24)[0].image)
    assert str(scenes[3]) == "scenes/13"
    target, mask, labels = maps(scenes[3])
    assert mask.all()
    assert (target > 0).all()
    assert labels.max() < 10
    for index in (-1, 5):
        with pytest.raises(IndexError, match="no scene"):
            scenes[index]
    with pytest.raises(ValueError, match="must be positive"):
        SceneDataset(0)


# --- batches ---


class Placed:
    """Samples of different sizes; some cannot be read."""

    def __init__(self, name: str, broken: dict[int, Exception] | None = None) -> None:
        self.name = name
        self.broken = broken or {}

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int, /) -> Sample:
        if index in self.broken:
            raise self.broken[index]
        return placed(20 + index, 50 - index, self.name).replace(id=str(index))


AUGMENTATION = Augmentation(size=(24, 24), rescale=(0.8, 1.2), crop=(24, 24), colors=0.5)


def read(steps: range, workers: int = 0, **broken: dict[int, Exception]) -> list[Batch]:
    datasets = [Placed(name, broken.get(name)) for name in ("a", "b")]
    return [*batches(datasets, Mixture([30, 30], batch_size=4, seed=2), AUGMENTATION, steps, workers=workers)]


def assert_same(one: Batch, two: Batch) -> None:
    for name in ("images", "inverse_depth", "mask", "labels", "datasets"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert (one.names, one.errors) == (two.names, two.errors)


@pytest.fixture(scope="module")
def six() -> list[Batch]:
    return read(range(6))


def test_batch_holds_the_samples_of_its_draws(six: list[Batch]) -> None:
    mixture = Mixture([30, 30], batch_size=4, seed=2)
    for step, batch in enumerate(six):
        draws = mixture.draws(step)
        assert batch.names == [f"{'ab'[draw.dataset]}/{draw.sample}" for draw in draws]
        assert batch.datasets.tolist() == [draw.dataset for draw in draws]
        for i, draw in enumerate(draws):
            sample = AUGMENTATION(placed(20 + draw.sample, 50 - draw.sample), mixture.augmentation(draw))
            assert torch.equal(batch.images[i], sample.image)
            assert torch.equal(batch.inverse_depth[i], sample.inverse_depth())
            assert torch.equal(batch.mask[i], maps(sample)[1])
            assert torch.equal(batch.labels[i], maps(sample)[2].long())


def test_workers_change_nothing(six: list[Batch]) -> None:
    together = read(range(6), workers=2)
    assert len(together) == 6
    for one, two in zip(six, together, strict=True):
        assert_same(one, two)


def test_batches_go_on_from_a_step(six: list[Batch]) -> None:
    for one, two in zip(six[4:], read(range(4, 6)), strict=True):
        assert_same(one, two)


def test_processes_read_their_parts(six: list[Batch]) -> None:
    mixture = Mixture([30, 30], batch_size=4, seed=2)
    for rank in range(2):
        stream = batches([Placed("a"), Placed("b")], mixture, AUGMENTATION, range(1, 2), rank=rank, world_size=2)
        assert_same(next(stream), six[1][2 * rank : 2 * rank + 2])


@pytest.mark.parametrize("error", [ValueError("bad.png: a damaged image"), OSError(5, "Input/output error", "bad.png")])
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_sample_is_reported_and_blank(six: list[Batch], error: Exception, workers: int) -> None:
    place = 2
    dataset, index = six[0].names[place].split("/")
    (batch,) = read(range(1), workers, **{dataset: {int(index): error}})
    assert batch.errors == [f"{dataset}, sample {index}: {error}"]
    assert batch.names[place] == f"{dataset}/sample {index} (unreadable)"
    assert not batch.images[place].any()
    assert not batch.mask[place].any()
    assert not batch.inverse_depth[place].any()
    assert (batch.labels[place] == IGNORE_INDEX).all()
    assert torch.equal(batch.datasets, six[0].datasets)
    rest = [i for i in range(4) if i != place]
    assert torch.equal(batch.images[rest], six[0].images[rest])
    assert torch.equal(batch.inverse_depth[rest], six[0].inverse_depth[rest])


def test_batch_of_unreadable_samples_is_blank_where_the_crop_says_its_size() -> None:
    broken: dict[int, Exception] = dict.fromkeys(range(30), ValueError("gone"))
    (batch,) = read(range(1), a=broken, b=broken)
    assert len(batch.errors) == 4
    assert batch.images.shape == (4, 24, 24, 3)
    assert not batch.mask.any()
    mixture = Mixture([30], batch_size=2)
    with pytest.raises(ValueError, match=r"no sample of the batch could be read: a, sample .*: gone; a, sample"):
        next(batches([Placed("a", broken)], mixture, Augmentation(resize="none", crop=None), range(1)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError, ImportError])
def test_what_ends_a_run_is_said_without_the_traceback_of_a_worker(workers: int, error: type[Exception]) -> None:
    broken: dict[int, Exception] = dict.fromkeys(range(30), error("gone"))
    whole = Augmentation(resize="none", crop=None)
    with pytest.raises(error, match=r"^(no sample of the batch could be read: .*: )?gone$"):
        next(batches([Placed("a", broken)], Mixture([30], batch_size=1), whole, range(1), workers=workers))


def test_closing_ends_the_workers_whoever_still_holds_the_batches() -> None:
    before = set(multiprocessing.active_children())
    stream = batches([Placed("a")], Mixture([30], batch_size=2), AUGMENTATION, range(100), workers=2)
    held = stream, next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    assert set(multiprocessing.active_children()) == before
    assert len(held[1]) == 2


def test_batches_are_pinned(monkeypatch: pytest.MonkeyPatch, six: list[Batch]) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor + 1)  # without a GPU there is no other
    pinned = pin_memory(six[0])
    assert isinstance(pinned, Batch)
    assert torch.equal(pinned.images, six[0].images + 1)
    assert torch.equal(pinned.labels, six[0].labels + 1)
    assert pinned.names == six[0].names


def test_images_of_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of one size, got \d+ x \d+, .*set augmentation.crop"):
        next(batches([Placed("a")], Mixture([30], batch_size=3), Augmentation(resize="none", crop=None), range(1)))


def test_part_of_a_batch_is_of_all_its_fields(six: list[Batch]) -> None:
    part = six[0][1:3]
    assert len(part) == 2
    assert torch.equal(part.images, six[0].images[1:3])
    assert torch.equal(part.labels, six[0].labels[1:3])
    assert part.names == six[0].names[1:3]
