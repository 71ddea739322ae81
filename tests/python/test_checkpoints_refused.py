"""Files that are not isl-org's checkpoints, or not whole: what is said of them."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from checkpoints import peer, write

from torchdpt import DPTModel

HYBRID = "pretrained.model.patch_embed.backbone.stem.conv.weight"


@pytest.mark.parametrize("form", ["plain", "safetensors"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop("scratch.layer3_rn.weight"),
            r"\(isl-org layout\): 1 missing \[scratch\.layer3_rn\.weight\], 0 unexpected \[\]",
        ),
        (
            lambda t: t.pop("pretrained.model.blocks.4.attn.qkv.bias"),
            r"1 missing \[pretrained\.model\.blocks\.4\.attn\.qkv\.bias\], 0 unexpected",
        ),
        (
            lambda t: t.update({"scratch.extra.weight": torch.zeros(2)}),
            r"0 missing \[\], 1 unexpected \[scratch\.extra\.weight\]",
        ),
        (
            lambda t: t.update({"pretrained.model.blocks.3.ls1.gamma": torch.zeros(2)}),
            r"0 missing \[\], 1 unexpected \[pretrained\.model\.blocks\.3\.ls1\.gamma\]",
        ),
        (
            lambda t: t.update({"scratch.refinenet2.out_conv.weight": torch.zeros(19, 18, 1, 1)}),
            r"tensor 'scratch\.refinenet2\.out_conv\.weight' has shape \[19, 18, 1, 1\], the config wants "
            r"\[19, 19, 1, 1\], which it has by the shapes of other tensors",
        ),
        (
            lambda t: t.update({"scratch.output_conv.4.bias": torch.zeros(1, dtype=torch.int64)}),
            r"'scratch\.output_conv\.4\.bias' has dtype Long, wanted a floating point one",
        ),
        (
            lambda t: t.pop("pretrained.model.pos_embed"),
            r"1 missing \[pretrained\.model\.pos_embed\], whose shape says what the network is",
        ),
        (
            lambda t: t.update({"pretrained.model.pos_embed": torch.zeros(1, 18, 128)}),
            "must be that of a square grid and one token, got 17 patches",
        ),
        (
            lambda t: t.update({"pretrained.model.pos_embed": torch.zeros(17, 128)}),
            r"tensor 'pretrained\.model\.pos_embed' has shape \[17, 128\], wanted 3 dimensions",
        ),
        (
            lambda t: t.update({"pretrained.model.pos_embed": torch.zeros(1, 17, 60)}),
            "width must be a multiple of 64, .*got 60",
        ),
        (
            lambda t: t.update({"pretrained.model.blocks.12.norm1.bias": torch.zeros(128)}),
            r"the encoder has 13 blocks, and only for 12 \(ViT-B\) and 24 \(ViT-L\)",
        ),
        (
            lambda t: t.update({HYBRID: torch.zeros(1)}),
            r"1 missing \[pretrained\.model\.patch_embed\.backbone\.stages\.0\.blocks\.0\.conv1\.weight\], and all",
        ),
        (
            lambda t: t.update({"auxlayer.0.weight": torch.zeros(1)}),
            r"tensor 'scratch\.output_conv\.0\.weight' has shape \[9, 19, 3, 3\], the config wants \[19, 19, 3, 3\]",
        ),
        (
            lambda t: (t.clear(), t.update({"pretrained.layer1.0.weight": torch.zeros(1)})),
            r"1 missing \[pretrained\.layer1\.4\.0\.conv1\.weight\], and all others",
        ),
        (
            lambda t: t.update({"pretrained.model.blocks.0.attn.q_bias": torch.zeros(1)}),
            "is a DPT on BEiT, which",
        ),
        (
            lambda t: (t.clear(), t.update({"depth_head.projects.0.weight": torch.zeros(1)})),
            "is a Depth Anything, which",
        ),
    ],
)
def test_loading_reports_what_does_not_fit(tmp_path, base, edit, message, form):
    tensors = dict(base)
    edit(tensors)
    file = write(tensors, tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt"), form)
    with pytest.raises(ValueError, match=r"load_checkpoint: '.*model\.\w+'.*" + message):
        DPTModel.from_pretrained(file)


def test_state_dict_of_another_layout_is_named(tmp_path, base):
    ours = DPTModel.from_pretrained(write(base, tmp_path / "a.pt"))
    for state in (ours.state_dict(), peer("base").state_dict(), {}):
        with pytest.raises(ValueError, match="names no config, and its tensors are not called as isl-org calls them"):
            DPTModel.from_pretrained(write(state, tmp_path / "b.pt"))


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["plain", "before torch 1.6", "bare pickle"])
def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, base, form):
    trace = tmp_path / "trace"
    state = dict(base) | {"attack": Attack(str(trace))}
    file = tmp_path / "model.pt"
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(Attack(str(trace)), protocol=2))
    else:
        write(state, file, form)
    with pytest.raises(ValueError, match=r"is a pickle that wants to call (posix|nt)\.mkdir, and was refused before"):
        DPTModel.from_pretrained(file)
    assert not trace.exists()
    if form == "bare pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert trace.exists()  # it was a real one


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("hello.txt", "hello")
    return buffer.getvalue()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is empty; fetch it again"),
        (lambda: b"This is no file of tensors.\n" * 100, r"is damaged or no state dict that torch\.save wrote"),
        (
            lambda: b"version https://git-lfs.github.com/spec/v1\n",
            r"is damaged or no state dict that torch\.save wrote",
        ),
        (lambda: pickle.dumps({"a": print}, protocol=4), r"is damaged or no state dict that torch\.save wrote"),
        (zipped, r"is damaged or no state dict that torch\.save wrote"),
        (lambda: saved({"a": torch.zeros(999)})[:-600], r"is damaged or no state dict that torch\.save wrote"),
        (scripted, "is a TorchScript program; wanted a state dict"),
        (lambda: saved([torch.zeros(1)]), "must hold a state dict, got list"),
        (lambda: saved({"a": 3}), "must hold a state dict, names and tensors, got int under 'a'"),
        (lambda: saved({1: torch.zeros(1)}), "names and tensors, got Tensor under 1"),
        (lambda: saved({"scratch.x": torch.zeros(2, 2).to_sparse()}), "tensor 'scratch.x' must be dense"),
    ],
    ids=[
        "empty",
        "text",
        "git lfs",
        "protocol 4",
        "zip",
        "truncated",
        "TorchScript",
        "list",
        "number",
        "key",
        "sparse",
    ],
)
def test_file_that_is_no_state_dict(tmp_path, content, message):
    (tmp_path / "model.pt").write_bytes(content())
    with pytest.raises(ValueError, match=r"'.*model\.pt'.*" + message):
        DPTModel.from_pretrained(tmp_path / "model.pt")
