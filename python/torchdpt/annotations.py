"""Values from files and command lines, against the types that the code is annotated with."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: of classes, unions, literals and tuples, and None.

    An int is a float, too, and True is no number.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(is_of(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple and isinstance(value, tuple):
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        return len(value) == len(parts) and all(map(is_of, value, parts))
    kind = origin or hint
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def name_of(hint: Any) -> str:
    """An annotated type, as the code writes it."""
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
