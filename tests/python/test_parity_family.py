"""Ours against transformers' DPT-Hybrid and DPTForSemanticSegmentation: outputs, gradients and statistics, in both
modes. The rules are those of parity.py: weights with which an error shows, and the peer's own names.

Dropout is 0 on both sides, whose random numbers differ.
"""

import copy
import functools

import pytest
import torch
from parity import NARROW, assert_can_fail, draw_weights, peer_named, peer_names
from torch import nn
from torch.nn.functional import max_pool2d, unfold
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation, DPTForSemanticSegmentation
from transformers.models.bit.modeling_bit import BitMaxPool2d, WeightStandardizedConv2d

from torchdpt import DPTModel

# Largest difference over the largest value: sums in another order.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = list(TOLERANCE)
SIDE = 64  # native
BATCH = 3
CLASSES = 7


def bit(*depths):
    return dict(
        model_type="bit",
        global_padding="same",
        layer_type="bottleneck",
        depths=list(depths),
        out_features=["stage1", "stage2", "stage3"],
        embedding_dynamic_padding=True,
    )


HYBRID = NARROW | dict(
    is_hybrid=True,
    backbone_config=bit(1, 2, 1),
    reassemble_factors=[1, 1, 1, 0.5],
    neck_hidden_sizes=[256, 512, 21, 27],
)
BATCH_NORM = dict(use_batch_norm_in_fusion_residual=True)
SEGMENTATION = dict(num_labels=CLASSES, semantic_classifier_dropout=0.0)
CASES = {
    "hybrid": (DPTForDepthEstimation, HYBRID),
    "hybrid, batch norm": (DPTForDepthEstimation, HYBRID | BATCH_NORM | dict(qkv_bias=False, layer_norm_eps=1e-3)),
    "hybrid segmentation": (DPTForSemanticSegmentation, HYBRID | SEGMENTATION | BATCH_NORM),
    "vit segmentation": (DPTForSemanticSegmentation, NARROW | SEGMENTATION | BATCH_NORM),
    "vit segmentation, biases": (DPTForSemanticSegmentation, NARROW | SEGMENTATION | dict(readout_type="add")),
}


@torch.no_grad()
def make_peer(kind, fields, dtype=torch.float64):
    """The peer in eval mode with weights that let a test fail."""
    config = PeerConfig(**fields)
    config._attn_implementation = "eager"  # plain matmul and softmax
    peer = kind(config).to(dtype).eval()
    draw_weights(peer)
    generator = torch.Generator().manual_seed(1)
    for module in peer.modules():
        if isinstance(module, WeightStandardizedConv2d):
            # Standardisation undoes the mean and the deviation of a filter: means of about the deviation, and
            # deviations down to 1e-3, where both epsilon and its place in the formula count.
            shape = (module.out_channels, 1, 1, 1)
            weight = module.weight / module.weight.std((1, 2, 3), keepdim=True)
            weight += torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            module.weight.copy_(weight * 10 ** -(3 * torch.rand(shape, generator=generator, dtype=torch.float64)))
        elif isinstance(module, nn.Dropout):
            module.p = 0.0  # 0.1 in the auxiliary head, whatever the config says
    if kind is DPTForDepthEstimation:  # most of the depth is above zero, and varies
        below = []
        handle = peer.head.head[4].register_forward_hook(lambda module, args, output: below.append(output))
        side = fields["image_size"]
        peer(images((side, side), 1 if side > SIDE else BATCH, dtype))
        handle.remove()
        peer.head.head[4].bias -= min(image.flatten()[:10000].quantile(0.25) for image in below[0])
    return peer


def peer_case(name, dtype=torch.float64):
    return make_peer(*CASES[name]).to(dtype)


