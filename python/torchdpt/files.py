"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name in the same folder; renamed at the end: a reader never sees half a file.

    Raises:
        ValueError: if there is no such folder.
        OSError: if it cannot be written; what was at `path` stays.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r}; create it first")
    temporary = path.with_name(f".dpt-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # whose name, if any, is the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write all of a file; as `open_atomically`."""
    with open_atomically(path) as file:
        file.write(data)
    return Path(path)
