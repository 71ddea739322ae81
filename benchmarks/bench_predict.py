"""From the bytes of a JPEG photograph to a 16-bit PNG of its depth: each stage, and the same path in transformers.

Both sides have the same weights (random) and the same processor, transformers'. The error column is the largest
difference to transformers in float64, at the size of the photograph.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import skimage
import torch
from measure import interleave, record, relative_error
from PIL import Image
from transformers import DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

import torchdpt
from torchdpt.cli_bench import time_stages

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="dpt_base", help="a preset")
parser.add_argument("--repetitions", type=int, default=20)
args = parser.parse_args()

# As published: transformers' DPT with a plain ViT takes square inputs only.
peer_processor = DPTImageProcessorPil(size={"height": 384, "width": 384}, resample=2)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    torchdpt.DPTModel(args.model).save_pretrained(folder, layout="transformers")
    peer_processor.save_pretrained(folder)
    model = torchdpt.DPTModel.from_pretrained(folder)
    peer = DPTForDepthEstimation.from_pretrained(folder).eval()
    exact = DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float64).eval()

photograph = Image.open(Path(skimage.__path__[0]) / "data/coffee.png").convert("RGB")
file = io.BytesIO()
photograph.save(file, "JPEG", quality=90)
data = file.getvalue()


@torch.inference_mode()
def peer_depth(network: DPTForDepthEstimation) -> torch.Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    pixels = peer_processor(image, return_tensors="pt")["pixel_values"].to(network.dtype)
    output = network(pixels)
    size = (image.height, image.width)
    return peer_processor.post_process_depth_estimation(output, target_sizes=[size])[0]["predicted_depth"]


with tempfile.TemporaryDirectory() as folder:

    def run_peer() -> None:
        depth = peer_depth(peer).numpy()
        levels = (depth - depth.min()) / (depth.max() - depth.min()) * 65535
        Image.fromarray(levels.astype(np.uint16)).save(f"{folder}/peer.png", compress_level=3)

    def run_ours() -> None:
        model.predict(data).save(f"{folder}/ours.png")

    times = interleave({"torchdpt": run_ours, "transformers": run_peer}, warm_up=3, repetitions=args.repetitions)
reference = peer_depth(exact)
errors = {
    "torchdpt": relative_error(torch.from_numpy(model.predict(data).depth), reference),
    "transformers": relative_error(peer_depth(peer), reference),
}
base = times["transformers"]["median_ms"]
rows = [
    {"case": name, **time, "ratio": round(time["median_ms"] / base, 3), "error": f"{errors[name]:.1e}"}
    for name, time in times.items()
]
stages = time_stages(model, data, warm_up=3, runs=args.repetitions)
total = statistics.median(map(sum, zip(*stages.values(), strict=True)))
for name, values in stages.items():
    median = statistics.median(values)
    rows.append({"case": f"stage: {name}", "median_ms": round(median, 3), "part of ours": round(median / total, 3)})
record(
    f"predict_{args.model}",
    rows,
    image=f"{photograph.width} x {photograph.height}",
    network_input=list(model.processor.network_size(photograph.height, photograph.width)),
    repetitions=args.repetitions,
)