def at_any_size(peer):
    """Of other sizes than the native one transformers' parts can do what its whole cannot: the hybrid's embeddings
    resize only if told to, and the neck knows a grid that is not square only if told of it."""
    grid = []
    if peer.config.is_hybrid:
        embeddings = peer.dpt.embeddings
        embeddings.forward = functools.partial(embeddings.forward, interpolate_pos_encoding=True)

    def remember(module, args):
        grid[:] = [side // peer.config.patch_size for side in args[0].shape[2:]]

    def tell(module, args, kwargs):
        maps = args[0] if args else kwargs["hidden_states"]
        return (maps, *grid), {}

    peer.dpt.register_forward_pre_hook(remember)
    peer.neck.register_forward_pre_hook(tell, with_kwargs=True)
    return peer


def images(size, batch, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def load(peer, folder):
    peer.save_pretrained(folder)
    ours = DPTModel.from_pretrained(folder)
    assert next(ours.parameters()).dtype == peer.dtype
    assert ours.config.encoder == ("hybrid" if peer.config.is_hybrid else "vit")
    assert not peer.config.is_hybrid or ours.config.weight_standardization == "variance"
    segmentation = isinstance(peer, DPTForSemanticSegmentation)
    assert ours.config.depth_head is not segmentation
    assert ours.config.num_classes == (CLASSES if segmentation else 0)
    assert ours.config.auxiliary_head == ("last" if segmentation else "none")
    assert not segmentation or ours.config.dropout == 0
    return ours


def peer_outputs(peer, x):
    """By our names; in training with what the auxiliary head said, which transformers shows to its loss alone."""
    if isinstance(peer, DPTForDepthEstimation):
        return {"depth": peer(x).predicted_depth}
    auxiliary = []
    handle = peer.auxiliary_head.register_forward_hook(lambda module, args, output: auxiliary.append(output))
    outputs = {"logits": peer(x).logits}
    handle.remove()
    return outputs | ({"aux_logits": auxiliary[0]} if peer.training else {})


def our_outputs(ours, x):
    return {name: tensor for name, tensor in ours(x)._asdict().items() if tensor is not None}


def assert_parity(ours, reference):
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert torch.isfinite(reference).all()
    assert torch.isfinite(ours).all()
    difference, largest = (ours - reference).abs().max(), reference.abs().max()
    assert difference <= TOLERANCE[reference.dtype] * largest, f"{difference:.2e} of {largest:.2e}"


def compare(ours, peer, x):
    want, got = peer_outputs(peer, x), our_outputs(ours, x)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        if name != "depth":
            # Each class says something.
            assert (tensor.std((0, 2, 3)) >= 0.02 * tensor.abs().max()).all()
        elif not peer.training:  # the last bias was placed for the running statistics
            assert_can_fail(tensor)
        assert_parity(got[name], tensor)


def names_for(peer):
    """`peer_names` of the whole family."""
    encoder = "dpt.embeddings.backbone.bit"

    def names_of(name):
        match name.split("."):
            case ["encoder", "patch_embed", leaf] if peer.config.is_hybrid:
                return [f"dpt.embeddings.projection.{leaf}"]
            case ["encoder", "stem", layer, leaf]:
                return [f"{encoder}.embedder.{dict(conv='convolution', norm='norm')[layer]}.{leaf}"]
            case ["encoder", "stages", stage, block, *rest]:
                return [f"{encoder}.encoder.stages.{stage}.layers.{block}.{'.'.join(rest)}"]
            case ["head", ("segmentation" | "auxiliary") as head, layer, leaf]:
                module = {"segmentation": "head", "auxiliary": "auxiliary_head"}[head]
                return [f"{module}.head.{dict(conv=0, norm=1, classify=4)[layer]}.{leaf}"]
        return peer_names(name)

    return names_of


# Outputs


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_output_equals_transformers(tmp_path, case, dtype):
    peer = peer_case(case, dtype)
    ours = load(peer, tmp_path)
    for batch in (1, BATCH):
        compare(ours, peer, images((SIDE, SIDE), batch, dtype))
    peer = at_any_size(peer)
    for size in ((96, 96), (32, 96), (128, 64)):
        compare(ours, peer, images(size, 2, dtype))


@torch.no_grad()
@pytest.mark.parametrize("case", ["hybrid", "hybrid segmentation", "vit segmentation"])
def test_output_equals_transformers_at_384(tmp_path, case):
    kind, fields = CASES[case]
    fields = fields | dict(image_size=384, num_hidden_layers=12, backbone_out_indices=[2, 5, 8, 11])
    if fields.get("is_hybrid"):
        fields |= dict(backbone_config=bit(3, 4, 9))  # the published encoder's convolutions, whole
    peer = make_peer(kind, fields, torch.float32)
    ours = load(peer, tmp_path)
    x = images((384, 384), 1, torch.float32)
    (theirs,), (got,) = peer_outputs(peer, x).values(), our_outputs(ours, x).values()
    peer, ours, x = peer.double(), ours.double(), x.double()
    compare(ours, peer, x)
    # Through so many layers the peer's own float32 is up to 2e-5 of the largest value away from its float64, and so is
    # ours: no farther than twice that.
    (exact,) = peer_outputs(peer, x).values()
    largest = exact.abs().max()
    lost = (theirs - exact).abs().max()
    assert lost <= 3e-5 * largest
    difference = (got - exact).abs().max()
    assert difference <= max(1e-5 * largest, 2 * lost), f"{difference:.2e} of {largest:.2e}, theirs {lost:.2e}"


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_training_equals_transformers_with_its_statistics(tmp_path, case, dtype):
    peer = peer_case(case, dtype)
    ours = load(peer, tmp_path)
    names_of = names_for(peer)
    before = {name: buffer.clone() for name, buffer in peer_named(ours.named_buffers(), names_of).items()}
    peer.train(), ours.train()
    for seed in (1, 2):
        compare(ours, peer, images((SIDE, SIDE), BATCH, dtype, seed))
    theirs, after = dict(peer.named_buffers()), peer_named(ours.named_buffers(), names_of)
    units = 7 * 2 if peer.config.use_batch_norm_in_fusion_residual else 0  # 7 units that run, 2 layers
    heads = 2 if isinstance(peer, DPTForSemanticSegmentation) else 0
    assert len(after) == 3 * (units + heads)  # mean, variance and count
    for name, buffer in after.items():
        if name.endswith("num_batches_tracked"):
            assert buffer == theirs[name] == 7
        else:
            assert not torch.equal(buffer, before[name])
            assert_parity(buffer, theirs[name])
    # And the evaluation that follows reads them.
    peer.eval(), ours.eval()
    x = images((SIDE, SIDE), 1, dtype, seed=3)
    want, got = peer_outputs(peer, x), our_outputs(ours, x)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert tensor.std() > 0.05 * tensor.abs().max()
        assert_parity(got[name], tensor)


# The comparison finds what it should


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "changes", "training"),
    [
        ("hybrid", dict(weight_standardization="std"), False),
        ("hybrid", dict(layer_norm_eps=1e-6), False),
        ("hybrid", dict(taps=(0, 1, 2, 5)), False),
        ("hybrid", dict(head_align_corners=False), False),
        ("hybrid", dict(unit_skip="relu"), False),
        ("hybrid segmentation", dict(weight_standardization="std"), True),
        ("vit segmentation", dict(auxiliary_head="penultimate"), True),
        ("vit segmentation", dict(dropout=0.1), True),
        ("vit segmentation", dict(taps=(1, 2, 3, 5)), False),
    ],
    ids=str,
)
def test_comparison_fails_when_ours_is_another_network(tmp_path, case, changes, training):
    peer = peer_case(case)
    same = load(peer, tmp_path)
    other = DPTModel(same.config.replace(**changes), dtype=torch.float64)
    other.load_state_dict(same.state_dict())
    x = images((SIDE, SIDE), BATCH, torch.float64)
    for network in (peer, same, other):
        network.train(training)
    compare(same, peer, x)
    with pytest.raises(AssertionError):
        compare(other, peer, x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "swap", "training"),
    [
        ("hybrid", ("stages.1.layers.0.norm1", "stages.1.layers.0.norm2"), False),
        ("hybrid", ("stages.1.layers.0.norm3", "stages.1.layers.0.downsample.norm"), False),
        ("hybrid", ("stages.1.layers.0.conv3", "stages.1.layers.1.conv3"), False),
        ("vit segmentation", ("head.head.1", "auxiliary_head.head.1"), False),
        ("vit segmentation", ("head.head.4", "auxiliary_head.head.4"), True),
    ],
    ids=str,
)
def test_comparison_fails_when_two_layers_of_the_peer_are_swapped(tmp_path, case, swap, training):
    peer = peer_case(case, torch.float32)
    ours = load(peer, tmp_path)
    prefix = "dpt.embeddings.backbone.bit.encoder." if case == "hybrid" else ""
    first, second = (peer.get_submodule(prefix + name) for name in swap)
    values = [copy.deepcopy(part.state_dict()) for part in (first, second)]
    first.load_state_dict(values[1]), second.load_state_dict(values[0])
    peer.train(training), ours.train(training)
    with pytest.raises(AssertionError, match=r"^\d\S+ of \d"):  # the difference, not the guards
        compare(ours, peer, images((SIDE, SIDE), BATCH, torch.float32))


