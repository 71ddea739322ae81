"""transformers' DPTForDepthEstimation as the peer of a comparison.

Its weights are drawn so that an error shows: every branch of a block adds about as much as it is given, gains of
LayerNorm and all biases are random, and the last bias is placed so that most of the output is above zero and varies.
"""

import torch
from torch import nn
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation

from torchdpt import DPTModel

# Largest difference over the largest value. Each side sums some thousand products per layer in another order, which in
# float32 (ulp 1.2e-7) leaves a few 1e-6 at the output; a wrong GELU or tap changes it by more than 1e-3.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
DTYPES = list(TOLERANCE)

# Native side -> sides to compare at: multiples of 32, where the published network is defined.
SIZES = {64: (64, 96), 32: (32, 64), 384: (384, 64)}

NARROW = dict(
    image_size=64,
    hidden_size=60,
    num_attention_heads=5,
    intermediate_size=75,
    num_hidden_layers=6,
    backbone_out_indices=[0, 2, 3, 5],
    neck_hidden_sizes=[15, 17, 21, 27],
    fusion_hidden_size=19,
)
ODD = NARROW | dict(
    hidden_size=63,
    num_attention_heads=7,
    intermediate_size=101,
    num_hidden_layers=5,
    backbone_out_indices=[0, 1, 3, 4],
    neck_hidden_sizes=[7, 33, 5, 12],
    fusion_hidden_size=13,
)
BATCH_NORM = NARROW | dict(use_batch_norm_in_fusion_residual=True)


def peer_of(config):
    config._attn_implementation = "eager"  # plain matmul and softmax
    with torch.device("meta"):  # all values are drawn or loaded later
        peer = DPTForDepthEstimation(config)
    return peer.to_empty(device="cpu").eval()


@torch.no_grad()
def draw_weights(peer, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std + mean)

    for module in peer.modules():
        if isinstance(module, nn.ConvTranspose2d):  # kernel = stride: one product per input channel
            normal(module.weight, module.in_channels**-0.5)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            normal(module.weight, module.weight[0].numel() ** -0.5)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)):
            normal(module.weight, 0.3, mean=1)
        if isinstance(module, nn.BatchNorm2d):
            normal(module.running_mean, 0.5)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.num_batches_tracked.fill_(5)
        if getattr(module, "bias", None) is not None:
            normal(module.bias, 0.3)
    normal(peer.dpt.embeddings.cls_token, 1)
    normal(peer.dpt.embeddings.position_embeddings, 1)


def make_peer(dtype=torch.float64, seed=0, batch=3, **fields):
    """The peer in eval mode with weights that let a test fail on batches up to `batch`."""
    peer = peer_of(PeerConfig(**fields)).to(dtype)
    draw_weights(peer, seed)
    with torch.no_grad():
        below = []
        handle = peer.head.head[4].register_forward_hook(lambda module, args, output: below.extend(output))
        for size in SIZES[peer.config.image_size]:
            peer(images(size, batch, dtype))
        handle.remove()
        peer.head.head[4].bias -= min(
            image.flatten()[:: max(1, image.numel() // 10000)].quantile(0.3) for image in below
        )
    return peer


def changed(peer, **fields):
    """The same weights under a config with other fields."""
    other = peer_of(PeerConfig(**(peer.config.to_dict() | fields))).to(peer.dtype)
    other.load_state_dict(peer.state_dict())
    return other


def images(size, batch, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def assert_parity(ours, reference):
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert torch.isfinite(reference).all()
    assert torch.isfinite(ours).all()
    assert (ours - reference).abs().max() <= TOLERANCE[reference.dtype] * reference.abs().max()


def assert_can_fail(reference):
    """A constant or mostly clipped output would agree with almost anything."""
    assert (reference > 0).double().mean() >= 0.5
    assert reference.std() >= 0.1 * reference.max()


@torch.no_grad()
def compare(ours, peer, sizes=None, batches=(1,)):
    for size in sizes or SIZES[peer.config.image_size]:
        for batch in batches:
            x = images(size, batch, peer.dtype)
            reference = peer(x).predicted_depth
            assert_can_fail(reference)
            assert_parity(ours(x).depth, reference)


def load(peer, folder):
    peer.save_pretrained(folder)
    return DPTModel.from_pretrained(folder)


def peer_names(name):
    """transformers' names of one of our tensors; three names are three equal groups of rows: query, key, value."""
    in_block = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    match name.split("."):
        case ["encoder", "cls_token"]:
            return ["dpt.embeddings.cls_token"]
        case ["encoder", "pos_embed"]:
            return ["dpt.embeddings.position_embeddings"]
        case ["encoder", "patch_embed", leaf]:
            return [f"dpt.embeddings.patch_embeddings.projection.{leaf}"]
        case ["encoder", "blocks", i, "attn", "qkv", leaf]:
            return [f"dpt.encoder.layer.{i}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value")]
        case ["encoder", "blocks", i, *layer, leaf]:
            return [f"dpt.encoder.layer.{i}.{in_block['.'.join(layer)]}.{leaf}"]
        case ["reassemble", i, "read", "project", leaf]:
            return [f"neck.reassemble_stage.readout_projects.{i}.0.{leaf}"]
        case ["reassemble", i, "project", leaf]:
            return [f"neck.reassemble_stage.layers.{i}.projection.{leaf}"]
        case ["reassemble", i, "resample", leaf]:
            return [f"neck.reassemble_stage.layers.{i}.resize.{leaf}"]
        case ["fusion", i, "input", leaf]:
            return [f"neck.convs.{i}.{leaf}"]
        case ["fusion", i, "project", leaf]:  # theirs are counted from the coarsest level
            return [f"neck.fusion_stage.layers.{3 - int(i)}.projection.{leaf}"]
        case ["fusion", i, unit, layer, leaf]:
            kind = {"conv": "convolution", "norm": "batch_norm"}[layer[:-1]]
            return [f"neck.fusion_stage.layers.{3 - int(i)}.residual_layer{unit[-1]}.{kind}{layer[-1]}.{leaf}"]
        case ["head", "depth", layer, leaf]:
            return [f"head.head.{2 * int(layer[-1]) - 2}.{leaf}"]
    raise AssertionError(f"no name for {name}")


def peer_named(tensors, names_of=peer_names):
    """(our name, tensor) pairs -> tensors by transformers' names."""
    result = {}
    for name, tensor in tensors:
        names = names_of(name)
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
        result |= zip(names, parts, strict=True)
    return result
