"""Checkpoints: found in a folder, a file or on the hub; read without running code; written whole or not at all."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from torchdpt import _C
from torchdpt.files import open_atomically

Path = str | os.PathLike[str]

# The model that comes with this package.
SHIPPED = "demo"

_PICKLES = (".pt", ".pth")
_HUB_FILES = ["config.json", "model.safetensors", "preprocessor_config.json", "classes.json"]


def find(
    path: Path, *, revision: str | None = None, cache_dir: Path | None = None, local_files_only: bool = False
) -> str:
    """The folder or file that `path` names; a hub id is fetched into the hub's cache. Arguments: `from_pretrained`."""
    name = os.fspath(path)
    if name == SHIPPED:
        return os.path.join(os.path.dirname(__file__), "weights", SHIPPED)
    if os.path.exists(name):
        return name
    is_file = name.endswith((".safetensors", *_PICKLES))
    if isinstance(path, str) and not is_file and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _download(name, revision, cache_dir, local_files_only)
    raise ValueError(
        f"from_pretrained: {name!r} does not exist; pass a folder with config.json and model.safetensors, a "
        ".safetensors, .pt or .pth file, the id of a model on huggingface.co, 'owner/name', or 'demo', which is shipped"
    )


def _download(name: str, revision: str | None, cache_dir: Path | None, local_files_only: bool) -> str:
    # `constants` by its own name: huggingface_hub's lazy attributes do not have it.
    from huggingface_hub import constants, errors, snapshot_download

    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            local_files_only=local_files_only,
            allow_patterns=_HUB_FILES,
        )
    except errors.HFValidationError as error:
        raise ValueError(
            f"from_pretrained: {name!r} is neither a path that exists nor an id of the hub: {error}"
        ) from None
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"from_pretrained: the hub's {name!r} has no revision {revision!r}") from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"from_pretrained: the hub gives {name!r} only to those who asked for it; ask on its page, then run "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"from_pretrained: {name!r} is neither a folder here nor a model on the hub that you may read; check the "
            "spelling, or `hf auth login` if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise ValueError(
                f"from_pretrained: there is no folder {name!r}, and {where} is not whole in the hub's cache, beyond "
                "which local_files_only and HF_HUB_OFFLINE do not look; load it once with network, or check cache_dir"
            ) from error
        raise _no_network(name, error) from error
    except Exception as error:  # the kinds of connection errors differ among versions of huggingface_hub
        raise _no_network(name, error) from error
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        raise ValueError(
            f"from_pretrained: the hub's {where} has no model.safetensors, the only file of weights that is fetched; "
            "download another one yourself and pass its path"
        )
    return folder


def _no_network(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"from_pretrained: there is no folder {name!r}, and the hub could not be reached for a model of that name "
        f"({type(error).__name__}); check the network and HF_ENDPOINT, or pass the path of a folder"
    )


def is_frozen(path: Path) -> bool:
    """Whether it is a file that `FrozenModel.save` wrote, perhaps damaged after its header."""
    try:
        return os.path.isfile(path) and _C.read_safetensors(os.fspath(path))[0].get("format") == "torchdpt frozen"
    except ValueError:
        return False


class Checkpoint(NamedTuple):
    """What a folder or file holds: its layout, the config's JSON, tensors by our names, and by their own names those
    that the network never runs."""

    layout: str
    config: str
    tensors: dict[str, Tensor]
    ignored: dict[str, Tensor]


def read(path: str, config: str | None = None) -> Checkpoint:
    """Read a folder or file. `config`, JSON, says what a file without one of its own cannot."""
    if is_frozen(path):
        raise ValueError(
            f"from_pretrained: {path!r} is a frozen model, whose tensors are folded to predict alone; FrozenModel.load "
            "reads it, and `torchdpt predict` and `torchdpt eval` take it as --model"
        )
    pickled = _pickle_in(path)
    if pickled is not None:
        return Checkpoint(*_C.recognize(read_state_dict(pickled, "from_pretrained"), pickled, config))
    return Checkpoint(*_C.load_checkpoint(path, config))


class EncoderWeights(NamedTuple):
    """The encoder in a file: tensors by our names, the names of the file that were not used, and the side of the grid
    that the position embedding was resized from, or 0."""

    tensors: dict[str, Tensor]
    unused: list[str]
    resized_from: int


def read_encoder(source: Path, config: str) -> EncoderWeights:
    """Read the encoder of a folder or file for a network of `config`, JSON."""
    wanted = "a folder with model.safetensors or model.pt, or a .safetensors, .pt or .pth file"
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"encoder_weights must be the path of {wanted}, got {source!r}")
    path = os.fspath(source)
    if not os.path.exists(path):
        raise ValueError(
            f"encoder_weights: {path!r} does not exist; pass the path of {wanted}. Models on the hub are not fetched "
            "here: download the file first"
        )
    if not os.path.isdir(path) and not path.endswith((".safetensors", *_PICKLES)):
        raise ValueError(f"encoder_weights: wanted {wanted}, got {path!r}")
    pickled = _pickle_in(path)
    if pickled is not None:
        return EncoderWeights(*_C.encoder_of(config, read_state_dict(pickled, "encoder_weights"), pickled))
    return EncoderWeights(*_C.load_encoder(config, path))


def _pickle_in(path: str) -> str | None:
    """The .pt or .pth file that `path` is, or that lies in it as model.pt with no safetensors beside."""
    if os.path.isdir(path):
        inside = os.path.join(path, "model.pt")
        alone = os.path.exists(inside) and not os.path.exists(os.path.join(path, "model.safetensors"))
        return inside if alone else None
    return path if path.endswith(_PICKLES) else None


def read_state_dict(path: str, option: str) -> dict[str, Tensor]:
    """The state dict in a .pt file; or in its entry "model" or "state_dict", where trainings put it.

    Only `torch.load(weights_only=True)` reads it, which makes tensors and containers and runs nothing. `option` is
    named in errors.
    """
    try:
        # Only the zip form can be mapped; files of torch before 1.6 have another.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{option}: could not read {path!r} ({error}); check it and its permissions") from error
    except Exception as error:  # of a damaged file anything may come
        raise ValueError(f"{option}: {path!r} {_complaint(path, error)}") from None
    for entry in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{option}: {path!r} must hold a state dict, got {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{option}: {path!r} must hold a state dict, names and tensors, got {type(tensor).__name__} "
                f"under {name!r}; save model.state_dict() alone"
            )
    return dict(loaded)


def _complaint(path: str, error: Exception) -> str:
    if os.path.getsize(path) == 0:
        return "is empty; fetch it again"
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return (
            f"is a pickle that wants to call {found[1]}, and was refused before it could: a state dict needs no such "
            "thing. If you trust whoever made it, save its state dict anew where it was made"
        )
    if "TorchScript" in str(error):
        return "is a TorchScript program; wanted a state dict"
    return f"is damaged or no state dict that torch.save wrote ({type(error).__name__}); fetch it again"


def save_state_dict(tensors: Mapping[str, Tensor], folder: str) -> None:
    """Write model.pt under a temporary name, then rename it."""
    path = os.path.join(folder, "model.pt")
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(os.path.join(folder, "model.safetensors")):
            raise ValueError(
                f"save_pretrained: {folder!r} holds a model.safetensors, which from_pretrained would read instead of "
                "model.pt; choose another folder"
            )
        # A tensor that is a part of another's memory would take all of it along.
        owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        owned = {n: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for n, t in owned.items()}
        with open_atomically(path) as file:
            torch.save(owned, file)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"save_pretrained: could not write {path!r} ({error}); check the disk and permissions"
        ) from error
