"""Makes the shipped network of a finished run: python benchmarks/ship_weights.py runs/demo_3/final FOLDER

Of the two heads only that of depth is kept (classes of procedural scenes are there to teach the encoder), in float16.
"""

import sys

import torchdpt


def main(source: str, target: str) -> None:
    trained = torchdpt.DPTModel.from_pretrained(source)
    config = trained.config.replace(num_classes=0)
    model = torchdpt.DPTModel(config, device="meta")
    kept = model.state_dict().keys()
    model.load_state_dict(
        {n: t.half() if t.is_floating_point() else t for n, t in trained.state_dict().items() if n in kept}, assign=True
    )
    model.processor = trained.processor
    model.save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
