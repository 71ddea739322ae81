"""Slow float64 references of the losses in NumPy, with gradients, and the golden file that they write.

    python tests/python/reference_losses.py      writes tests/data/golden_losses.csv

A loss is written as its definition, image by image, in the operations of a small tape; the tape knows the derivative of
each operation and nothing of losses. docs/losses.md says the same in words. Nothing here shares code with the library.
"""

import math

import numpy as np
from reference import interpolation

USED, EMPTY, CONSTANT, NOT_FINITE = range(4)


# --- the tape ---


class Tape:
    """Nodes in the order in which they were computed."""

    def __init__(self):
        self.nodes = []
        self.margin = math.inf  # the smallest step off a kink: below it, derivatives from both sides are the same

    def node(self, value, *pulls):
        """A value, and for each parent how the derivative with respect to the value becomes one to the parent."""
        self.nodes.append(Node(self, np.asarray(value, np.float64), pulls))
        return self.nodes[-1]

    def gradient(self, of, to):
        grads = {id(of): np.ones_like(of.value)}
        for node in reversed(self.nodes):
            grad = grads.get(id(node))
            if grad is None:
                continue
            for parent, pull in node.pulls:
                grads[id(parent)] = grads.get(id(parent), 0) + pull(grad)
        return grads.get(id(to), np.zeros_like(to.value))


def like(grad, value):
    """Where a number met an array, its derivative is a sum."""
    return grad.sum() if value.ndim == 0 else grad