# Gradients


@torch.no_grad()
def images_off_the_kinks(peer, side, batch, margin):
    """Images for which no input of a ReLU lies within rounding of zero, and no two of the largest in a window of the
    pooling within rounding of each other: there two right gradients differ."""
    probe = copy.deepcopy(peer).double()  # batch normalisation would change the peer's statistics
    margins = []

    def watch(module, args):
        margins.append((args[0].abs().min() / args[0].std()).item())

    def watch_windows(module, args):
        x = module.pad(args[0])
        windows = unfold(x, module.kernel_size, stride=module.stride).unflatten(1, (x.shape[1], -1))
        first, second = windows.topk(2, dim=2).values.unbind(2)
        pooled = max_pool2d(x, module.kernel_size, module.stride)
        assert torch.equal(first, pooled.flatten(2))
        # Where the largest is a zero of the ReLU before, nothing passes.
        margins.append(((first - second)[first > 0].min() / x.std()).item())

    for module in probe.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(watch)
        elif isinstance(module, BitMaxPool2d):
            module.register_forward_pre_hook(watch_windows)
    config = peer.config
    # Two in each of seven units that run, two in the heads; in the stem (and its pooling) and three in each bottleneck.
    count = 16 + (2 + 3 * sum(config.backbone_config.depths) if config.is_hybrid else 0)
    for seed in range(100):
        margins.clear()
        x = images((side, side), batch, torch.float32, seed)
        probe(x.double())
        assert len(margins) == count
        if min(margins) > margin:
            return x
    raise AssertionError("no such images")


