"""What every benchmark shares: interleaved timing and the record of a result."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchdpt

RESULTS = Path(__file__).parent / "results"


def interleave(
    cases: Mapping[str, Callable[[], Any]], *, warm_up: int, repetitions: int
) -> dict[str, dict[str, float]]:
    """Times each case once per round, so that what else the machine does falls on all alike.

    Returns:
        For each case the median and the quartiles in milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(warm_up + repetitions):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"median_ms": round(median, 3), "quartiles_ms": [round(low, 3), round(high, 3)]}
    return result


def refuse_tiles() -> None:
    """From now on Linux does not lend this process the tiles of AMX, which every runtime has to ask for.

    So a processor with AMX is measured as if it had none. By a filter of system calls (seccomp) that answers
    arch_prctl(ARCH_REQ_XCOMP_PERM) with EPERM.
    """
    number, first_argument = 0, 16  # places of the call's number and argument
    load, equal, end = 0x20, 0x15, 0x06
    arch_prctl, request, refused, allowed = 158, 0x1023, 0x00050001, 0x7FFF0000
    program = [
        (load, 0, 0, number),
        (equal, 0, 3, arch_prctl),
        (load, 0, 0, first_argument),
        (equal, 0, 1, request),
        (end, 0, 0, refused),
        (end, 0, 0, allowed),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    address = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    no_new_privileges, set_filter = 38, (22, 2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(*set_filter, address, 0, 0):
        raise OSError(ctypes.get_errno(), "Linux takes no filter of system calls here")


def keep_freed_memory() -> None:
    """From now on what glibc frees stays with the process.

    Otherwise eager networks, which allocate every map, pay for each page anew, and what the system does with pages that
    come back slows whatever runs next.
    """
    trim_threshold, most_mappings = -1, -4  # as malloc.h numbers them
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(trim_threshold, -1) and libc.mallopt(most_mappings, 0)):
        raise OSError("this system's malloc cannot be told to keep memory")


def memory_of(run: Callable[[], Any]) -> tuple[float, float]:
    """MiB that this process held before, and at the most while it ran. Run it once before: that loads and compiles."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier runs have freed
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    run()
    return before, _resident("VmHWM")


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if key in line)


def relative_error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    difference = (got.double() - reference.double()).abs().max() / reference.double().abs().max()
    return float(difference)


def environment() -> dict[str, Any]:
    """What a result depends on besides the code."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = os.environ.get("DPT_COMMIT", "")  # where there is no git, or no repository
    if not commit and shutil.which("git"):
        run = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
        )
        commit = run.stdout.strip()
    return {
        "commit": commit or "unknown",
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._init_amx(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torchdpt": torchdpt.__version__,
    }


def record(name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Writes benchmarks/results/NAME.json and prints the rows."""
    result = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **environment(),
        **settings,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"written to {path}")
