"""A narrow network and what tests of the model share."""

import torch

from torchdpt import DPTConfig, DPTModel

NARROW = DPTConfig(
    image_size=64,
    width=24,
    depth=4,
    heads=3,
    mlp_width=40,
    taps=(0, 1, 2, 3),
    channels=(6, 8, 10, 12),
    features=14,
    head_features=5,
)
DISTILLED = NARROW.replace(distilled=True)
BATCH_NORM = NARROW.replace(fusion_norm="batch")
STAGES = ("encoder", "reassemble", "fusion", "head")


def images(batch=2, height=64, width=96, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def make_model(config=NARROW, dtype=torch.float32, seed=0):
    """A model whose output is above zero in places and differs between images."""
    torch.manual_seed(seed)
    model = DPTModel(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.2)
        for parameter in model.fusion.parameters():
            parameter.mul_(2)
        x = images(dtype=dtype)
        # Half of what the last ReLU gets is above zero.
        model.head.get_parameter("depth.conv3.bias").fill_(100)
        before = model.eval()(x).depth - 100
        model.head.get_parameter("depth.conv3.bias").fill_(-before.double().median())
    depth = model(x).depth
    assert (depth > 0).double().mean() > 0.3
    assert (depth[0] - depth[1]).abs().max() > 0.01 * depth.max()
    return model.train()


def by_stages(model, x):
    maps = model.reassemble(model.encoder(x), (x.shape[2], x.shape[3]))
    return model.head(*model.fusion(maps))


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