class Node:
    def __init__(self, tape, value, pulls):
        self.tape, self.value, self.pulls = tape, value, pulls

    def other(self, x):
        return x if isinstance(x, Node) else self.tape.node(x)

    def __add__(self, x):
        x = self.other(x)
        pulls = [(y, lambda g, y=y: like(g, y.value)) for y in (self, x)]
        return self.tape.node(self.value + x.value, *pulls)

    def __mul__(self, x):
        x = self.other(x)
        pulls = [(y, lambda g, y=y, z=z: like(g * z.value, y.value)) for y, z in ((self, x), (x, self))]
        return self.tape.node(self.value * x.value, *pulls)

    def __sub__(self, x):
        x = self.other(x)
        pulls = [(y, lambda g, y=y, sign=sign: like(sign * g, y.value)) for y, sign in ((self, 1), (x, -1))]
        return self.tape.node(self.value - x.value, *pulls)

    def __truediv__(self, x):
        x = self.other(x)
        up = (self, lambda g: like(g / x.value, self.value))
        down = (x, lambda g: like(-g * self.value / x.value**2, x.value))
        return self.tape.node(self.value / x.value, up, down)

    def pick(self, *index):
        """Elements, of which some may be picked more than once."""

        def pull(g):
            grad = np.zeros_like(self.value)
            np.add.at(grad, index, g)
            return grad

        return self.tape.node(self.value[index], (self, pull))

    def total(self):
        return self.tape.node(self.value.sum(), (self, lambda g: np.full_like(self.value, g)))

    def abs(self):
        away = np.abs(self.value[self.value != 0])
        self.tape.margin = min(self.tape.margin, away.min(initial=math.inf))
        return self.tape.node(np.abs(self.value), (self, lambda g: g * np.sign(self.value)))

    def log(self):
        return self.tape.node(np.log(self.value), (self, lambda g: g / self.value))

    def exp(self):
        y = np.exp(self.value)
        return self.tape.node(y, (self, lambda g: g * y))

    def sqrt(self):
        y = np.sqrt(self.value)
        return self.tape.node(y, (self, lambda g: g * 0.5 / y if y > 0 else 0 * g))

    def at_least(self, bound):
        below = self.value < bound
        return self.tape.node(np.where(below, bound, self.value), (self, lambda g: np.where(below, 0, g)))

    def lower_median(self, zeros=0):
        """The element of rank (n - 1) // 2, where `zeros` numbers 0 that are not variables are among the n."""
        ordered = sorted([*self.value.tolist(), *[0.0] * zeros])
        median = ordered[(len(ordered) - 1) // 2]
        equal = self.value == median
        share = 1 / (equal.sum() + (zeros if median == 0 else 0))
        return self.tape.node(median, (self, lambda g: g * equal * share))


def kept(tape, residuals, count):
    """How much of each of several arrays of residuals counts, if of all of them the `count` smallest do."""
    ordered = sorted(value for residual in residuals for value in residual.value.tolist())
    if count == 0:
        return [np.zeros_like(residual.value) for residual in residuals]
    threshold = ordered[count - 1]
    below = sum(value < threshold for value in ordered)
    equal = sum(value == threshold for value in ordered)
    for neighbour in (ordered[below - 1 : below], ordered[below + equal : below + equal + 1]):
        tape.margin = min([tape.margin, *(abs(value - threshold) for value in neighbour)])
    fraction = (count - below) / equal
    return [np.where(r.value < threshold, 1.0, np.where(r.value == threshold, fraction, 0.0)) for r in residuals]


# --- results ---


class Result:
    """`gradient()` is that of the loss, `gradient(weights)` that of a weighted sum of `per_image`."""

    def __init__(self, tape, prediction, loss, per_image, dropped, scale=1.0, shift=0.0):
        self.tape, self.prediction = tape, prediction
        self.loss_node, self.per_image_nodes = loss, per_image
        self.loss = float(loss.value)
        self.per_image = np.array([node.value for node in per_image], np.float64)
        self.dropped = np.array(dropped, np.int64)
        count = len(per_image)
        self.scale = np.broadcast_to(np.array(scale, np.float64), count)
        self.shift = np.broadcast_to(np.array(shift, np.float64), count)
        self.margin = tape.margin

    def gradient(self, weights=None):
        of = self.loss_node
        if weights is not None:
            of = add(self.tape, [node * weight for node, weight in zip(self.per_image_nodes, weights, strict=True)])
        return self.tape.gradient(of, self.prediction)


def add(tape, nodes):
    total = tape.node(0.0)
    for node in nodes:
        total = total + node
    return total


def mean(x):
    return x.total() / x.value.size


# --- scale and shift ---


def center_and_spread(x, alignment, zeros=0):
    center = x.lower_median(zeros) if alignment == "robust" else mean(x)
    return center, mean((x - center).abs())


def why_dropped(prediction, target, mask, alignment, zeros):
    """Of one image's arrays; without an alignment nothing is constant."""
    if not mask.any():
        return EMPTY
    maps = prediction[mask], target[mask]
    if not (np.isfinite(maps[0]).all() and np.isfinite(maps[1]).all()):
        return NOT_FINITE
    for x in maps if alignment else ():
        center, spread = (float(y.value) for y in center_and_spread(Tape().node(x), alignment, zeros))
        if spread <= 1e-7 * abs(center) or spread < 1e-30:
            return CONSTANT
    return USED


def fit(d, d_star, alignment, zeros=0):
    """Residuals [M], scale, shift."""
    t, s = center_and_spread(d, alignment, zeros)
    t_star, s_star = center_and_spread(d_star, alignment, zeros)
    if alignment == "robust":
        scale = s_star / s
        residual = (d - t) / s - (d_star - t_star) / s_star
    else:  # t and t_star are the means
        scale = ((d - t) * (d_star - t_star)).total() / ((d - t) * (d - t)).total()
        residual = (d - t) * scale - (d_star - t_star)
    return residual, float(scale.value), float((t_star - scale * t).value)


def fits(tape, prediction, target, mask, alignment, published):
    """Per image: code, residuals [M] or None, scale, shift."""
    found = []
    for b in range(len(mask)):
        zeros = int((~mask[b]).sum()) if published and alignment == "robust" else 0
        code = why_dropped(prediction.value[b], target.value[b], mask[b], alignment, zeros)
        where = np.nonzero(mask[b])
        d, d_star = prediction.pick(b, *where), target.pick(b, *where)
        if code == CONSTANT:
            found.append((code, None, 0.0, float(center_and_spread(d_star, alignment, zeros)[0].value)))
        elif code != USED:
            found.append((code, None, math.nan, math.nan))
        else:
            found.append((code, *fit(d, d_star, alignment, zeros)))
    return found


def align(prediction, target, mask, *, mode):
    """scale, shift, dropped: each [B]."""
    tape = Tape()
    found = fits(tape, tape.node(prediction), tape.node(target), mask, mode, published=False)
    return tuple(np.array([image[i] for image in found]) for i in (2, 3, 0))


# --- losses of relative depth ---


def gradient_terms(residual, mask, scales, definition):
    """(sum, divisor) at every scale, of one image's residuals [M] at its valid pixels."""
    number = np.full(mask.shape, -1)  # of a valid pixel: its place in `residual`
    number[mask] = np.arange(mask.sum())
    terms = []
    for k in range(scales):
        grid = number[:: 2**k, :: 2**k]
        sums = []
        for one, other in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
            both = (one >= 0) & (other >= 0)
            sums.append((residual.pick(other[both]) - residual.pick(one[both])).abs().total())
        terms.append((sums[0] + sums[1], int(mask.sum() if definition == "paper" else (grid >= 0).sum())))
    return terms


def ratio(tape, terms):
    """Sum of numerators over sum of divisors; 0 if that is 0."""
    divisor = sum(term[1] for term in terms)
    return add(tape, [term[0] for term in terms]) / divisor if divisor else tape.node(0.0)


def reduce(tape, images, codes, weights, reduction, definition):
    """`images` is a list per used image of its terms (numerator, divisor), `weights` are the terms' own.

    Returns the loss and per_image.
    """
    rows = iter(images)
    per_image = []
    for code in codes:
        terms = next(rows) if code == USED else []
        parts = [ratio(tape, [term]) * weight for term, weight in zip(terms, weights, strict=bool(terms))]
        per_image.append(add(tape, parts))
    if reduction == "batch":
        pooled = [ratio(tape, [terms[i] for terms in images]) * weight for i, weight in enumerate(weights)]
        return add(tape, pooled), per_image
    count = len(codes) if definition == "published" else len(images)
    return add(tape, per_image) / max(count, 1), per_image


def scale_and_shift_invariant(
    prediction,
    target,
    mask,
    *,
    alignment="robust",
    data="trimmed",
    trim=0.2,
    alpha=0.5,
    scales=4,
    reduction="image",
    definition="recommended",
):
    tape = Tape()
    d = tape.node(prediction)
    codes, residuals, scale, shift = [], [], [], []
    for code, residual, *pair in fits(tape, d, tape.node(target), mask, alignment, definition == "published"):
        codes.append(code)
        residuals.append(residual)
        scale.append(pair[0])
        shift.append(pair[1])
    used = [(residual, mask[b]) for b, residual in enumerate(residuals) if residual is not None]
    if data == "mse":
        sums = [(residual * residual).total() for residual, _ in used]
    else:
        sizes = [residual.abs() for residual, _ in used]
        if data == "trimmed":
            millionths = round(trim * 1_000_000)  # a whole number, so that counting is exact
            groups = [sizes] if definition == "published" else [[size] for size in sizes]
            counts = [sum(s.value.size for s in group) * (1_000_000 - millionths) // 1_000_000 for group in groups]
            keep = [w for group, count in zip(groups, counts, strict=True) for w in kept(tape, group, count)]
            sizes = [size * weight for size, weight in zip(sizes, keep, strict=True)]
        sums = [size.total() for size in sizes]
    images = [
        [(data_sum, 2 * int(valid.sum())), *gradient_terms(residual, valid, scales, definition)]
        for data_sum, (residual, valid) in zip(sums, used, strict=True)
    ]
    loss, per_image = reduce(tape, images, codes, [1.0] + [alpha] * scales, reduction, definition)
    return Result(tape, d, loss, per_image, codes, scale, shift)


def gradient_matching(prediction, target, mask, *, scales=4, reduction="image", definition="recommended"):
    tape = Tape()
    d, d_star = tape.node(prediction), tape.node(target)
    codes = [why_dropped(prediction[b], target[b], mask[b], None, 0) for b in range(len(mask))]
    images = []
    for b in range(len(mask)):
        if codes[b] == USED:
            where = np.nonzero(mask[b])
            images.append(gradient_terms(d.pick(b, *where) - d_star.pick(b, *where), mask[b], scales, definition))
    loss, per_image = reduce(tape, images, codes, [1.0] * scales, reduction, definition)
    return Result(tape, d, loss, per_image, codes)


# --- losses of metric depth and of classes ---


def silog_of(parts, variant):
    """Of the differences of logarithms of one or several images together."""
    tape = parts[0].tape
    n = sum(part.value.size for part in parts)
    first = add(tape, [part.total() for part in parts]) / n
    second = add(tape, [(part * part).total() for part in parts]) / n
    if variant == "eigen":
        return second - first * first * 0.5
    if variant == "depth_anything":
        return (second - first * first * 0.5).sqrt()
    if variant == "bts":
        return (second - first * first * 0.85).sqrt() * 10.0
    variance = add(tape, [((part - first) * (part - first)).total() for part in parts]) / max(n - 1, 1)
    return (variance + first * first * 0.15).sqrt() * 10.0  # adabins


def silog(prediction, target, mask, *, variant="eigen", reduction=None):
    tape = Tape()
    d = tape.node(prediction)
    codes, used, per_image = [], [], []
    for b in range(len(mask)):
        code = why_dropped(prediction[b], target[b], mask[b], None, 0)
        if code == USED and (target[b][mask[b]] <= 0).any():
            code = NOT_FINITE
        codes.append(code)
        if code == USED:
            used.append(d.pick(b, *np.nonzero(mask[b])).at_least(1e-6).log() - np.log(target[b][mask[b]]))
        per_image.append(silog_of(used[-1:], variant) if code == USED else tape.node(0.0))
    if reduction == "image" or (reduction is None and variant == "eigen"):
        loss = add(tape, per_image) / max(len(used), 1)
    else:
        loss = silog_of(used, variant) if used else tape.node(0.0)
    return Result(tape, d, loss, per_image, codes)


def cross_entropy(logits, labels, ignore_index):
    b, i, j = np.nonzero(labels != ignore_index)
    if b.size == 0:
        return logits.tape.node(0.0)
    scores = [logits.pick(b, c, i, j) for c in range(logits.value.shape[1])]
    largest = np.max([score.value for score in scores], 0)
    exponentials = add(logits.tape, [(score - largest).exp() for score in scores])
    return mean(exponentials.log() + largest - logits.pick(b, labels[b, i, j], i, j))


def segmentation(logits, labels, auxiliary_logits=None, *, auxiliary_weight=0.2, ignore_index=255):
    """The loss and its gradients with respect to both maps of logits (None for one that is not there)."""
    tape = Tape()
    first = tape.node(logits)
    loss = cross_entropy(first, labels, ignore_index)
    if auxiliary_logits is None:
        return float(loss.value), tape.gradient(loss, first), None
    second = tape.node(auxiliary_logits)
    rows, columns = (interpolation(auxiliary_logits.shape[a], labels.shape[a - 1], False) for a in (2, 3))
    resized = tape.node(
        np.einsum("ih,bchw,jw->bcij", rows, auxiliary_logits, columns, optimize=True),
        (second, lambda g: np.einsum("ih,bcij,jw->bchw", rows, g, columns, optimize=True)),
    )
    loss = loss + cross_entropy(resized, labels, ignore_index) * auxiliary_weight
    return float(loss.value), tape.gradient(loss, first), tape.gradient(loss, second)


if __name__ == "__main__":
    from golden_losses import write

    write()
