"""Rows of the pruning-limit benchmark and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.limits.truth import Point
from benchmarks.solvers.record import plain
from structprune.errors import FileFormatError
from structprune.files import write_atomically
from structprune.limit import Limit

__all__ = ["Retrained", "Row", "read_rows", "write_rows"]

FILE = "rows.json"


@dataclass(frozen=True)
class Retrained:
    """What one way of retraining reaches.

    Attributes
    ----------
    label
        How long survivors were trained.
    points
        Retrained supports, the largest first.
    truth
        Position of the smallest one whose loss is within epsilon: an upper estimate of the least size.
    failed
        Position of the largest smaller one, which is not; None if there is none.
    seconds
        To retrain all these points.
    """

    label: str
    points: tuple[Point, ...]
    truth: int
    failed: int | None
    seconds: float

    def at(self, position: int | None) -> Point | None:
        """The retrained support at a position."""
        return next((point for point in self.points if point.position == position), None)

    @property
    def size(self) -> Point:
        """The smallest support within epsilon."""
        return next(point for point in self.points if point.position == self.truth)


@dataclass(frozen=True)
class Row:
    """One network, one kind of structures, one epsilon.

    Attributes
    ----------
    task, about
        The task's name, and in words.
    structures
        'weights', 'blocks 1x8', 'channels' ...
    asked
        Epsilon as it was asked for: nats or 'batch_std'.
    settings
        All else that decides the figures; rows with equal settings are the same measurement.
    limit
        Everything that `structprune.limit` says.
    truths
        What retraining reaches, in several ways; empty where it was not asked for.
    notes
        What a reader must know.
    """

    task: str
    about: str
    structures: str
    asked: float | str
    settings: Mapping[str, Any]
    limit: Limit
    truths: tuple[Retrained, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    commit: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def same(self, task: str, structures: str, settings: Mapping[str, Any]) -> bool:
        """Whether the row measured these structures of a task with these settings."""
        return (self.task, self.structures, plain(self.settings)) == (task, structures, plain(settings))


def write_rows(folder: Path, rows: Sequence[Row]) -> Path:
    """Write ``rows.json``, whole or not at all; one line per row, for readable differences."""
    contents = [{**asdict(row), "limit": json.loads(row.limit.to_json())} for row in rows]
    lines = [json.dumps(plain(content), ensure_ascii=False, allow_nan=False) for content in contents]
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(folder / FILE, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def read_rows(folder: Path) -> list[Row]:
    """Read ``rows.json`` back; empty if there is none.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [
            Row(
                **{
                    **content,
                    "limit": Limit.from_json(json.dumps(content["limit"])),
                    "truths": tuple(_retrained(one) for one in content["truths"]),
                    "notes": tuple(content["notes"]),
                }
            )
            for content in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError, KeyError, FileFormatError) as error:
        raise ValueError(f"Expected rows of limits in {path}. Got something else ({error}). Remove it.") from error


def _retrained(content: Mapping[str, Any]) -> Retrained:
    return Retrained(**{**content, "points": tuple(Point(**point) for point in content["points"])})
