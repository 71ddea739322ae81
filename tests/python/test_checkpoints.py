"""Checkpoints of the originals: isl-org's two layouts in and out, and models from the hub."""

import errno
import functools
import http.server
import io
import json
import logging
import os
import pickle
import shutil
import threading
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_parity_transformers import images, make_peer

from torchdpt import DPTConfig, DPTModel

# As small as the layout allows: what its shapes do not say is that of the published networks.
BASE = dict(
    image_size=64,
    hidden_size=128,
    num_attention_heads=2,
    intermediate_size=75,
    num_hidden_layers=12,
    backbone_out_indices=[2, 5, 8, 11],
    neck_hidden_sizes=[15, 17, 21, 27],
    fusion_hidden_size=19,
    layer_norm_eps=1e-6,
)
LARGE = BASE | dict(num_hidden_layers=24, backbone_out_indices=[5, 11, 17, 23])
NETWORKS = {
    "base": BASE,
    "large": LARGE,
    "ignore": BASE | dict(readout_type="ignore"),
    "batch norm": BASE | dict(use_batch_norm_in_fusion_residual=True),
    "no qkv bias": BASE | dict(qkv_bias=False),
}
LAYOUTS = ["v1", "scriptable"]
# Of the largest value. The weights are the same, in float64: what is left is the order of sums, far below this.
TOLERANCE = 1e-6


@functools.cache
def peer(network):
    return make_peer(**NETWORKS[network])


def isl_org(theirs, layout):
    """The tensors of transformers' state dict under isl-org's names: convert_dpt_to_pytorch.py, backwards.

    Written out from the two projects' code, and knows nothing of torchdpt's tables.
    """
    tensors = {}
    left = dict(theirs)

    def move(old, new, leaves=("weight", "bias")):
        for leaf in leaves:
            if f"{old}.{leaf}" in left:
                tensors[f"{new}.{leaf}"] = left.pop(f"{old}.{leaf}").clone()

    tensors["pretrained.model.cls_token"] = left.pop("dpt.embeddings.cls_token")
    tensors["pretrained.model.pos_embed"] = left.pop("dpt.embeddings.position_embeddings")
    move("dpt.embeddings.patch_embeddings.projection", "pretrained.model.patch_embed.proj")
    move("dpt.layernorm", "pretrained.model.norm")
    for i in range(24):
        old, new = f"dpt.encoder.layer.{i}.", f"pretrained.model.blocks.{i}."
        for leaf in ("weight", "bias"):
            parts = [f"{old}attention.attention.{part}.{leaf}" for part in ("query", "key", "value")]
            if parts[0] in left:
                tensors[f"{new}attn.qkv.{leaf}"] = torch.cat([left.pop(part) for part in parts])
        move(old + "attention.output.dense", new + "attn.proj")
        move(old + "intermediate.dense", new + "mlp.fc1")
        move(old + "output.dense", new + "mlp.fc2")
        move(old + "layernorm_before", new + "norm1")
        move(old + "layernorm_after", new + "norm2")
    for i, n in enumerate((1, 2, 3, 4)):
        post = f"pretrained.act_postprocess{n}"
        read = f"{post}.0.project.0" if layout == "v1" else f"pretrained.readout_oper{n}.0.project.0"
        project, resize = ("3", "4") if layout == "v1" else ("0", "1")
        move(f"neck.reassemble_stage.readout_projects.{i}.0", read)
        move(f"neck.reassemble_stage.layers.{i}.projection", f"{post}.{project}")
        move(f"neck.reassemble_stage.layers.{i}.resize", f"{post}.{resize}")
        move(f"neck.convs.{i}", f"scratch.layer{n}_rn")
        old, new = f"neck.fusion_stage.layers.{4 - n}.", f"scratch.refinenet{n}."
        move(old + "projection", new + "out_conv")
        for unit in (1, 2):
            for conv in (1, 2):
                move(f"{old}residual_layer{unit}.convolution{conv}", f"{new}resConfUnit{unit}.conv{conv}")
                move(
                    f"{old}residual_layer{unit}.batch_norm{conv}",
                    f"{new}resConfUnit{unit}.bn{conv}",
                    ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
                )
    for i in (0, 2, 4):
        move(f"head.head.{i}", f"scratch.output_conv.{i}")
    assert not left
    width = tensors["pretrained.model.cls_token"].shape[-1]
    tensors["pretrained.model.head.weight"] = torch.randn(1000, width)
    tensors["pretrained.model.head.bias"] = torch.randn(1000)
    return tensors


