"""The cases of tests/data/golden_losses.csv: inputs as formulas, options, and what reference_losses.py makes of them.

docs/losses.md describes the columns.
"""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import reference_losses

FILE = Path(__file__).parents[1] / "data" / "golden_losses.csv"
ARRAYS = ("prediction", "target", "mask", "auxiliary")
INPUT = ("batch", "classes", "height", "width", *ARRAYS, "auxiliary_height", "auxiliary_width")
RESULT = ("loss", "per_image", "scale", "shift", "dropped", "gradient_dot", "gradient_norm")
COLUMNS = ("case", "function", "options", *INPUT, *RESULT)

OPTIONS = {
    "scale_and_shift_invariant": {
        "alignment": "robust",
        "data": "trimmed",
        "trim": 0.2,
        "alpha": 0.5,
        "scales": 4,
        "reduction": "image",
        "definition": "recommended",
    },
    "gradient_matching": {"scales": 4, "reduction": "image", "definition": "recommended"},
    "silog": {"variant": "eigen", "reduction": None},
    "align": {"mode": "robust"},
    "segmentation": {"auxiliary_weight": 0.2, "ignore_index": 255},
}
ALIGNMENTS = ("robust", "least_squares")
DATA = ("trimmed", "mae", "mse")
REDUCTIONS = ("image", "batch")
DEFINITIONS = ("recommended", "paper", "published")
VARIANTS = ("eigen", "bts", "adabins", "depth_anything")


def maps(batch, height, width, prediction, target, mask="k >= 0"):
    values = {"batch": batch, "height": height, "width": width}
    return values | {"prediction": prediction, "target": target, "mask": mask}


WAVE = "2 + sin(0.7 * k)"
TARGET = "0.3 + 0.2 * cos(0.5 * k) + 0.05 * ((7 * k) % 5)"
DEPTH = "1.5 + cos(0.5 * k)"

INPUTS = {
    "waves": maps(3, 16, 16, WAVE, TARGET, "(k % 6 != 5) * (b != 2)"),
    "rows": maps(2, 5, 7, WAVE, TARGET, "i % 3 != 1"),
    "sparse": maps(2, 20, 31, WAVE, TARGET, "k % 97 == 0"),
    "mostly_invalid": maps(2, 9, 8, WAVE, TARGET, "k % 5 < 2"),
    "valid_zeros": maps(2, 9, 8, "where(k % 4 == 0, 0, sin(0.7 * k))", TARGET, "k % 5 < 2"),
    # Eight pairs of values that come again and again; no two of them have the same residual.
    "ties": maps(2, 8, 9, "(((k % 8) * (k % 8)) % 11) / 8", "((3 * (k % 8)) % 8) / 4 * (1 + b)", "k % 9 != 8"),
    "ten_pixels": maps(1, 2, 5, "sin(3 * k)", "cos(2 * k)"),
    "offset": maps(2, 12, 10, "10000 + ((37 * k) % 101) / 128", "((37 * k) % 101) / 256 + ((11 * k) % 7) / 64"),
    "opposite": maps(2, 6, 8, "2 - sin(0.7 * k)", "sin(0.7 * k) + 0.1 * cos(0.9 * k)", "k % 7 != 0"),
    "equal": maps(2, 6, 8, "((29 * k) % 31) / 32", "((29 * k) % 31) / 32"),
    "nan_outside": maps(
        2,
        7,
        6,
        "where(k % 4 == 0, nan, sin(0.7 * k))",
        "where(k % 4 == 0, where(k % 8 == 0, inf, nan), cos(k))",
        "k % 4",
    ),
    "one_of_each": maps(
        6,
        6,
        5,
        "where(b == 2, 3, where((b == 4) * (k % 7 == 0), nan, sin(0.7 * k)))",
        "where(b == 3, 0.5, where((b == 5) * (k % 7 == 0), -inf, cos(0.3 * k)))",
        "(b != 1) * (k % 3 != 0)",
    ),
    "all_empty": maps(2, 4, 4, WAVE, TARGET, "k < 0"),
    "all_zero": maps(2, 4, 4, "0 * k", "0 * k"),
    "one_pixel": maps(1, 1, 1, WAVE, TARGET),
    "one_valid_pixel": maps(2, 3, 3, WAVE, TARGET, "k % 9 == 4"),
    "two_pixels": maps(1, 1, 2, WAVE, TARGET),
    "three_pixels": maps(1, 3, 1, WAVE, TARGET),
    "line": maps(2, 1, 7, WAVE, TARGET),
    "depth": maps(3, 9, 8, WAVE, DEPTH, "k % 6 != 5"),
    "depth_not_positive": maps(
        4,
        4,
        5,
        "where(k % 6 == 0, -0.5, 2 + sin(k))",
        "where((b == 1) * (j == 2), 0, 3 + cos(k))",
        "(b != 3) * (i != 1)",
    ),
    "depth_equal": maps(2, 4, 5, "3 + cos(k)", "3 + cos(k)"),
    "depth_one_pixel": maps(2, 4, 5, "2 + sin(k)", "3 + cos(k)", "k % 20 == 7"),
}


