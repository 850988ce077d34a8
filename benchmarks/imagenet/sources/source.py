"""What every way of storing images answers: how many, of which classes, and the bytes of each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.grid.problems import DataFileError

try:
    from PIL import Image
except ImportError:  # an extra; `need_pillow` says so where it is needed
    Image = None  # type: ignore[assignment]

__all__ = ["LAYOUTS", "Source", "checked_labels", "decoded", "need_pillow"]

LAYOUTS = (
    "Expected layouts: (a) folders, DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG; (b) WebDataset shards, "
    "DIR/*train*.tar and DIR/*val*.tar with NAME.jpg beside NAME.cls; (c) parquet as Hugging Face has it, "
    "DIR/data/train-*.parquet and DIR/data/validation-*.parquet with columns image and label. Get ImageNet (ILSVRC "
    "2012) from https://image-net.org/download.php or, after accepting its terms, from "
    "https://huggingface.co/datasets/ILSVRC/imagenet-1k."
)


class Source(Protocol):
    """Encoded images of one part of the data.

    Attributes
    ----------
    labels
        Class indices, int64 ``(images,)``.
    groups
        Which images lie together and are best read together, int64 ``(images,)``.
    """

    labels: np.ndarray
    groups: np.ndarray

    def read(self, index: int) -> bytes:
        """Return the file of an image."""
        ...

    def place(self, index: int) -> tuple[Path, str]:
        """Return the file on disk that holds an image, and the image's name in it."""
        ...


def decoded(source: Source, index: int) -> Image.Image:
    """Return an image in RGB.

    Raises
    ------
    DataFileError
        If it is damaged; the message names the file.
    """
    need_pillow()
    try:
        return Image.open(io.BytesIO(source.read(index))).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        path, name = source.place(index)
        inside = f" Image {name} in it." if name else ""
        raise DataFileError(
            path, None, f"Expected an image that can be decoded. Got a damaged one ({error}).{inside} Replace it."
        ) from error


def checked_labels(labels: Sequence[int], places: Sequence[tuple[Path, str]], classes: int) -> np.ndarray:
    """Return labels as an array.

    Raises
    ------
    DataFileError
        If one is no class.
    """
    array = np.asarray(labels, dtype=np.int64)
    wrong = np.flatnonzero((array < 0) | (array >= classes))
    if wrong.size:
        path, name = places[int(wrong[0])]
        raise DataFileError(
            path,
            None,
            f"Expected a class of 0 ... {classes - 1}. Got {array[wrong[0]]} for {name}. Pass the number "
            "of classes with --classes.",
        )
    return array


def need_pillow() -> None:
    """Raise ImportError, with what to install, where Pillow is missing."""
    if Image is None:
        raise ImportError(
            "Expected Pillow, which decodes images. Got none. Install it: pip install 'structprune[bench]'."
        )