def unused(tensors):
    prefixes = ("pretrained.model.norm.", "pretrained.model.head", "scratch.refinenet4.resConfUnit1.")
    return {name for name in tensors if name.startswith(prefixes)}


def write(tensors, path, form="plain"):
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "training":
        torch.save({"optimizer": {"state": {}}, "epoch": 3, "model": tensors}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    return path


@pytest.fixture(scope="module")
def base():
    return isl_org(peer("base").state_dict(), "v1")


# Reading


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_output_is_that_of_the_same_weights_in_transformers(tmp_path, network, layout):
    file = write(isl_org(peer(network).state_dict(), layout), tmp_path / "model.pt")
    ours = DPTModel.from_pretrained(file)
    for size in (64, 96):
        x = images(size, 2, torch.float64)
        want = peer(network)(x).predicted_depth
        assert want.std() > 0.1 * want.max()
        assert (ours(x).depth - want).abs().max() <= TOLERANCE * want.max()
    peer(network).save_pretrained(tmp_path / "theirs")
    theirs = DPTModel.from_pretrained(tmp_path / "theirs")
    assert theirs.config == ours.config
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", ["model.pt", "model.pth"])
@pytest.mark.parametrize("form", ["plain", "training", "before torch 1.6"])
def test_forms_of_pt_files(tmp_path, base, name, form, recwarn):
    model = DPTModel.from_pretrained(write(base, tmp_path / name, form))
    assert torch.equal(model.get_parameter("head.depth.conv1.weight"), base["scratch.output_conv.0.weight"])
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert not recwarn.list


def test_safetensors_file_without_config_is_recognised(tmp_path, base):
    file = write(base, tmp_path / "model.safetensors", "safetensors")
    want = DPTModel.from_pretrained(write(base, tmp_path / "x.pt"))
    for path in (file, tmp_path):
        model = DPTModel.from_pretrained(path)
        assert model.config == want.config
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in want.state_dict().items())


def test_encoder_weights_come_from_such_a_file_too(tmp_path, base):
    file = write(base, tmp_path / "model.safetensors", "safetensors")
    config = DPTModel.from_pretrained(file).config.replace(features=8)
    model = DPTModel(config, encoder_weights=file, dtype=torch.float64)
    assert torch.equal(model.get_parameter("encoder.pos_embed"), base["pretrained.model.pos_embed"])


def test_changing_loaded_tensors_leaves_the_file_alone(tmp_path, base):
    file = write(base, tmp_path / "model.pt")
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in DPTModel.from_pretrained(file).parameters():
            parameter.zero_()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("preset", "readout"), [("dpt_base", "project"), ("dpt_deit_base_distilled", "project"), ("dpt_large", "ignore")]
)
def test_published_sizes_are_recognised(tmp_path, preset, readout):
    config = DPTConfig.preset(preset).replace(readout=readout)
    model = DPTModel(config, device="meta", dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    zeros = model.save_pretrained(tmp_path, layout="isl-org")
    assert ("pretrained.model.head_dist.weight" in zeros) == config.distilled
    assert DPTModel.from_pretrained(tmp_path, device="meta").config == config


def test_ignored_tensors_are_reported_by_name(tmp_path, base, caplog):
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        DPTModel.from_pretrained(write(base, tmp_path / "model.pt"))
    assert set(caplog.messages[0].split(": ")[-1].split(", ")) == unused(base)
    assert len(unused(base)) == 2 + 2 + 4


def test_ignored_tensors_may_be_missing_or_of_any_shape(tmp_path, base):
    tensors = {name: tensor for name, tensor in base.items() if not name.startswith("pretrained.model.norm")}
    tensors["pretrained.model.head.weight"] = torch.zeros(3)
    DPTModel.from_pretrained(write(tensors, tmp_path / "model.pt"))


# Writing


@pytest.mark.parametrize("network", NETWORKS)
def test_round_trip_keeps_every_tensor_that_is_run(tmp_path, network):
    first = isl_org(peer(network).state_dict(), "v1")
    model = DPTModel.from_pretrained(write(first, tmp_path / "first.pt"))
    zeros = model.save_pretrained(tmp_path / "out", layout="isl-org")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt", "preprocessor_config.json"}
    again = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert again.keys() == first.keys()
    assert set(zeros) == unused(first)
    for name, tensor in first.items():
        assert again[name].shape == tensor.shape, name
        if name in zeros:
            assert not again[name].any(), name
        else:
            assert torch.equal(again[name], tensor), name
            assert again[name].dtype == tensor.dtype
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in again.values())
    assert DPTModel.from_pretrained(tmp_path / "out").config == model.config


