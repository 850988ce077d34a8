"""Checkpoints of a training run: written whole, checked when read, and refused where they belong to another run."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from structprune.files import write_atomically

__all__ = ["CheckpointError", "Checkpoints"]

MAGIC = b"structprune training checkpoint 1\n"
NAME = re.compile(r"step-(\d{9})\.ckpt")
KEPT = 2  # so that a damaged one has a predecessor


class CheckpointError(ValueError):
    """A checkpoint cannot be used: all copies are damaged, or it belongs to a run with other settings."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in a folder of its own; the last two are kept.

    Attributes
    ----------
    folder
        Made where it is missing.
    settings
        What decides the run. A checkpoint of other settings is refused.
    """

    folder: Path
    settings: Mapping[str, str]

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a state of tensors, numbers, texts and nests of these; older states but one go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"settings": dict(self.settings), "step": step, "state": dict(state)}, buffer)
        payload = buffer.getvalue()
        write_atomically(self.folder / f"step-{step:09d}.ckpt", MAGIC + _digest(payload) + b"\n" + payload)
        for path in self.paths()[KEPT:]:
            path.unlink(missing_ok=True)

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """Return the step and state of the newest whole checkpoint, or None where there is none yet.

        A damaged one is passed over with a warning.

        Raises
        ------
        CheckpointError
            If every checkpoint is damaged, or the newest whole one belongs to a run with other settings.
        """
        damaged = []
        for path in self.paths():
            content = path.read_bytes()
            head, digest, payload = content[: len(MAGIC)], content[len(MAGIC) :][:64], content[len(MAGIC) + 65 :]
            if head != MAGIC or digest != _digest(payload):
                damaged.append(path.name)
                continue
            if damaged:
                warnings.warn(
                    f"{', '.join(damaged)} in {self.folder} is damaged; going on from {path.name}", stacklevel=2
                )
            found = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
            self._check(found["settings"], path)
            return int(found["step"]), found["state"]
        if damaged:
            raise CheckpointError(
                f"Expected a whole checkpoint in {self.folder}. Got only damaged ones: {', '.join(damaged)}. "
                "Restore one from a copy, or delete them to train from the start."
            )
        return None

    def paths(self) -> list[Path]:
        """The checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)

    def _check(self, settings: Mapping[str, str], path: Path) -> None:
        for name in sorted({*settings, *self.settings}):
            theirs, ours = settings.get(name, "nothing"), self.settings.get(name, "nothing")
            if theirs != ours:
                raise CheckpointError(
                    f"Expected a checkpoint of this run, with {name} {ours}. Got {path}, with {theirs}. "
                    "Go on with the settings that it was made with, or pass another folder."
                )


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()
