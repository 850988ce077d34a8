"""WebDataset shards: tar files in which NAME.jpg stands beside NAME.cls."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.grid.problems import DataFileError
from benchmarks.imagenet.sources.source import checked_labels

__all__ = ["ShardSource"]

ENDINGS = ("jpg", "jpeg", "png")


class ShardSource:
    """Images in tar files, read in place: a scan of the headers finds where each one lies.

    Raises
    ------
    DataFileError
        If a shard is cut short, or an image has no class or one that does not exist.
    """

    def __init__(self, shards: Sequence[Path], classes: int) -> None:
        self.shards = list(shards)
        self.spans: list[tuple[int, int, int]] = []
        self.names: list[str] = []
        labels: list[int] = []
        for number, shard in enumerate(self.shards):
            for name, span, label in scanned(shard):
                self.spans.append((number, *span))
                self.names.append(name)
                labels.append(label)
        places = [self.place(index) for index in range(len(self.names))]
        self.labels = checked_labels(labels, places, classes)
        self.groups = np.arange(len(self.names), dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return the image's bytes."""
        number, offset, size = self.spans[index]
        with self.shards[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def place(self, index: int) -> tuple[Path, str]:
        """Return the shard and the image's name."""
        return self.shards[self.spans[index][0]], self.names[index]


def scanned(shard: Path) -> list[tuple[str, tuple[int, int], int]]:
    """Return name, (offset, size) and class of every image of a shard, in order.

    Raises
    ------
    DataFileError
        If the shard is cut short, or an image has no class.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if ending.lower() in ENDINGS:
                    images[key] = member.offset_data, member.size
                elif ending == "cls":
                    content = archive.extractfile(member)
                    labels[key] = int(content.read()) if content is not None else -1
            whole = _ends(shard, archive.offset)
    except (tarfile.TarError, ValueError, OSError) as error:
        raise DataFileError(
            shard,
            None,
            f"Expected a whole tar file of NAME.jpg and NAME.cls. Got something else ({error}). Fetch it again.",
        ) from error
    if not whole:
        raise DataFileError(shard, None, "Expected a whole tar file. Got one that breaks off. Fetch it again.")
    bare = [key for key in images if key not in labels]
    if bare or not images:
        raise DataFileError(
            shard,
            None,
            f"Expected NAME.cls beside every NAME.jpg. Got none for {bare[:3]} of {len(images)} images. "
            "Write the class's number, from 0, into it.",
        )
    return [(key, span, labels[key]) for key, span in images.items()]


def _ends(shard: Path, offset: int) -> bool:
    """Whether a tar file ends as one should after its last member, with a block of zeros."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