@pytest.mark.parametrize("network", ["base", "batch norm"])
def test_transformers_to_isl_org_and_back(tmp_path, network):
    peer(network).save_pretrained(tmp_path / "0")
    DPTModel.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / "1", layout="isl-org")
    DPTModel.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2", layout="transformers")
    first, last = (load_file(tmp_path / n / "model.safetensors") for n in "02")
    assert first.keys() == last.keys()
    run = [n for n in first if "dpt.layernorm" not in n and "layers.0.residual_layer1" not in n]
    assert len(run) > 150
    assert all(torch.equal(first[name], last[name]) for name in run)


def narrow(**changes):
    return DPTConfig(image_size=32, width=64, heads=1, mlp_width=32, channels=(8, 8, 8, 8), features=8).replace(
        **changes
    )


def test_epsilon_of_transformers_config_is_no_obstacle(tmp_path):
    model = DPTModel(narrow(layer_norm_eps=1e-12))
    model.save_pretrained(tmp_path, layout="isl-org")
    assert DPTModel.from_pretrained(tmp_path).config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(heads=2), "a reader would take heads for 1, where this model has 2; use layout 'torchdpt'"),
        (dict(readout="add"), 'take readout for "ignore", where this model has "add"'),
        (dict(layer_norm_eps=1e-5), "take layer_norm_eps for 1e-06?, where this model has 1e-05?"),
        (dict(taps=(1, 5, 8, 11)), "take taps for"),
        (dict(depth=8, taps=(1, 3, 5, 7)), "the encoder has 8 blocks, and only for 12"),
        (dict(width=96), "width must be a multiple of 64"),
    ],
)
def test_what_a_reader_would_misread_is_refused(tmp_path, changes, message):
    model = DPTModel(narrow(**changes))
    with pytest.raises(ValueError, match="save_checkpoint: layout 'isl-org'.*" + message):
        model.save_pretrained(tmp_path / "out", layout="isl-org")
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model = DPTModel(narrow())
    model.save_pretrained(tmp_path, layout="isl-org")
    before = (tmp_path / "model.pt").read_bytes()

    def full(tensors, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"could not write '.*model\.pt' .*No space left on device"):
        model.save_pretrained(tmp_path, layout="isl-org")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "preprocessor_config.json"}
    assert (tmp_path / "model.pt").read_bytes() == before


def test_saving_beside_a_file_that_would_win_is_refused(tmp_path):
    model = DPTModel(narrow())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a model\.safetensors, which from_pretrained would read instead"):
        model.save_pretrained(tmp_path, layout="isl-org")


# What does not fit


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


# The hub

