"""A process that loads a saved network and predicts once: from its start to the first map, and its peak memory.

    python benchmarks/bench_start.py [--model dpt_large] [--size 384] [--threads 2] [--repetitions 5]

Ours loads a frozen file; the peers, ONNX Runtime and OpenVINO, an ONNX file and OpenVINO's own format, all of them with
float32 weights. A process imports nothing but what its runtime needs (of ours that is torch), and reads the images from
a .npy file; the files are in the page cache. The processes take turns. `error` is the largest difference to
transformers' network in float64, over the range of the map; `peak_mb` is VmHWM, in units of 10^6 bytes like `file_mb`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# --- one process ---


def ours(path: str, images: np.ndarray, threads: int) -> np.ndarray:
    import torch

    import torchdpt

    output = torchdpt.FrozenModel.load(path, threads=threads)(torch.from_numpy(images))
    depth = output.depth if output.logits is None else output.logits
    assert depth is not None
    return depth.numpy()


def onnx_runtime(path: str, images: np.ndarray, threads: int) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


def openvino(path: str, images: np.ndarray, threads: int) -> np.ndarray:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    found: np.ndarray = openvino.Core().compile_model(path, "CPU", settings)([images])[0].copy()
    return found


RUNTIMES = {"ours": ours, "ONNX Runtime": onnx_runtime, "OpenVINO": openvino}


def child(runtime: str, path: str, folder: str, threads: int) -> None:
    """Prints when the map was there, by the clock of all processes, and the peak of memory."""
    found = RUNTIMES[runtime](path, np.load(f"{folder}/images.npy"), threads)
    finished = time.monotonic()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    np.save(f"{folder}/{runtime}.npy", found)
    print(json.dumps({"finished": finished, "peak_mb": int(peak.split()[1]) * 1024 / 1e6}))


# --- all of them ---


def save_models(model: str, size: int, folder: str) -> tuple[dict[str, str], np.ndarray]:
    """The files of the runtimes, the images, and the map in float64."""
    import openvino
    import torch
    from peers import Peer, model_of, onnx_file

    network = model_of(model, size)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    np.save(f"{folder}/images.npy", images.numpy())
    files = {
        "ours": f"{folder}/ours.frozen",
        "ONNX Runtime": f"{folder}/onnx_runtime.onnx",
        "OpenVINO": f"{folder}/openvino.xml",
    }
    network.freeze().save(files["ours"])
    network.save_pretrained(folder, layout="transformers")
    onnx_file(Peer(folder, network.config, torch.float32), images, Path(files["ONNX Runtime"]))
    openvino.save_model(openvino.convert_model(files["ONNX Runtime"]), files["OpenVINO"], compress_to_fp16=False)
    with torch.no_grad():
        return files, Peer(folder, network.config, torch.float64)(images.double()).numpy()


def megabytes(path: str) -> float:
    """Of a file and those that hold its weights."""
    found = Path(path)
    return sum(file.stat().st_size for file in found.parent.glob(f"{found.stem}.*")) / 1e6


def start(runtime: str, path: str, folder: str, threads: int) -> dict[str, float]:
    """Seconds to the first map and peak memory of a process of its own."""
    command = [sys.executable, __file__, "--child", runtime, path, folder, "--threads", str(threads)]
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": told["finished"] - began, "peak_mb": told["peak_mb"]}


def main(args: argparse.Namespace) -> None:
    import tempfile

    from measure import record

    with tempfile.TemporaryDirectory() as folder:
        files, want = save_models(args.model, args.size, folder)
        found: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in files}
        for i in range(1 + args.repetitions):
            for runtime, path in files.items():
                told = start(runtime, path, folder, args.threads)
                if i > 0:  # the first round brings the files into the page cache
                    found[runtime].append(told)
        rows: list[dict[str, Any]] = []
        for runtime, runs in found.items():
            low, median, high = statistics.quantiles([run["seconds"] for run in runs], n=4)
            difference = np.abs(np.load(f"{folder}/{runtime}.npy").astype(np.float64) - want).max()
            rows.append(
                {
                    "case": runtime,
                    "first_map_s": round(median, 3),
                    "quartiles_s": [round(low, 3), round(high, 3)],
                    "peak_mb": round(max(run["peak_mb"] for run in runs)),
                    "file_mb": round(megabytes(files[runtime])),
                    "error": f"{difference / np.ptp(want):.1e}",
                }
            )
    record(
        f"start_{args.model}_{args.size}_t{args.threads}",
        rows,
        model=args.model,
        size=args.size,
        dtype="float32",
        process_threads=args.threads,
        repetitions=args.repetitions,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dpt_large")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--child", nargs=3, metavar=("RUNTIME", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.threads)
    else:
        main(arguments)
