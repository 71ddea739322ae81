"""Prints the packages of some extras of pyproject.toml, one a line: they are installed before torchdpt is built."""

import sys
import tomllib
from pathlib import Path

extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
for name in sys.argv[1:]:
    print(*extras[name], sep="\n")