def gradients(network, outputs_of, x):
    """Of a generic scalar of all outputs, with respect to the parameters that have one, and to the images."""
    x = x.clone().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    total = 0
    for output in outputs_of(network, x).values():
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
        total = total + (output * weights).sum() / output.numel()
    total.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, x.grad


@pytest.mark.parametrize(
    ("dtype", "training"),
    # In float32 a map of 64 x 64 images has too many values to be off the kinks by that much, and of smaller ones the
    # coarsest level has too few values for the statistics of a batch.
    [(torch.float64, False), (torch.float64, True), (torch.float32, False)],
)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_transformers(tmp_path, case, training, dtype):
    peer = peer_case(case, dtype)
    ours = load(peer, tmp_path)
    ours.train(training), peer.train(training)
    if dtype == torch.float64:
        x = images_off_the_kinks(peer, SIDE, BATCH, 1e-9).to(dtype)
    else:
        peer = at_any_size(peer)
        x = images_off_the_kinks(peer, 32, 1, 1e-5)
    named, image_gradient = gradients(ours, our_outputs, x)
    got = peer_named(named.items(), names_for(peer)) | {"images": image_gradient}
    want, image_gradient = gradients(peer, peer_outputs, x)
    want["images"] = image_gradient

    # All of ours have one, but for the auxiliary head's in evaluation.
    silent = [name for name, _ in ours.named_parameters() if name not in named]
    assert all(name.startswith("head.auxiliary.") for name in silent)
    segmentation = isinstance(peer, DPTForSemanticSegmentation)
    assert len(silent) == (4 + 1 if segmentation and not training else 0)
    assert got.keys() == want.keys()
    largest = max(gradient.abs().max() for gradient in want.values())
    for name, gradient in want.items():
        assert got[name].shape == gradient.shape, name
        assert torch.isfinite(gradient).all(), name
        assert torch.isfinite(got[name]).all(), name
        difference, own = (got[name] - gradient).abs().max(), gradient.abs().max()
        # Zero but for rounding, as softmax does not change when one number is added to a whole row.
        key_bias = name.endswith("attention.key.bias")
        if not key_bias:
            assert own > 1e-7 * largest, f"{name}: a gradient too small to compare"
        if dtype == torch.float64:
            bound = 1e-12 if key_bias else 1e-9 * own
            assert not key_bias or own <= bound, name
        else:
            bound = max(1e-4 * own, 1e-6 * largest)
        assert difference <= bound, f"{name}: {difference:.2e} of {own:.2e}, largest of all {largest:.2e}"
