"""Which photographs the command predicts for, what their results are called, and what a folder of results remembers."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from torchdpt.files import write_atomically
from torchdpt.image import IMAGE_ENDINGS

MANIFEST = ".torchdpt.json"


class Photograph(NamedTuple):
    path: Path  # as the user writes it
    source: Path  # absolute
    folder: Path  # absolute; the results mirror what is below it


@dataclasses.dataclass
class Entry:
    """What is known of the results of one name: of which photograph, made how, and their files, relative to --out."""

    source: str
    folder: str
    settings: dict[str, Any]
    files: list[str]


# --- photographs ---


def find_photographs(inputs: list[str], out: Path) -> list[Photograph]:
    """Files, images below folders, and what globs match; each once, in order.

    Of folders and globs, what is below `out` is left out, and of folders what is hidden, too.

    Raises:
        ValueError: if a folder or glob gives no photograph.
    """
    found: dict[Path, Photograph] = {}
    results = Path(os.path.abspath(out))
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            folder = path
            files = sorted(file for file in path.rglob("*") if _is_image(file, path))
            nothing = f"no images in this folder (wanted files ending in {', '.join(sorted(IMAGE_ENDINGS))})"
        elif not path.exists() and glob.has_magic(text):
            folder = Path(*_fixed_part(path))
            files = sorted(Path(match) for match in glob.glob(text, recursive=True) if os.path.isfile(match))
            nothing = "matches no file"
        else:  # that it may be missing is this file's error
            source = Path(os.path.abspath(path))
            found.setdefault(source, Photograph(path, source, source.parent))
            continue
        sources = {file: Path(os.path.abspath(file)) for file in files}
        wanted = [file for file in files if results not in sources[file].parents]
        if files and not wanted:
            raise ValueError(f"{text}: all its images are below {out}, the folder of the results; give another --out")
        if not files:
            raise ValueError(f"{text}: {nothing}")
        for file in wanted:
            found.setdefault(sources[file], Photograph(file, sources[file], Path(os.path.abspath(folder))))
    return list(found.values())


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in IMAGE_ENDINGS and not hidden and file.is_file()


def _fixed_part(pattern: Path) -> list[str]:
    parts = list(pattern.parts[:-1])
    magic = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    return parts[: magic[0]] if magic else parts


# --- names ---


def name_results(photographs: list[Photograph], entries: dict[str, Entry]) -> list[str]:
    """The path of each photograph's results below --out, without ending. No two are equal.

    A name that an earlier run gave to the same argument stays; one that it gave to another photograph is taken.
    """
    earlier = {(entry.source, entry.folder): name for name, entry in entries.items()}
    names = [earlier.get((str(photo.source), str(photo.folder))) for photo in photographs]
    taken = set(entries)
    plain = [photo.source.relative_to(photo.folder).with_suffix("") for photo in photographs]
    # Folders whose results would meet are told apart by their own names.
    folders: dict[Path, set[Path]] = {}
    for path, photo in zip(plain, photographs, strict=True):
        folders.setdefault(path, set()).add(photo.folder)
    meeting = {folder for several in folders.values() if len(several) > 1 for folder in several}
    wanted = [
        str(photo.folder.name / path if photo.folder in meeting else path)
        for path, photo in zip(plain, photographs, strict=True)
    ]
    count = Counter(wanted)
    for attempt in ("plain", "with endings"):
        for i, photo in enumerate(photographs):
            if names[i] is not None or (attempt == "plain" and (count[wanted[i]] > 1 or wanted[i] in taken)):
                continue
            name = wanted[i]
            while name in taken or (name == wanted[i] and count[name] > 1):
                name += f"_{photo.source.suffix[1:]}"
            names[i] = name
            taken.add(name)
    return [name for name in names if name is not None]


# --- what a folder of results remembers ---


def prepare(out: Path) -> dict[str, Entry]:
    """Create the folder of results if need be, and read what it remembers.

    Raises:
        ValueError: if nothing can be written there, or its memory is damaged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out {out}: results cannot be written there ({error.strerror})") from error
    path = out / MANIFEST
    if not path.exists():
        return {}
    try:
        return {name: Entry(**entry) for name, entry in json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged; delete it, and all results are made anew") from error


def remember(out: Path, entries: dict[str, Entry]) -> None:
    values = {name: dataclasses.asdict(entry) for name, entry in entries.items()}
    write_atomically(out / MANIFEST, json.dumps(values, indent=1).encode())


def is_done(out: Path, entry: Entry | None, settings: dict[str, Any], files: list[str]) -> bool:
    """Whether these files are there, whole, and were made with these settings."""
    if entry is None or entry.settings != settings or not set(files) <= set(entry.files):
        return False
    return all((out / file).is_file() and (out / file).stat().st_size > 0 for file in files)


def forget(out: Path, entries: dict[str, Entry], jobs: dict[str, list[str]], settings: dict[str, Any]) -> None:
    """Before these files are written again: they are no results until they are noted. The names stay taken."""
    changed = False
    for name, files in jobs.items():
        entry = entries.get(name)
        if entry is not None:
            kept = [file for file in entry.files if entry.settings == settings and file not in files]
            changed = changed or kept != entry.files
            entry.files, entry.settings = kept, settings
    if changed:
        remember(out, entries)


def note(
    entries: dict[str, Entry], name: str, photograph: Photograph, settings: dict[str, Any], files: list[str]
) -> None:
    others = entries[name].files if name in entries else []
    entries[name] = Entry(str(photograph.source), str(photograph.folder), settings, [*others, *files])
