"""Time of `import torchdpt` and of `torchdpt --help` against `import torch`, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from measure import interleave, record


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


cases = {
    "torch": lambda: run("import torch"),
    "torchdpt": lambda: run("import torchdpt"),
    "torchdpt --help": lambda: run("import torchdpt_command; torchdpt_command.build_parser().format_help()"),
}
times = interleave(cases, warm_up=2, repetitions=11)
base = times["torch"]["median_ms"]
rows = [{"case": name, **times[name], "ratio": round(times[name]["median_ms"] / base, 3)} for name in cases]
record("import", rows, warm_up=2, repetitions=11)