def class_maps(prediction, target, auxiliary="", size=("", "")):
    values = {"batch": 2, "classes": 4, "height": 5, "width": 6, "prediction": prediction, "target": target}
    return values | {"auxiliary": auxiliary, "auxiliary_height": size[0], "auxiliary_width": size[1]}


LOGITS = "4 * sin(0.7 * k)"
CLASS_INPUTS = {
    "classes": class_maps(LOGITS, "where(k % 7 == 0, 255, k % 4)"),
    "classes_of_three": class_maps(LOGITS, "k % 4"),
    "classes_none": class_maps(LOGITS, "255 + 0 * k"),
    "classes_auxiliary": class_maps(LOGITS, "where(k % 7 == 0, 255, k % 4)", "cos(0.3 * k)", (5, 6)),
    "classes_auxiliary_small": class_maps(LOGITS, "where(k % 7 == 0, 255, k % 4)", "cos(0.3 * k)", (3, 2)),
    "classes_large_logits": class_maps("1000 * sin(0.7 * k)", "k % 4"),
}


def cases():
    """(input, function, options that are not the defaults)"""
    ssi = "scale_and_shift_invariant"
    for alignment, data, definition, reduction in itertools.product(ALIGNMENTS, DATA, DEFINITIONS, REDUCTIONS):
        words = {"alignment": alignment, "data": data, "definition": definition, "reduction": reduction}
        yield "waves", ssi, words
    for definition in DEFINITIONS:
        for trim in (0, 0.1, 1 / 3, 0.7, 0.9, 1):
            yield "ten_pixels", ssi, {"trim": trim, "definition": definition}
        yield "waves", ssi, {"trim": 0.5, "definition": definition}
        for scales in (0, 1, 16):
            yield "waves", ssi, {"scales": scales, "definition": definition, "reduction": "batch"}
        yield "waves", ssi, {"alpha": 0, "definition": definition}
        yield "waves", ssi, {"alpha": 2, "definition": definition}
        for name in ("rows", "sparse", "mostly_invalid", "valid_zeros", "ties", "offset"):
            for alignment in ALIGNMENTS:
                yield name, ssi, {"alignment": alignment, "definition": definition}
        for name in ("nan_outside", "one_of_each"):
            for alignment, reduction in itertools.product(ALIGNMENTS, REDUCTIONS):
                yield name, ssi, {"alignment": alignment, "definition": definition, "reduction": reduction}
        for name in ("waves", "rows", "one_of_each"):
            for reduction in REDUCTIONS:
                yield name, "gradient_matching", {"definition": definition, "reduction": reduction}
    yield "opposite", ssi, {"alignment": "least_squares", "data": "mse"}
    yield "equal", ssi, {}
    for name in ("all_empty", "all_zero", "one_pixel", "one_valid_pixel", "two_pixels", "three_pixels", "line"):
        for alignment in ALIGNMENTS:
            yield name, ssi, {"alignment": alignment}
    for name in ("waves", "rows", "offset", "opposite", "one_of_each", "all_zero", "two_pixels"):
        for mode in ALIGNMENTS:
            yield name, "align", {"mode": mode}
    for variant, reduction in itertools.product(VARIANTS, (None, *REDUCTIONS)):
        yield "depth", "silog", {"variant": variant, "reduction": reduction}
    for name in ("depth_not_positive", "depth_equal", "depth_one_pixel", "all_empty"):
        for variant in VARIANTS:
            yield name, "silog", {"variant": variant}
    for name in CLASS_INPUTS:
        yield name, "segmentation", {}
    yield "classes_of_three", "segmentation", {"ignore_index": 3}
    yield "classes_auxiliary_small", "segmentation", {"auxiliary_weight": 1.5}


