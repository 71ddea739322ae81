"""Relative depth becomes metric: what is fitted, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from predictions import joint, metric, relative, segmented

from torchdpt import Prediction

pytestmark = pytest.mark.usefixtures("no_numpy_warnings")

HEIGHT, WIDTH = 30, 40
SCALE, SHIFT = 0.0125, 0.03125
RNG = np.random.default_rng(0)


def prediction() -> Prediction:
    """From 2 (80 / 4.5 m away) to 32 (2.3 m), in no order."""
    values = np.linspace(2, 32, HEIGHT * WIDTH, dtype=np.float32)
    return Prediction(RNG.permutation(values).reshape(HEIGHT, WIDTH))


def true_depth(relative: Prediction) -> np.ndarray:
    return 1 / (SCALE * relative.depth.astype(np.float64) + SHIFT)


def points_of(relative: Prediction, count: int, noise: float = 0.0) -> np.ndarray:
    """[count, 3]: the true depth at different pixels, times 1 + noise."""
    pixels = RNG.permutation(HEIGHT * WIDTH)[:count]
    rows, columns = np.divmod(pixels, WIDTH)
    metres = true_depth(relative)[rows, columns] * (1 + noise * RNG.standard_normal(count))
    return np.stack([columns + RNG.random(count), rows + RNG.random(count), metres], axis=1)


def reference_line(v: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    scale, shift = np.linalg.lstsq(np.stack([v, np.ones_like(v)], axis=1), w, rcond=None)[0]
    return float(scale), float(shift)


# --- what is fitted ---


@pytest.mark.parametrize("count", [2, 3, 4, 7, 300, 1200])
def test_exact_points_give_the_exact_line(count: int) -> None:
    given = prediction()
    points = points_of(given, count)
    result, fit = given.to_metric(points)
    assert (fit.scale, fit.shift) == pytest.approx((SCALE, SHIFT), rel=1e-10)
    assert fit.inliers.all()
    assert fit.inliers.shape == fit.residuals.shape == (count,)
    assert np.abs(fit.residuals).max() < 1e-12
    assert (result.kind, result.unit, result.depth.dtype) == ("metric_depth", "m", np.float32)
    assert np.allclose(result.depth, true_depth(given), rtol=1e-6)  # float32
    assert given.kind == "relative_inverse_depth"


def test_two_points_worked_out_by_hand() -> None:
    given = Prediction(np.array([[1, 3, 5, -1]], np.float32))
    # 1 / 2 m at 1 and 1 / 1 m at 3: 1 / z = 0.25 v + 0.25; at -1 that is 0, and nothing is known.
    result, fit = given.to_metric([[0.5, 0.5, 2], [1.99, 0, 1]])
    assert (fit.scale, fit.shift) == (0.25, 0.25)
    assert result.depth[0, :3].tolist() == [2, 1, np.float32(1 / 1.5)]
    assert np.isnan(result.depth[0, 3])
    assert result.valid.tolist() == [[True, True, True, False]]


def test_x_counts_columns_and_y_rows_and_a_pixel_reaches_to_the_next() -> None:
    given = Prediction(np.array([[1, 2, 3], [10, 20, 30]], np.float32))
    points = [[2.999, 0.999, 1 / 3], [0, 1, 1 / 10], [2, 1.5, 1 / 30]]
    fit = given.to_metric(points)[1]
    assert (fit.scale, fit.shift) == pytest.approx((1, 0), abs=1e-12)


def test_a_sparse_map_is_its_points() -> None:
    given = prediction()
    points = points_of(given, 50, noise=0.02)
    order = np.lexsort((points[:, 0], points[:, 1].astype(int)))
    sparse = np.zeros((HEIGHT, WIDTH), np.float32)
    sparse[::3] = np.nan
    for x, y, metres in points:
        sparse[int(y), int(x)] = metres
    by_map, fit_of_map = given.to_metric(sparse_depth=sparse)
    by_points, fit_of_points = given.to_metric(points[order])
    assert np.allclose(by_map.depth, by_points.depth, rtol=1e-6)  # the map is float32
    assert np.array_equal(fit_of_map.inliers, fit_of_points.inliers)
    assert np.allclose(fit_of_map.residuals, fit_of_points.residuals, atol=1e-7)


def test_noise_alone_is_fitted_by_least_squares_on_the_inliers() -> None:
    given = prediction()
    points = points_of(given, 200, noise=0.01)
    fit = given.to_metric(points)[1]
    v = given.depth[points[:, 1].astype(int), points[:, 0].astype(int)].astype(np.float64)
    w = 1 / points[:, 2]
    assert (fit.scale, fit.shift) == pytest.approx(reference_line(v[fit.inliers], w[fit.inliers]), rel=1e-9)
    assert np.allclose(fit.residuals, w - fit.scale * v - fit.shift, atol=1e-14)
    # 2.5 deviations of normal noise: 1 % outside; the noise here grows with w, so that it is a little more.
    assert fit.inliers.mean() > 0.9
    assert fit.scale == pytest.approx(SCALE, rel=0.01)


def test_three_points_are_all_fitted() -> None:
    given = Prediction(np.array([[1, 2, 4]], np.float32))
    v, w = np.array([1.0, 2, 4]), np.array([1.0, 2.1, 4])  # no two of them are more on a line than others
    fit = given.to_metric([[x, 0, 1 / w[x]] for x in range(3)])[1]
    assert fit.inliers.all()
    assert (fit.scale, fit.shift) == pytest.approx(reference_line(v, w), rel=1e-10)


def test_one_point_of_many_may_be_what_tells_scale_from_shift() -> None:
    values = np.ones((300, 400), np.float32)
    values[7, 11] = 3
    fit = Prediction(values).to_metric(sparse_depth=np.where(values > 1, 1.0, 2.0))[1]
    assert (fit.scale, fit.shift) == pytest.approx((0.25, 0.25), rel=1e-10)
    assert fit.inliers.all()


OUTLIERS = {
    "far": lambda count: np.full(count, 1000.0),
    "near": lambda count: np.full(count, 0.2),
    "anywhere": lambda count: RNG.uniform(0.5, 80, count),
    "feet for metres": lambda count: None,
}


@pytest.mark.parametrize("kind", OUTLIERS)
@pytest.mark.parametrize(("count", "share"), [(12, 0.25), (50, 0.4), (1200, 0.45)])
def test_outliers_are_told_apart(kind: str, count: int, share: float) -> None:
    given = prediction()
    points = points_of(given, count, noise=0.002)
    wrong = RNG.permutation(count)[: int(share * count)]
    metres = OUTLIERS[kind](len(wrong))
    points[wrong, 2] = points[wrong, 2] * 3.28 if metres is None else metres
    fit = given.to_metric(points)[1]
    # Noise of 0.2 % over a third of the range and more; least squares on all points is off by 10 % to 1000 %.
    assert (fit.scale, fit.shift) == pytest.approx((SCALE, SHIFT), rel=0.02)
    assert fit.inliers[np.setdiff1d(np.arange(count), wrong)].mean() > 0.8
    assert fit.inliers[wrong].mean() <= (0.2 if kind == "anywhere" else 0.0)


def test_outliers_at_one_end_of_the_range_are_told_apart() -> None:
    given = prediction()
    points = points_of(given, 400, noise=0.002)
    v = given.depth[points[:, 1].astype(int), points[:, 0].astype(int)]
    points[v > 22, 2] = 1.0  # a third of them, and all that are near
    fit = given.to_metric(points)[1]
    assert (fit.scale, fit.shift) == pytest.approx((SCALE, SHIFT), rel=0.02)
    assert not fit.inliers[v > 22].any()


@pytest.mark.parametrize("count", [40, 1200])  # all pairs, and some
def test_the_order_of_the_points_does_not_matter_and_nothing_is_random(count: int) -> None:
    given = prediction()
    points = points_of(given, count, noise=0.05)
    points[::3, 2] = RNG.uniform(0.5, 80, len(points[::3]))
    fit = given.to_metric(points)[1]
    again = given.to_metric(points)[1]
    assert (again.scale, again.shift) == (fit.scale, fit.shift)
    order = RNG.permutation(count)
    shuffled = given.to_metric(points[order])[1]
    assert (shuffled.scale, shuffled.shift) == pytest.approx((fit.scale, fit.shift), rel=1e-12)
    assert np.array_equal(shuffled.inliers, fit.inliers[order])


@pytest.mark.parametrize(("factor", "offset"), [(1e-4, 0.0), (1e4, 0.0), (1.0, 500.0), (1.0, -20.0)])
def test_units_of_the_prediction_do_not_matter(factor: float, offset: float) -> None:
    given = prediction()
    points = points_of(given, 100, noise=0.01)
    points[::4, 2] = 0.3
    expected, fit = given.to_metric(points)
    other = Prediction((given.depth.astype(np.float64) * factor + offset).astype(np.float32))
    result, other_fit = other.to_metric(points)
    # float32 values near 500 are good to 3e-5, of a range of 30.
    assert np.allclose(result.depth, expected.depth, rtol=1e-4)
    assert np.array_equal(other_fit.inliers, fit.inliers)
    assert other_fit.scale * factor == pytest.approx(fit.scale, rel=1e-4)


def test_points_where_the_prediction_is_not_known_are_no_part_of_the_fit() -> None:
    values = prediction().depth.copy()
    values[0] = np.nan
    values[1] = np.inf
    given = Prediction(values)
    points = np.array([[3, 0.5, 5.0], [3, 1.5, 5.0], [1, 5, 0], [8, 9, 0], [20, 20, 0]])
    rows, columns = points[2:, 1].astype(int), points[2:, 0].astype(int)
    points[2:, 2] = 1 / (SCALE * values[rows, columns].astype(np.float64) + SHIFT)
    result, fit = given.to_metric(points)
    assert np.isnan(fit.residuals).tolist() == [True, True, False, False, False]
    assert fit.inliers.tolist() == [False, False, True, True, True]
    assert np.isnan(result.depth[:2]).all()
    assert result.valid[2:].all()


def test_what_else_a_prediction_holds_stays() -> None:
    both = joint()
    given = Prediction(relative().depth, image=both.image, labels=both.labels, classes=both.classes)
    (far, near), (columns, rows) = (given.depth.min(), given.depth.max()), (range(7), range(5))
    points = [[x, y, 1 / (0.1 * given.depth[y, x])] for x in columns for y in rows]
    result = given.to_metric(points)[0]
    assert result.image is given.image
    assert np.array_equal(result.labels, given.labels)
    assert result.classes == given.classes
    assert [result.depth.max(), result.depth.min()] == pytest.approx([10 / far, 10 / near], rel=1e-6)


# --- what is refused ---


def ramp() -> Prediction:
    return Prediction(np.linspace(1, 11, 50, dtype=np.float32)[None].repeat(4, 0))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"points must be \[N, 3\] \(x, y, metres\), got \[0\]"),
        (np.zeros((0, 3)), "need at least two points where the prediction is known, got 0 of 0 points"),
        ([[1, 1, 2.0]], "got 1 of 1 points; measure more"),
        ([[1, 1], [2, 2]], r"points must be \[N, 3\] \(x, y, metres\), got \[2, 2\]"),
        ([["1", "1", "1"]], "points must be an array of numbers, got <U1"),
        (
            [[1, 1, 2.0], [50, 1, 1.0]],
            r"x from 0 to 50 and y from 0 to 4 pixels; 1 of 2 are not, the first at \(50, 1\)",
        ),
        ([[1, 1, 2.0], [1, 4, 1.0]], "must be in the image"),
        ([[-0.1, 1, 2.0], [1, 1, 1.0]], "must be in the image"),
        ([[np.nan, 1, 2.0], [1, 1, 1.0]], "must be in the image"),
        ([[1, 1, 2.0], [2, 1, 0.0]], "must be positive and finite, in metres; 1 of 2 are not, the first is 0"),
        ([[1, 1, -2.0], [2, 1, 1.0]], "the first is -2"),
        ([[1, 1, np.inf], [2, 1, np.nan]], "2 of 2 are not, the first is inf"),
        # Twice the same pixel; other pixels of one column, at which the prediction is one number.
        ([[3.2, 1, 2.0], [3.4, 1, 1.0]], "all points are at nearly one predicted inverse depth, from 1.61"),
        ([[3, 0, 2.0], [3, 1, 1.0], [3, 3, 1.0]], "nearly one predicted inverse depth"),
        ([[1, 1, 1.0], [40, 1, 2.0]], "the fitted scale is -0.0628, negative, by 2 of 2 points: near is large"),
        # 1 / metres is 1, 2.2 and 3 where the prediction is 1, 1.8 and 2.8: too few points for such a deviation.
        ([[0, 1, 1.0], [4.9, 1, 1 / 2.2], [9.8, 1, 1 / 3]], "not told from zero .* by 3 of 3 points"),
        ([[x, 1, 5.0] for x in range(20)], "the fitted scale is .*, not told from zero"),
    ],
)
def test_points_that_do_not_determine_the_fit_are_refused(points: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ramp().to_metric(points)


def test_disagreement_is_refused() -> None:
    given = ramp()
    x = np.arange(50) + 0.5
    growing = 1 / (0.1 * given.depth[0].astype(np.float64))[::-1]  # as if far were large
    with pytest.raises(ValueError, match=r"the fitted scale is -0.1, negative, by 50 of 50 points"):
        given.to_metric(np.stack([x, np.ones(50), growing], axis=1))
    refused = 0
    for _ in range(20):
        try:
            given.to_metric(np.stack([x, np.ones(50), RNG.uniform(1, 10, 50)], axis=1))
        except ValueError as error:
            refused += "fitted scale" in str(error)
    assert refused >= 19


def test_nearly_one_depth_is_refused_whatever_the_picture_spans() -> None:
    values = np.full((2, 100), 7, np.float32)
    values[0, :50] += 1e-3
    points = [[1, 0, 1.0], [1, 1, 2.0]]
    assert Prediction(values).to_metric(points)[1].scale == pytest.approx(500, rel=1e-3)
    values[1, 99] = 9  # now the two points are at one depth, as pictures go
    with pytest.raises(ValueError, match="in a prediction that spans 2, and do not tell scale from shift"):
        Prediction(values).to_metric(points)
    with pytest.raises(ValueError, match="in a prediction that spans 0"):
        Prediction(np.ones((2, 2), np.float32)).to_metric([[1, 0, 1.0], [0, 1, 2.0]])
    with pytest.raises(ValueError, match="got 0 of 2 points"):
        Prediction(np.full((2, 2), np.nan, np.float32)).to_metric([[1, 0, 1.0], [0, 1, 2.0]])


def test_maps_of_another_size_or_content_are_refused() -> None:
    given = ramp()
    with pytest.raises(ValueError, match=r"sparse_depth must be \[4, 50\], as the prediction, got \[50, 4\]"):
        given.to_metric(sparse_depth=np.zeros((50, 4)))
    with pytest.raises(ValueError, match="got 0 of 0 points"):
        given.to_metric(sparse_depth=np.full((4, 50), np.nan))
    sparse = np.zeros((4, 50))
    sparse[1, 1:4] = (1, -1, np.inf)
    with pytest.raises(ValueError, match="2 of 3 are not, the first is -1"):
        given.to_metric(sparse_depth=sparse)


def test_only_relative_depth_becomes_metric() -> None:
    with pytest.raises(ValueError, match="depth is in metres already"):
        metric().to_metric([[1, 1, 2.0], [2, 2, 3.0]])
    with pytest.raises(ValueError, match="to_metric needs depth, and this prediction has labels alone"):
        segmented().to_metric([[1, 1, 2.0], [2, 2, 3.0]])
    for arguments in ({}, {"points": [[1, 1, 2.0]], "sparse_depth": np.zeros((4, 50))}):
        with pytest.raises(ValueError, match="give either points"):
            ramp().to_metric(**arguments)


def test_depth_too_far_for_float32_is_not_known() -> None:
    given = Prediction(np.array([[0, 1e-38, 1, 2, 1e-39, -3]], np.float32))
    result, fit = given.to_metric([[2, 0, 1.0], [3, 0, 0.5]])
    assert (fit.scale, fit.shift) == (1, 0)
    assert np.isnan(result.depth).tolist() == [[True, False, False, False, True, True]]
    assert result.depth[0, 1] == np.float32(1 / np.float64(np.float32(1e-38)))
