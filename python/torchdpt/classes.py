"""The classes of a semantic segmentation: their names and colours."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from torchdpt.files import write_atomically

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

# The label of pixels without a class, as the data sets mark them. Where there are more than 255 classes it is the label
# of one of them, and every pixel has a class.
IGNORE_INDEX = 255


@dataclass(frozen=True)
class Classes:
    """Names and colours of classes; the index is the label.

    Attributes:
        name: What the set of classes is called.
        names: Name of each class.
        palette: (red, green, blue) of each class, 0 to 255. Default: those of PASCAL VOC, all different.

    Raises:
        ValueError: if there are none or more than 65535, or a name or colour is missing or of another type.
    """

    name: str
    names: tuple[str, ...] = field(repr=False)
    palette: tuple[Color, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in (self.name, *names)):
            raise ValueError(f"names must be a tuple of strings, and name a string, got {self.names!r}, {self.name!r}")
        if not 1 <= len(names) <= 65535:
            raise ValueError(f"names must be of 1 to 65535 classes, got {len(names)}")
        colors = np.array(self.palette if len(self.palette) else _voc_palette(len(names)))
        if colors.shape != (len(names), 3) or colors.dtype.kind not in "iu" or colors.min() < 0 or colors.max() > 255:
            raise ValueError(
                f"palette must be an RGB colour, 0 to 255, for each of {len(names)} classes, got {colors.dtype} "
                f"{list(colors.shape)}"
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "palette", tuple(map(tuple, colors.tolist())))

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def numbered(cls, num_classes: int) -> Self:
        """Classes of which nothing is known: "class 0", "class 1", ...

        Raises:
            ValueError: if there are none or more than 65535.
        """
        return cls("numbered", tuple(f"class {i}" for i in range(num_classes)))

    @classmethod
    def default_for(cls, num_classes: int) -> Classes:
        """What a network of so many classes was most likely trained on: ADE20K of 150, Pascal Context of 59; else
        `numbered`."""
        return next(
            (known for known in (ADE20K, PASCAL_CONTEXT) if len(known) == num_classes), cls.numbered(num_classes)
        )

    # --- pictures ---

    def colors_of(self, labels: Array) -> Array:
        """The colours of labels, uint8 [..., 3]; black where the label is of no class."""
        table = np.zeros((max(len(self), IGNORE_INDEX + 1), 3), np.uint8)
        table[: len(self)] = self.palette
        return table[labels]

    # --- files ---

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Classes | None:
        """The classes that a checkpoint folder names: in classes.json, or as id2label in transformers' config.json.

        Returns:
            The classes, or None if neither is there, or transformers numbered them ("LABEL_0", ...).

        Raises:
            ValueError: if a file holds something else.
        """
        for name, read in (("classes.json", cls.from_json), ("config.json", _from_transformers)):
            path = Path(folder) / name
            try:
                found = read(json.loads(path.read_text())) if path.exists() else None
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise ValueError(f"{path}: not the classes of a segmentation: {error}") from error
            if found is not None:
                return found
        return None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write classes.json.

        Raises:
            ValueError: if there is no such folder.
            OSError: if it cannot be written.
        """
        write_atomically(Path(folder) / "classes.json", f"{json.dumps(self.to_json(), indent=1)}\n".encode())

    def to_json(self) -> dict[str, Any]:
        """For json.dumps: name, names, and the palette in hexadecimal."""
        palette = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.palette]
        return {"name": self.name, "names": list(self.names), "palette": palette}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The classes of which `to_json` gave this."""
        palette = [bytes.fromhex(color.removeprefix("#")) for color in values["palette"]]
        return cls(values["name"], values["names"], tuple((color[0], color[1], color[2]) for color in palette))


def _from_transformers(config: dict[str, Any]) -> Classes | None:
    names = {int(index): name.strip() for index, name in config.get("id2label", {}).items()}
    if not names or all(name == f"LABEL_{index}" for index, name in names.items()):
        return None
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"id2label must name the labels 0 to {len(names) - 1}, got {sorted(names)}")
    ordered = tuple(names[index] for index in range(len(names)))
    known = Classes.default_for(len(names))
    return known if known.names == ordered else Classes("id2label", ordered)


def _voc_palette(count: int) -> Array:
    """The colours of PASCAL VOC (its devkit's VOClabelcolormap) but for the first, black: the bits of the number in
    turn are the highest bits of red, green and blue, then the next ones."""
    numbers = np.arange(1, count + 1)
    colors = np.zeros((count, 3), np.int64)
    for bit in range(24):
        colors[:, bit % 3] |= (numbers >> bit & 1) << (7 - bit // 3)
    return colors


# The 150 classes of the SceneParse150 benchmark in its order, which is that of their share of all pixels. Names: the
# first synonym of CSAILVision/semantic-segmentation-pytorch data/object150_info.csv (but car for its auto), as in
# open-mmlab/mmsegmentation mmseg/datasets/ade.py. Colours: the same file, equal to isl-org/DPT util/pallete.py; road
# and skyscraper share one.
_ADE20K = """
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door;
table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field; armchair;
seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column; signboard; chest of drawers;
counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; case; pool table; pillow;
screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill; bench; countertop;
stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel; bus; towel; light; truck;
tower; chandelier; awning; streetlight; booth; television receiver; airplane; dirt track; apparel; pole; land;
bannister; escalator; ottoman; bottle; buffet; poster; stage; van; ship; fountain; conveyer belt; canopy; washer;
plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag; minibike; cradle; oven; ball; food; step; tank;
trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen; blanket; sculpture; hood; sconce; vase;
traffic light; tray; ashcan; fan; pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag
"""
_ADE20K_HEX = """
787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04ff3307
cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ff
ff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff4700
00ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ff
adff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff
007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff
70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff00
0099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff
"""
# The 59 frequent classes of Pascal Context by the alphabet, without background: open-mmlab/mmsegmentation
# mmseg/datasets/pascal_context.py PascalContextDataset59; google-research has the same but for three synonyms. Its
# colours are those of ADE20K, which there begin with background.
_PASCAL_CONTEXT = """
aeroplane; bag; bed; bedclothes; bench; bicycle; bird; boat; book; bottle; building; bus; cabinet; car; cat; ceiling;
chair; cloth; computer; cow; cup; curtain; dog; door; fence; floor; flower; food; grass; ground; horse; keyboard;
light; motorbike; mountain; mouse; person; plate; platform; pottedplant; road; rock; sheep; shelves; sidewalk; sign;
sky; snow; sofa; table; track; train; tree; truck; tvmonitor; wall; water; window; wood
"""


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(";"))


_colors = bytes.fromhex(_ADE20K_HEX)
_palette = tuple((_colors[i], _colors[i + 1], _colors[i + 2]) for i in range(0, len(_colors), 3))
# The 150 classes of ADE20K's benchmark (SceneParse150), in its order.
ADE20K = Classes("ADE20K", _split(_ADE20K), _palette)
# The 59 classes of Pascal Context, in the order of its benchmark.
PASCAL_CONTEXT = Classes("Pascal Context", _split(_PASCAL_CONTEXT), _palette[1:60])
