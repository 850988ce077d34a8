"""Images in a folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.grid.problems import DataFileError
from benchmarks.imagenet.sources.source import LAYOUTS

__all__ = ["FolderSource", "class_folders"]

ENDINGS = (".jpg", ".jpeg", ".png")


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders below, sorted, which number the classes."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


class FolderSource:
    """``folder/CLASS/image.JPEG``; classes are numbered in the order of ``classes``.

    Raises
    ------
    DataFileError
        If a folder is no class, or there is no image.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        number = {name: index for index, name in enumerate(classes)}
        found = class_folders(folder)
        unknown = [name for name in found if name not in number]
        if unknown:
            raise DataFileError(
                folder / unknown[0],
                None,
                f"Expected one of the {len(classes)} classes {', '.join(classes[:3])} ... "
                f"Got {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}. Rename or remove the folder, or "
                "list all classes, a line each, in a file and pass it as --classes.",
            )
        self.paths = [
            path for name in found for path in sorted((folder / name).iterdir()) if path.suffix.lower() in ENDINGS
        ]
        if not self.paths:
            loose = sum(path.suffix.lower() in ENDINGS for path in folder.iterdir())
            hint = f" It has {loose:,} images outside of class folders: sort them into folders." if loose else ""
            raise DataFileError(folder, None, f"Expected a folder of images for each class. Got none.{hint} {LAYOUTS}")
        self.labels = np.array([number[path.parent.name] for path in self.paths], dtype=np.int64)
        self.groups = np.arange(len(self.paths), dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return the file."""
        return self.paths[index].read_bytes()

    def place(self, index: int) -> tuple[Path, str]:
        """Return the file; it holds nothing else."""
        return self.paths[index], ""
