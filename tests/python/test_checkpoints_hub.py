"""Models of the hub."""

import http.server
import json
import shutil
import threading

import pytest
import torch
from checkpoints import narrow

from torchdpt import DPTModel

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
        ("someone", {}, "'someone' does not exist; pass a folder .* the id of a model on huggingface.co"),
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
