"""Depth of a photograph, saved as a picture: python docs/first_depth.py [PHOTO] [--weights FOLDER].

Without --weights the weights are random: the picture shows that the pipeline runs, and no depth. With a folder that
holds a published checkpoint (Intel/dpt-large: config.json and model.safetensors) it is the depth that the network sees.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image

import torchdpt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photo", nargs="?", help="default: a photograph that scikit-image ships")
parser.add_argument("--weights", help="folder with config.json and model.safetensors")
parser.add_argument("--out", type=Path, default=Path("out/first_depth.png"))
args = parser.parse_args()

photo = Image.open(args.photo).convert("RGB") if args.photo else Image.fromarray(skimage.data.coffee())

if args.weights:
    model = torchdpt.DPTModel.from_pretrained(args.weights)
else:
    torch.manual_seed(0)
    model = torchdpt.DPTModel("dpt_base").eval()
    print("No --weights given: the weights are RANDOM. The picture shows that the pipeline runs; it is not depth.")

# The shorter side to 384 pixels, both to multiples of 32, RGB from [0, 1] to [-1, 1]: as the published weights want it.
scale = 384 / min(photo.size)
width, height = (round(side * scale / 32) * 32 for side in photo.size)
rgb = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
images = torch.from_numpy((rgb - 0.5) / 0.5).permute(2, 0, 1)[None]  # [1, 3, H, W]

with torch.inference_mode():
    depth = model(images).depth[0].numpy()  # [H, W], relative inverse depth: near is bright

low, high = float(depth.min()), float(depth.max())
gray = (255 * (depth - low) / max(high - low, 1e-12)).astype(np.uint8)
picture = Image.new("RGB", (2 * photo.width, photo.height))
picture.paste(photo, (0, 0))
picture.paste(Image.fromarray(gray).resize(photo.size, Image.Resampling.BICUBIC).convert("RGB"), (photo.width, 0))
args.out.parent.mkdir(parents=True, exist_ok=True)
picture.save(args.out)
print(f"{photo.width} x {photo.height} photograph -> relative inverse depth in [{low:.4g}, {high:.4g}] -> {args.out}")
