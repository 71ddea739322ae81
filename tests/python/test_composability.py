"""What PyTorch offers for any nn.Module, on DPTModel: it works as it does there, or is refused with the way out."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import VIT
from torch import nn
from torch.nn.utils import parametrize, prune

from torchdpt import DPTModel, DPTOutput

BATCH_NORM = VIT.replace(fusion_norm="batch")
STAGES = ["encoder", "reassemble", "fusion", "head"]


@pytest.fixture
def model():
    model = DPTModel(VIT)
    nn.init.constant_(model.head.depth.conv3.bias, 1)  # so that the last ReLU is open everywhere
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96)


def assert_fp32_close(got, want):
    # Sums of up to some 150 terms (3x3 convolutions of 16 channels) in another order, through some 20 layers: about
    # 1e-6 of the largest value.
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


# --- state ---


@pytest.mark.parametrize("config", [VIT, BATCH_NORM], ids=["plain", "batch norm"])
def test_state_dict_restores_the_model(config, images):
    model, other = DPTModel(config).eval(), DPTModel(config).eval()
    assert not torch.equal(model(images).depth, other(images).depth)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images).depth, other(images).depth)


def test_strict_load_names_what_is_missing_and_unexpected(model):
    state = model.state_dict()
    state["encoder.blocks.3.attn.query.weight"] = state.pop("encoder.blocks.3.attn.qkv.weight")
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing.*blocks\.3\.attn\.qkv\.weight.*Unexpected.*attn\.query\.weight"
    ):
        model.load_state_dict(state)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["encoder.blocks.3.attn.qkv.weight"]
    assert unexpected == ["encoder.blocks.3.attn.query.weight"]


def test_load_with_assign_takes_the_tensors_themselves(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.head.depth.conv1.weight.data_ptr() == state["head.depth.conv1.weight"].data_ptr()


def test_state_dict_survives_torch_save(model, images, tmp_path):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = DPTModel(VIT)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(model(images).depth, other(images).depth)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copy_owns_its_tensors(again, images):
    model = DPTModel(BATCH_NORM)
    model.activation_checkpointing = True
    other = again(model)
    want = model.eval()(images).depth
    assert torch.equal(other.eval()(images).depth, want)
    assert other.activation_checkpointing
    assert other.config == model.config
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    assert torch.equal(model(images).depth, want)
    assert not torch.equal(other(images).depth, want)


def test_replaced_parameter_takes_part(model, images):
    before = model(images).depth
    model.encoder.blocks[0].attn.qkv.weight = nn.Parameter(torch.zeros(96, 32))
    assert not torch.equal(model(images).depth, before)


# --- torch.func ---


def test_functional_call_uses_the_tensors_it_is_given(model, images):
    parameters = {name: torch.randn_like(tensor) * 0.1 for name, tensor in model.named_parameters()}
    before = model(images).depth
    result = torch.func.functional_call(model, parameters, (images,)).depth
    assert torch.equal(model(images).depth, before)
    model.load_state_dict(parameters)
    assert torch.equal(result, model(images).depth)


def test_gradients_flow_through_functional_call(model, images):
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    loss = torch.func.functional_call(model, parameters, (images,)).depth.square().mean()
    got = torch.autograd.grad(loss, list(parameters.values()))
    want = torch.autograd.grad(model(images).depth.square().mean(), list(model.parameters()))
    assert all(map(torch.equal, got, want))


def test_torch_func_grad_equals_autograd(model, images):
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (images,)).depth.square().mean()

    got = torch.func.grad(loss)(parameters)
    want = torch.autograd.grad(model(images).depth.square().mean(), list(model.parameters()))
    for (name, gradient), expected in zip(got.items(), want, strict=True):
        assert expected.abs().max() > 0, name
        # A ReLU whose input is zero but for rounding opens in one form and not in the other: one pixel of 12288, 3e-5
        # seen. A gradient that is missing or wrong is off by 1e-2 or more.
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_vmap_is_refused(model, images):
    with pytest.raises(RuntimeError, match="Batching rule not implemented for dpt::forward"):
        torch.func.vmap(lambda image: model(image[None]).depth[0])(images)


# --- to ---


def test_to_double(model, images):
    want = model(images).depth
    got = model.to(torch.float64)(images.double()).depth
    assert got.dtype == torch.float64
    assert_fp32_close(want, got.float())


def test_to_bfloat16(model, images):
    want = model(images).depth
    got = model.to(torch.bfloat16)(images.bfloat16()).depth
    assert got.dtype == torch.bfloat16
    # Some 20 layers, each rounding to 8 bits (2^-9 of the value), errors adding as in a random walk: 20^0.5 * 2^-9.
    assert (got.float() - want).abs().max() <= 1e-2 * want.max()


def test_to_device(model, images, device):
    want = model(images).depth
    got = model.to(device)(images.to(device)).depth
    assert got.device.type == device
    # CUDA's convolutions may use TF32 (10 bits) by default: 20^0.5 * 2^-11.
    assert (got.cpu() - want).abs().max() <= (3e-3 if device == "cuda" else 0) * want.max()


def test_to_meta_gives_shapes_alone(model, images):
    depth = model.to("meta")(images.to("meta")).depth
    assert (depth.device.type, depth.shape) == ("meta", (2, 64, 96))


def test_to_channels_last(model, images):
    want = model(images).depth
    model = model.to(memory_format=torch.channels_last)
    assert model.head.depth.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_fp32_close(model(images.to(memory_format=torch.channels_last)).depth, want)


# --- autocast ---


def test_autocast_is_close_to_fp32_and_trains(model, images):
    want = model(images).depth
    with torch.autocast("cpu", torch.bfloat16):
        got = model(images).depth
    assert got.dtype == torch.bfloat16
    # As for bfloat16 weights, test_to_bfloat16.
    assert (got.float() - want).abs().max() <= 1e-2 * want.max()
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_gives_the_dtypes_of_torch_modules(model, images):
    # Of torch.nn's own modules, linear and convolution give bfloat16, and adding that to a float32 residual float32.
    with torch.autocast("cpu", torch.bfloat16):
        taps = model.encoder(images)
        maps = model.reassemble(taps, (64, 96))
        fused = model.fusion(maps)
    assert {tap.dtype for tap in taps} == {torch.float32}
    assert {map.dtype for map in (*maps, *fused)} == {torch.bfloat16}


# --- threads ---


def test_two_threads_give_the_bits_of_one(model):
    batches = [torch.rand(1, 3, 64, 64 + 32 * (i % 2)) for i in range(8)]

    def run(batch):
        with torch.no_grad():
            return model(batch).depth

    want = [run(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        assert all(map(torch.equal, pool.map(run, batches), want))


# --- parametrize ---


class LoRA(nn.Module):
    """weight + up @ down, of rank 2."""

    def __init__(self, weight):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, weight.shape[1]) * 0.1)
        self.up = nn.Parameter(torch.randn(weight.shape[0], 2) * 0.1)

    def forward(self, weight):
        return weight + self.up @ self.down


def add_lora(model):
    model.requires_grad_(False)
    for block in model.encoder.blocks.children():
        parametrize.register_parametrization(block.attn.qkv, "weight", LoRA(block.attn.qkv.weight))


def test_lora_changes_the_forward_pass_and_alone_gets_gradients(model, images):
    before = model(images).depth
    add_lora(model)
    depth = model(images).depth
    assert not torch.equal(depth, before)
    depth.square().mean().backward()
    lora = {name for name, _ in model.named_parameters() if name.endswith((".down", ".up"))}
    assert len(lora) == 2 * VIT.depth
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0} == lora


def test_lora_merges_to_the_same_bits(model, images):
    add_lora(model)
    want = model(images).depth
    for block in model.encoder.blocks.children():
        parametrize.remove_parametrizations(block.attn.qkv, "weight")
    assert model.state_dict().keys() == DPTModel(VIT).state_dict().keys()
    assert torch.equal(model(images).depth, want)


def test_lora_is_saved_merged(model, images, tmp_path):
    add_lora(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(DPTModel.from_pretrained(tmp_path)(images).depth, model(images).depth)


def test_parametrized_weight_norm_works(model, images):
    want = model(images).depth
    nn.utils.parametrizations.weight_norm(model.head.depth.conv1)
    assert_fp32_close(model(images).depth, want)  # g * v / |v| is the weight itself at first
    with torch.no_grad():
        model.head.depth.conv1.parametrizations.weight.original0.mul_(2)
    assert (model(images).depth - want).abs().max() > 1e-3


# --- refusals ---


def replace_submodule(model):  # as PEFT does
    setattr(model.encoder.blocks[0].attn, "qkv", nn.Linear(32, 96))  # noqa: B010


def prune_weight(model):
    prune.l1_unstructured(model.encoder.blocks[0].attn.qkv, "weight", 0.5)


def forward_hook(model):
    model.encoder.blocks[0].attn.qkv.register_forward_hook(lambda *_: None)


def forward_pre_hook(model):
    model.encoder.blocks[0].attn.qkv.register_forward_pre_hook(lambda *_: None)


def backward_hook(model):
    model.encoder.blocks[0].attn.qkv.register_full_backward_hook(lambda *_: None)


def backward_pre_hook(model):
    model.encoder.blocks[0].attn.qkv.register_full_backward_pre_hook(lambda *_: None)


def old_weight_norm(model):
    nn.utils.weight_norm(model.encoder.blocks[0].attn.qkv)


def old_spectral_norm(model):
    nn.utils.spectral_norm(model.encoder.blocks[0].attn.qkv)


REFUSED = [
    prune_weight,
    forward_hook,
    forward_pre_hook,
    backward_hook,
    backward_pre_hook,
    old_weight_norm,
    old_spectral_norm,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("attach", REFUSED)
def test_hook_inside_a_stage_is_refused_and_parametrize_named(model, images, attach):
    attach(model)
    message = r"`encoder\.blocks\.0\.attn\.qkv` has a hook .*parametrize.*hooks work on model\.encoder"
    for call in (model, model.encoder):
        with pytest.raises(ValueError, match=message):
            call(images)


def test_replaced_submodule_is_refused_and_parametrize_named(model, images):
    replace_submodule(model)
    for call in (model, model.encoder):
        with pytest.raises(ValueError, match=r"a submodule of `encoder` was replaced.*\(LoRA.*parametrize"):
            call(images)


@pytest.mark.parametrize("attach", [replace_submodule, prune_weight])
def test_refusals_hold_in_compile_and_export(model, images, attach, tmp_path):
    from torchdpt import export

    attach(model)
    with pytest.raises(ValueError, match="parametrize"):
        torch.compile(model, backend="eager")(images)
    with pytest.raises(ValueError, match="parametrize"):
        export(model, tmp_path / "model.pt2", dynamic=False)


def test_pruning_made_permanent_works(model, images):
    prune_weight(model)
    prune.remove(model.encoder.blocks[0].attn.qkv, "weight")
    assert (model.encoder.blocks[0].attn.qkv.weight == 0).float().mean() == 0.5
    assert torch.equal(
        model(images).depth, model.head(*model.fusion(model.reassemble(model.encoder(images), (64, 96)))).depth
    )


def test_sync_batch_norm_is_refused():
    with pytest.raises(ValueError, match=r"convert_sync_batchnorm cannot reach.*model\.synchronize_batch_norm\(\)"):
        nn.SyncBatchNorm.convert_sync_batchnorm(DPTModel(BATCH_NORM))


def test_sync_batch_norm_is_harmless_without_batch_norm(model, images):
    want = model(images).depth
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(model)(images).depth, want)


# --- hooks on the stages ---


def test_forward_hooks_run_on_the_stages(model, images):
    want = model(images).depth
    seen = []
    for stage in STAGES:
        getattr(model, stage).register_forward_pre_hook(lambda *_, stage=stage: seen.append(("before", stage)))
        getattr(model, stage).register_forward_hook(lambda *_, stage=stage: seen.append(("after", stage)))
    assert torch.equal(model(images).depth, want)
    assert seen == [(when, stage) for stage in STAGES for when in ("before", "after")]


def test_forward_hook_on_a_stage_can_change_its_output(model, images):
    model.fusion.register_forward_hook(lambda _module, _args, output: tuple(torch.zeros_like(map) for map in output))
    depth = model(images).depth
    # Zeros in, so the same bias everywhere out.
    assert torch.equal(depth[:, 8:-8, 8:-8], depth[0, 32, 48].expand(2, 48, 80))


def test_full_backward_hooks_run_on_the_stages_in_reverse(model, images):
    seen = []
    for stage in STAGES:
        getattr(model, stage).register_full_backward_pre_hook(lambda *_, stage=stage: seen.append(("before", stage)))
        getattr(model, stage).register_full_backward_hook(lambda *_, stage=stage: seen.append(("after", stage)))
    output = model(images.requires_grad_())
    assert isinstance(output, DPTOutput)
    output.depth.square().mean().backward()
    assert [stage for when, stage in seen if when == "before"] == STAGES[::-1]
    assert sorted(stage for when, stage in seen if when == "after") == sorted(STAGES)


def test_full_backward_hook_sees_the_gradients_of_a_stage(model, images):
    seen = {}
    model.encoder.register_full_backward_hook(
        lambda _module, inputs, outputs: seen.update(inputs=inputs, outputs=outputs)
    )
    images.requires_grad_()
    model(images).depth.square().mean().backward()
    assert torch.equal(seen["inputs"][0], images.grad)
    assert [tuple(gradient.shape) for gradient in seen["outputs"]] == [(2, 25, 32)] * 4
