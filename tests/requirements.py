"""Prints the packages of some extras of pyproject.toml, one a line: they are installed before torchdpt is built.

`run` stands for what torchdpt itself needs.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

for name in sys.argv[1:]:
    if name == "run":
        sys.path.insert(0, str(ROOT / "python"))
        from build_backend import DEPENDENCIES

        print(*DEPENDENCIES, sep="\n")
    else:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        print(*extras[name], sep="\n")
