"""Classes: names, colours and their files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from torchdpt.classes import ADE20K, IGNORE_INDEX, PASCAL_CONTEXT, Classes


def test_ade20k_is_the_benchmark() -> None:
    # Read off data/object150_info.csv and the palette of isl-org/DPT, which begins with black for label 0 of the files.
    assert len(ADE20K) == len(set(ADE20K.names)) == len(ADE20K.palette) == 150
    wanted = {0: "wall", 1: "building", 2: "sky", 7: "bed", 12: "person", 20: "car", 44: "chest of drawers"}
    wanted |= {57: "pillow", 58: "screen door", 89: "television receiver", 136: "traffic light", 149: "flag"}
    assert {i: ADE20K.names[i] for i in wanted} == wanted
    colors = {0: (120, 120, 120), 1: (180, 120, 120), 2: (6, 230, 230), 6: (140, 140, 140), 7: (204, 5, 255)}
    colors |= {48: (140, 140, 140), 75: (10, 0, 255), 146: (255, 214, 0), 149: (92, 0, 255)}
    assert {i: ADE20K.palette[i] for i in colors} == colors
    assert len(set(ADE20K.palette)) == 149  # road and skyscraper share one


def test_pascal_context_is_the_benchmark() -> None:
    assert len(PASCAL_CONTEXT) == len(set(PASCAL_CONTEXT.names)) == 59
    assert list(PASCAL_CONTEXT.names) == sorted(PASCAL_CONTEXT.names)
    assert (PASCAL_CONTEXT.names[0], PASCAL_CONTEXT.names[36], PASCAL_CONTEXT.names[58]) == (
        "aeroplane",
        "person",
        "wood",
    )
    assert (PASCAL_CONTEXT.palette[0], PASCAL_CONTEXT.palette[58]) == ((180, 120, 120), (31, 0, 255))


@pytest.mark.parametrize(
    ("classes", "digest"),
    [
        (ADE20K, "9f8cc18e96d9b9f3bfe08b184dd4328ed245d1fce2f5b5b76b652dfddb2bd162"),
        (PASCAL_CONTEXT, "1cbf5b660a77997d4b7215fe787d541dc846d1c463f86a15bc6afb2c6817560b"),
    ],
    ids=["ADE20K", "Pascal Context"],
)
def test_every_name_and_color_is_that_of_the_benchmark(classes: Classes, digest: str) -> None:
    # Computed from the tables of open-mmlab/mmsegmentation, not from ours: mmseg/datasets/ade.py, but for the blank at
    # the end of one name, and pascal_context.py without its background.
    rows = zip(classes.names, classes.palette, strict=True)
    lines = "".join(f"{name},{red},{green},{blue}\n" for name, (red, green, blue) in rows)
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


def test_numbered_classes_have_the_colors_of_pascal_voc() -> None:
    classes = Classes.numbered(3)
    assert classes.names == ("class 0", "class 1", "class 2")
    # VOC's: aeroplane, bicycle, bird, ..., potted plant and the border of objects.
    voc = Classes.numbered(255).palette
    assert voc[:3] == classes.palette == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (voc[14], voc[15], voc[254]) == ((192, 128, 128), (0, 64, 0), (224, 224, 192))
    assert len(set(Classes.numbered(1000).palette)) == 1000
    assert (0, 0, 0) not in Classes.numbered(1000).palette  # that of ignored pixels


def test_defaults() -> None:
    assert Classes.default_for(150) is ADE20K
    assert Classes.default_for(59) is PASCAL_CONTEXT
    assert Classes.default_for(7) == Classes.numbered(7)
    assert Classes("two", ("a", "b")).palette == Classes.numbered(2).palette


def test_colors_of_labels() -> None:
    classes = Classes("two", ("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert classes.colors_of(np.array([[1, 0, IGNORE_INDEX]])).tolist() == [[[4, 5, 6], [1, 2, 3], [0, 0, 0]]]
    many = Classes.numbered(300)
    assert many.colors_of(np.array([255, 299])).tolist() == [list(many.palette[255]), list(many.palette[299])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", ()), "names must be of 1 to 65535 classes, got 0"),
        (("x", "abc"), "names must be a tuple of strings, and name a string, got 'abc'"),
        (("x", (1,)), r"names must be a tuple of strings, and name a string, got \(1,\), 'x'"),
        ((None, ("a",)), "and name a string"),
        (("x", ("a", "b"), ((0, 0, 0),)), r"0 to 255, for each of 2 classes, got int64 \[1, 3\]"),
        (("x", ("a",), ((0, 0, 256),)), "palette must be an RGB colour, 0 to 255"),
        (("x", ("a",), ((0.5, 0, 0),)), r"got float64 \[1, 3\]"),
    ],
)
def test_bad_classes_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classes(*arguments)
    with pytest.raises(ValueError, match="names must be of 1 to 65535 classes, got 0"):
        Classes.default_for(0)


# --- files ---


@pytest.mark.parametrize("classes", [ADE20K, Classes("mine", ("B\u00e4ume", ""), ((0, 1, 2), (253, 254, 255)))])
def test_folder_gives_back_what_was_saved(classes: Classes, tmp_path: Path) -> None:
    classes.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.json"]
    assert Classes.from_folder(tmp_path) == classes


def test_names_come_from_the_config_of_transformers(tmp_path: Path) -> None:
    assert Classes.from_folder(tmp_path) is None
    config = tmp_path / "config.json"
    for text in ("{}", '{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}', '{"id2label": {}}'):
        config.write_text(text)
        assert Classes.from_folder(tmp_path) is None
    config.write_text('{"id2label": {"1": "dog", "0": "cat"}}')
    assert Classes.from_folder(tmp_path) == Classes("id2label", ("cat", "dog"))
    # As published: one name has a blank at its end.
    names = {str(i): name + " " * (name == "bed") for i, name in enumerate(ADE20K.names)}
    config.write_text(json.dumps({"id2label": names}))
    assert Classes.from_folder(tmp_path) == ADE20K
    Classes.numbered(2).save(tmp_path)  # ours comes first
    assert Classes.from_folder(tmp_path) == Classes.numbered(2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", "{"),
        ("classes.json", "[]"),
        ("classes.json", '{"name": "x", "names": ["a"]}'),
        ("classes.json", '{"name": "x", "names": ["a"], "palette": ["#00"]}'),
        ("classes.json", '{"name": "x", "names": ["a"], "palette": [1]}'),
        ("classes.json", '{"name": "x", "names": "a", "palette": ["#000000"]}'),
        ("config.json", '{"id2label": {"0": "a", "2": "b"}}'),
        ("config.json", '{"id2label": ["a"]}'),
        ("config.json", '{"id2label": {"zero": "a"}}'),
        ("config.json", '{"id2label": {"0": 1}}'),
    ],
)
def test_damaged_files_are_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: not the classes of a segmentation"):
        Classes.from_folder(tmp_path)