# --- formulas and options as text ---


def evaluate(formula, batch, classes, height, width):
    """A formula's array: [B, H, W], or [B, K, H, W] if there are classes."""
    shape = (batch, classes, height, width) if classes else (batch, height, width)
    k = np.arange(math.prod(shape)).reshape(shape)
    places = np.indices(shape)
    names = {"k": k, "b": places[0], "i": places[-2], "j": places[-1], "c": places[1], "nan": math.nan, "inf": math.inf}
    names |= {"sin": np.sin, "cos": np.cos, "where": np.where}
    return eval(formula, {"__builtins__": {}}, names)


def arrays(row):
    """The arrays of a row of the file, by the names of its columns; float64, mask bool, labels int64."""
    batch, height, width = (int(row[name]) for name in ("batch", "height", "width"))
    if not row["classes"]:
        built = {name: evaluate(row[name], batch, 0, height, width) for name in ("prediction", "target", "mask")}
        built = {name: array.astype(np.float64) for name, array in built.items()}
        return built | {"mask": built["mask"] != 0}
    classes = int(row["classes"])
    built = {
        "prediction": evaluate(row["prediction"], batch, classes, height, width).astype(np.float64),
        "target": evaluate(row["target"], batch, 0, height, width).astype(np.int64),
    }
    if row["auxiliary"]:
        size = int(row["auxiliary_height"]), int(row["auxiliary_width"])
        built["auxiliary"] = evaluate(row["auxiliary"], batch, classes, *size).astype(np.float64)
    return built


def format_options(options):
    return " ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in options)


def parse_options(text):
    options = {}
    for name, _, value in (word.partition("=") for word in text.split()):
        if name in ("scales", "ignore_index"):
            options[name] = int(value)
        elif name in ("trim", "alpha", "auxiliary_weight"):
            options[name] = float(value)
        else:
            options[name] = None if value == "None" else value
    return options


# --- the file ---


def numbers(values):
    """15 digits; what rounding leaves of zero is zero."""
    return " ".join("0" if abs(value) < 1e-15 else f"{value:.15g}" for value in values)


def gradient_summary(gradient):
    """Two numbers that tell a gradient: sum of g[k] cos(k), and the root of the sum of squares."""
    flat = gradient.ravel()
    return {"gradient_dot": float(flat @ np.cos(np.arange(flat.size))), "gradient_norm": math.sqrt(flat @ flat)}


def results(row):
    """What the reference makes of a row: numbers or arrays by column."""
    built = arrays(row)
    function, options = getattr(reference_losses, row["function"]), parse_options(row["options"])
    if row["function"] == "segmentation":
        loss, gradient, _ = function(built["prediction"], built["target"], built.get("auxiliary"), **options)
        return {"loss": loss} | gradient_summary(gradient)
    maps = built["prediction"], built["target"], built["mask"]
    if row["function"] == "align":
        return dict(zip(("scale", "shift", "dropped"), function(*maps, **options), strict=True))
    result = function(*maps, **options)
    named = {name: getattr(result, name) for name in ("loss", "per_image", "scale", "shift", "dropped")}
    return named | gradient_summary(result.gradient())


def rows():
    """The file's rows, as text."""
    inputs = INPUTS | CLASS_INPUTS
    for name, function, changed in cases():
        row = dict.fromkeys(COLUMNS, "") | {"case": name, "function": function}
        row |= {column: str(value) for column, value in inputs[name].items()}
        row["options"] = format_options((OPTIONS[function] | changed).items())
        row |= {column: numbers(np.atleast_1d(value)) for column, value in results(row).items()}
        yield row


def read():
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def write():
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows())
