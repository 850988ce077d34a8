"""Frozen values as JSON: strict, with a format's name and version, and with numbers that JSON lacks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from structprune.errors import FileFormatError

__all__ = ["Format"]

T = TypeVar("T")


@dataclass(frozen=True)
class Format:
    """How one kind of value is written.

    Attributes
    ----------
    name
        What the file calls itself, such as 'structprune-report'.
    version
        Of the fields; only files of this version are read.
    noun
        What messages call it: 'report', 'limit'.
    """

    name: str
    version: int
    noun: str

    def write(self, value: Any) -> str:
        """Return a dataclass as JSON text."""
        content = {"format": self.name, "format_version": self.version, **encoded(dataclasses.asdict(value))}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def read(self, source: str | Path, build: Callable[[dict[str, Any]], T]) -> T:
        """Return what ``build`` makes of the fields in JSON text, or in the file of that name; lists are tuples.

        Raises
        ------
        FileFormatError
            If it is truncated, something else, of another version, or not what ``build`` needs.
        """
        is_text = isinstance(source, str) and source.lstrip()[:1] in ("{", "[")
        where = "the text" if is_text else str(source)
        text = source if is_text and isinstance(source, str) else Path(source).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise FileFormatError(
                f"Expected a whole {self.noun} in {where}. Got broken JSON ({error}). Save the {self.noun} again."
            ) from error
        if not isinstance(content, dict) or content.pop("format", None) != self.name:
            raise FileFormatError(
                f"Expected a {self.noun} of structprune in {where}. Got something else. Name its file."
            )
        version = content.pop("format_version", None)
        if version != self.version:
            raise FileFormatError(
                f"Expected version {self.version} of the {self.noun} format in {where}. Got {version}. "
                "Read it with the release of structprune that wrote it."
            )
        try:
            return build(decoded(content))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"Expected the fields of a {self.noun} in {where}. Got others ({error}). Save the {self.noun} again."
            ) from error


def encoded(value: Any) -> Any:
    """Return the value in JSON's terms; numbers that JSON lacks become ``{"float": "inf"}``."""
    if isinstance(value, Mapping):
        return {str(key): encoded(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [encoded(part) for part in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def decoded(value: Any) -> Any:
    """Undo :func:`encoded`; lists become tuples."""
    if isinstance(value, dict):
        if value.keys() == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {key: decoded(part) for key, part in value.items()}
    return tuple(decoded(part) for part in value) if isinstance(value, list) else value
