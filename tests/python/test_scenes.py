"""torchdpt.scenes: determinism, and depth, normals and labels that belong together."""

from __future__ import annotations

import pytest
import torch

from torchdpt.scenes import CLASS_NAMES, render

SKY = CLASS_NAMES.index("sky")
SEEDS = range(40)


def test_types_and_ranges() -> None:
    for seed in SEEDS:
        scene = render(seed, 30, 41)
        assert (scene.image.shape, scene.image.dtype) == ((30, 41, 3), torch.uint8)
        assert (scene.depth.shape, scene.depth.dtype) == ((30, 41), torch.float32)
        assert (scene.normals.shape, scene.normals.dtype) == ((30, 41, 3), torch.float32)
        assert (scene.labels.shape, scene.labels.dtype) == ((30, 41), torch.uint8)
        assert scene.labels.max() < len(CLASS_NAMES)
        sky = scene.labels == SKY
        assert torch.equal(sky, scene.depth.isinf())
        assert (scene.depth > 0).all()
        assert (scene.normals[sky] == 0).all()
        torch.testing.assert_close(scene.normals[~sky].norm(dim=1), torch.ones(int((~sky).sum())))
        assert 0.5 < scene.focal / 41 < 1.5  # 38 to 85 degrees


def test_same_seed_same_bits_other_seed_other_scene() -> None:
    first, again = render(3, 24, 32), render(3, 24, 32)
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    pictures = {render(seed, 24, 32).image.numpy().tobytes() for seed in SEEDS}
    assert len(pictures) == len(SEEDS)


def test_normals_are_those_of_the_depth() -> None:
    height, width, right = 96, 128, 0
    total = 0
    for seed in SEEDS:
        scene = render(seed, height, width)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        rays = torch.stack([(x - width / 2) / scene.focal, (y - height / 2) / scene.focal, torch.ones_like(x)], -1)
        points = rays * scene.depth[..., None]
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        normals = torch.linalg.cross(down, across)
        normals = normals / normals.norm(dim=-1, keepdim=True)
        want = scene.normals[1:-1, 1:-1]
        # Away from edges: neighbours have the same normal, and finite depth.
        around = scene.normals.unfold(0, 3, 1).unfold(1, 3, 1).flatten(-2)
        flat = ((around - want[..., None]).abs().amax((-1, -2)) < 1e-3) & (scene.depth[1:-1, 1:-1] < 50)
        agree = ((normals - want).norm(dim=-1) < 0.05)[flat]
        total += agree.numel()
        right += int(agree.sum())
        # Surfaces are seen from outside.
        assert ((scene.normals * rays).sum(-1)[scene.labels != SKY] <= 1e-5).all()
    assert total > 40 * 2000
    assert right > 0.97 * total  # the rest: parallel surfaces, one before the other


def test_every_class_appears() -> None:
    seen = torch.cat([render(seed, 48, 64).labels.flatten().unique() for seed in range(60)])
    assert set(seen.tolist()) == set(range(len(CLASS_NAMES)))


def test_scene_does_not_depend_on_size() -> None:
    small, large = render(11, 24, 32), render(11, 72, 96)
    same = (small.depth - large.depth[1::3, 1::3]).abs() < 1e-3 * small.depth
    assert (same | (small.depth.isinf() & large.depth[1::3, 1::3].isinf())).float().mean() > 0.995


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_refuses_an_empty_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"render_scene: height and width must be positive, got"):
        render(0, *size)
