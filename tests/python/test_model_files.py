"""What save_pretrained writes and from_pretrained and encoder_weights take."""

import json
import shutil

import pytest
import torch
from narrow import BATCH_NORM, DISTILLED, NARROW, images, make_model, same_bits

from torchdpt import DPTConfig, DPTModel
from torchdpt.classes import Classes

FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_save_and_load_are_bit_equal(tmp_path, config, dtype):
    model = DPTModel(config, dtype=dtype)
    assert model.save_pretrained(tmp_path / "new" / "folder") == []
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "new" / "folder" / "model.safetensors", tmp_path / "alone" / "any.safetensors")
    for path in (tmp_path / "new" / "folder", tmp_path / "alone" / "any.safetensors"):
        for spelled in (path, str(path)):
            loaded = DPTModel.from_pretrained(spelled)
            assert loaded.config == model.config
            assert same_bits(loaded.state_dict(), model.state_dict())
            assert list(loaded.state_dict()) == list(model.state_dict())


def test_loading_takes_dtype_and_device(tmp_path):
    DPTModel(BATCH_NORM).save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path, dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert loaded.state_dict()["fusion.0.unit1.norm1.num_batches_tracked"].dtype == torch.int64
    assert loaded(images(dtype=torch.float64)).depth.dtype == torch.float64
    assert all(t.is_meta for t in DPTModel.from_pretrained(tmp_path, device="meta").state_dict().values())


def test_overwriting_replaces_the_file_and_leaves_a_loaded_model_alone(tmp_path):
    first, second = make_model(seed=1), make_model(DISTILLED, seed=2)
    first.save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path)  # its tensors are mapped from the file
    second.save_pretrained(tmp_path)
    assert same_bits(loaded.state_dict(), first.state_dict())
    again = DPTModel.from_pretrained(tmp_path)
    assert again.config == DISTILLED
    assert same_bits(again.state_dict(), second.state_dict())
    again.save_pretrained(tmp_path)  # over the file that it is mapped from
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), second.state_dict())
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_loaded_tensors_can_be_changed_without_changing_the_file(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_tensors_of_any_layout_are_saved(tmp_path):
    model = make_model()
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), want)


def test_saved_config_is_canonical(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert DPTConfig.from_json(text) == NARROW
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert json.loads(text) == json.loads(NARROW.to_json())


def test_file_and_config_that_do_not_belong_together(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(NARROW.replace(features=16).to_json())
    with pytest.raises(ValueError, match=r"has shape \[\d+, .*the config wants \[16, .*do not belong together"):
        DPTModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(DISTILLED.to_json())
    with pytest.raises(ValueError, match=r"has shape|1 missing \[encoder\.dist_token\]"):
        DPTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "'.*nowhere' does not exist; pass a folder with config.json"),
        (lambda folder: folder, "has no model.safetensors; pass the folder that save_pretrained wrote"),
        (lambda folder: folder / "weights.bin", "wanted a folder or a .safetensors file, got '.*weights.bin'"),
        (
            lambda folder: folder / "text.safetensors",
            "header: wanted a length of at most .*the file is damaged",
        ),
        (
            lambda folder: folder / "empty.safetensors",
            "wanted at least 8 bytes, .*got a file of 0; the file is damaged",
        ),
    ],
)
def test_bad_path_raises(tmp_path, make, message):
    (tmp_path / "weights.bin").touch()
    (tmp_path / "text.safetensors").write_text("This is no file of tensors.")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ValueError, match=message):
        DPTModel.from_pretrained(make(tmp_path))


def test_unknown_layout_raises(tmp_path):
    with pytest.raises(
        ValueError, match="layout must be 'torchdpt', 'transformers', 'isl-org' or 'isl-org-scriptable', got"
    ):
        DPTModel(NARROW).save_pretrained(tmp_path / "out", layout="timm")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"save_checkpoint: could not create the folder '.*file/out'"):
        DPTModel(NARROW).save_pretrained(tmp_path / "file" / "out")


# --- classes ---

SEGMENTATION = NARROW.replace(depth_head=False, num_classes=2)


