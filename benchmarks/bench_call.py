"""What a call costs besides arithmetic: the forward pass of a deep network too narrow to compute for long.

A DPT of 24 blocks with 32 channels on one image of 32 x 32, against transformers with the same weights, eager, on the
CPU; and the parts of our call that are Python. The error column is the largest difference to the peer in float64.
"""

from __future__ import annotations

import tempfile

import torch
from measure import interleave, record, relative_error
from transformers import DPTForDepthEstimation

import torchdpt

CONFIG = torchdpt.DPTConfig.preset("dpt_large").replace(
    image_size=32, width=32, heads=2, mlp_width=32, channels=(16, 16, 16, 16), features=16
)
REPETITIONS = 200

torch.manual_seed(0)
model = torchdpt.DPTModel(CONFIG).eval()
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, layout="transformers")
    peer = DPTForDepthEstimation.from_pretrained(folder).eval()
    exact = DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float64).eval()
images = torch.randn(1, 3, 32, 32)

with torch.inference_mode():
    reference = exact(images.double()).predicted_depth
    errors = {
        "torchdpt": relative_error(model(images).depth, reference),
        "transformers": relative_error(peer(images).predicted_depth, reference),
    }
    stages = [model.encoder, model.reassemble, model.fusion, model.head]
    times = interleave(
        {
            "torchdpt": lambda: model(images),
            "transformers": lambda: peer(images),
            "gathering the tensors": lambda: [stage._gather() for stage in stages],
        },
        warm_up=20,
        repetitions=REPETITIONS,
    )

base = times["transformers"]["median_ms"]
rows = [
    {"case": name, **time, "ratio": round(time["median_ms"] / base, 3)}
    | ({"error": f"{errors[name]:.1e}"} if name in errors else {})
    for name, time in times.items()
]
record("call", rows, tensors=len(model.state_dict()), repetitions=REPETITIONS)