COMMIT = "1" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download uses, for one model."""

    folder = None

    def log_message(self, *args):
        pass

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        files = {file.name: file.read_bytes() for file in sorted(self.server.folder.iterdir())}
        if path.startswith(("/api/models/someone/model/tree/", "/api/models/someone/model/revision/")):
            kind, revision = path.split("/")[5:7]
            if revision not in ("main", "v1", COMMIT):
                return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": str(i)} for i, (n, b) in enumerate(files.items())
            ]
            info = {"id": "someone/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            body = json.dumps(tree if kind == "tree" else info).encode()
            return self.answer(body, Content_Type="application/json")
        if path.startswith("/someone/model/resolve/"):
            name = path.split("/")[-1]
            etag = str(sorted(files).index(name))
            body = files[name]
            return self.answer(body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        return self.answer(b"{}", 404, X_Error_Code="RepoNotFound", X_Error_Message="no such repository")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A loopback server; its folder holds what the model's repository holds."""
    import huggingface_hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.requests = tmp_path / "hub", []
    server.folder.mkdir()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(hub):
    model = DPTModel(narrow())
    model.save_pretrained(hub.folder)
    (hub.folder / "preprocessor_config.json").write_text("{}")
    (hub.folder / "pytorch_model.bin").write_text("never fetched")
    return model


def same(a, b):
    return a.config == b.config and all(torch.equal(b.state_dict()[n], t) for n, t in a.state_dict().items())


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_hub_model_is_fetched_once_and_kept(tmp_path, hub, model, revision):
    cache = tmp_path / "cache"
    loaded = DPTModel.from_pretrained("someone/model", revision=revision, cache_dir=cache)
    assert same(loaded, model)
    fetched = {path.name for path in cache.glob("**/snapshots/*/*")}
    assert fetched == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any("pytorch_model" in request for request in hub.requests)
    hub.requests.clear()
    again = DPTModel.from_pretrained("someone/model", revision=revision, cache_dir=cache, local_files_only=True)
    assert same(again, model)
    assert hub.requests == []


def test_cached_hub_model_loads_without_network(tmp_path, hub, model, monkeypatch):
    import huggingface_hub

    DPTModel.from_pretrained("someone/model", cache_dir=tmp_path / "cache")
    hub.shutdown()
    hub.server_close()
    assert same(DPTModel.from_pretrained("someone/model", cache_dir=tmp_path / "cache"), model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(DPTModel.from_pretrained("someone/model", cache_dir=tmp_path / "cache"), model)


def test_prefilled_cache_of_any_origin_loads(tmp_path):
    model = DPTModel(narrow())
    repository = tmp_path / "models--someone--model"
    model.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert same(DPTModel.from_pretrained("someone/model", cache_dir=tmp_path, local_files_only=True), model)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("someone/other", {}, "'someone/other' is neither a folder here nor a model on the hub that you may read"),
        ("someone/model", dict(revision="v9"), "the hub's 'someone/model' has no revision 'v9'"),
        ("someone/mo--del", {}, "'someone/mo--del' is neither a path that exists nor an id of the hub"),
        ("someone/model", dict(local_files_only=True), "'someone/model' is not whole in the hub's cache"),
        ("someone", {}, "'someone' does not exist; pass a folder .* or the id of a model on huggingface.co"),
        ("a/b/c", {}, "'a/b/c' does not exist"),
        ("./model", {}, r"'\./model' does not exist"),
        ("folder/model.pt", {}, r"'folder/model\.pt' does not exist"),
        ("folder/model.safetensors", {}, r"'folder/model\.safetensors' does not exist"),
    ],
)
def test_what_cannot_be_found_says_so(tmp_path, hub, model, name, options, message):
    with pytest.raises(ValueError, match=message):
        DPTModel.from_pretrained(name, cache_dir=tmp_path / "cache", **options)


def test_hub_model_without_safetensors_says_so(tmp_path, hub, model):
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the hub's 'someone/model' has no model\.safetensors"):
        DPTModel.from_pretrained("someone/model", cache_dir=tmp_path / "cache")


def test_no_network_says_so(tmp_path, hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match="no folder 'someone/model', and the hub could not be reached"):
        DPTModel.from_pretrained("someone/model", cache_dir=tmp_path / "cache")


def test_folder_wins_over_the_hub(tmp_path, hub, monkeypatch):
    model = DPTModel(narrow())
    model.save_pretrained(tmp_path / "someone" / "model")
    monkeypatch.chdir(tmp_path)
    assert same(DPTModel.from_pretrained("someone/model"), model)
    assert hub.requests == []
    shutil.rmtree(tmp_path / "someone")