def test_classes_of_the_model_before_are_not_left_behind(tmp_path):
    model = DPTModel(SEGMENTATION)
    model.classes = Classes("pets", ("cat", "dog"))
    model.save_pretrained(tmp_path)
    assert DPTModel.from_pretrained(tmp_path).classes == model.classes
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"classes.json"}
    model.classes = None
    model.save_pretrained(tmp_path)
    assert DPTModel.from_pretrained(tmp_path).classes == Classes.numbered(2)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    model.classes = Classes("pets", ("cat", "dog"))
    model.save_pretrained(tmp_path)
    DPTModel(NARROW).save_pretrained(tmp_path)  # depth alone
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("config", [SEGMENTATION, NARROW], ids=["segmentation", "depth"])
@pytest.mark.parametrize("layout", ["torchdpt", "isl-org"])
def test_classes_of_another_number_are_not_saved(tmp_path, config, layout):
    model = DPTModel(config)
    model.classes = Classes.numbered(3)
    message = rf"save_pretrained: model.classes are 3 .* num_classes = {config.num_classes}; set model.classes to"
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "new", layout=layout)
    assert not (tmp_path / "new").exists()


def test_classes_of_another_number_are_not_loaded(tmp_path):
    DPTModel(SEGMENTATION).save_pretrained(tmp_path)
    Classes.numbered(3).save(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            ValueError, match=r"names 3 classes, and the network has num_classes = 2; mend or delete its classes.json"
        ):
            DPTModel.from_pretrained(path)
    (tmp_path / "classes.json").unlink()
    assert DPTModel.from_pretrained(tmp_path).classes == Classes.numbered(2)


# --- the encoder of a file ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nope", "encoder_weights: '/nope' does not exist; pass the path of a folder .*, .pt or .pth file"),
        ("Intel/dpt-large", "'Intel/dpt-large' does not exist; .* Models on the hub are not fetched here: download"),
        (3, "encoder_weights must be the path of a folder .* or a .safetensors, .pt or .pth file, got 3"),
        (b"x.pth", "encoder_weights must be the path of .*, got b'x.pth'"),
        ("weights.bin", "encoder_weights: wanted a folder .* or a .safetensors, .pt or .pth file, got 'weights.bin'"),
    ],
)
def test_encoder_weights_that_are_no_path_of_weights(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=message):
        DPTModel(NARROW, encoder_weights=source)


def transformers_model(**changes):
    # transformers' head has 32 hidden features.
    return make_model(NARROW.replace(head_features=32, **changes), seed=7)


@pytest.mark.parametrize("layout", ["torchdpt", "transformers"])
def test_encoder_weights_start_the_encoder_alone(tmp_path, layout):
    source = transformers_model(fusion_norm="batch")
    source.save_pretrained(tmp_path, layout=layout)
    # Another decoder: only the encoder's shapes have to agree.
    config = NARROW.replace(features=10, channels=(3, 4, 5, 6), readout="add")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        torch.manual_seed(3)
        model = DPTModel(config, encoder_weights=path)
        torch.manual_seed(3)
        fresh = DPTModel(config)
        assert model.training
        assert same_bits(model.encoder.state_dict(), source.encoder.state_dict())
        for stage in ("reassemble", "fusion", "head"):
            assert same_bits(getattr(model, stage).state_dict(), getattr(fresh, stage).state_dict())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    double = DPTModel(config, encoder_weights=tmp_path, dtype=torch.float64)
    assert torch.equal(double.encoder.cls_token, source.encoder.cls_token.double())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=48), r"tensor 'encoder\.cls_token' has shape \[1, 1, 24\], the config wants \[1, 1, 48\]"),
        (dict(depth=5, taps=(0, 1, 2, 4)), "has an encoder with depth = 4, this model has 5"),
        (dict(distilled=True), "has an encoder with distilled = false, this model has true"),
        # What no shape shows.
        (dict(heads=4), r"has an encoder with heads = \d, this model has 4; change the config of one"),
        (dict(qkv_bias=False), "has an encoder with qkv_bias = true, this model has false"),
        (dict(layer_norm_eps=1e-5), "has an encoder with layer_norm_eps ="),
        (dict(depth=5, taps=(0, 1, 2, 4), width=48), "has an encoder with depth"),
    ],
)
def test_encoder_weights_of_another_shape_are_refused(tmp_path, changes, message):
    DPTModel(NARROW).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        DPTModel(NARROW.replace(**changes), encoder_weights=tmp_path)


def test_encoder_weights_need_a_device_with_values(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder_weights cannot be loaded onto device='meta'"):
        DPTModel(NARROW, encoder_weights=tmp_path, device="meta")
