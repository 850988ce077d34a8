"""Find out how a folder stores its images, and open its training and validation parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cifar import MissingDataError
from benchmarks.grid.problems import DataFileError
from benchmarks.imagenet.sources.folder import FolderSource, class_folders
from benchmarks.imagenet.sources.parquet import ParquetSource
from benchmarks.imagenet.sources.shards import ShardSource
from benchmarks.imagenet.sources.source import LAYOUTS, Source

__all__ = ["IMAGENET_CLASSES", "ImageData", "open_images"]

IMAGENET_CLASSES = 1000
IMAGENET_TRAIN, IMAGENET_VALIDATION = 1_281_167, 50_000
TRAIN, VALIDATION = ("train",), ("val", "validation")


@dataclass(frozen=True)
class ImageData:
    """Training and validation images.

    Attributes
    ----------
    train
        None where only evaluation is asked for and there are none.
    validation
        The images that judge.
    classes
        Names, or numbers where the layout has no names.
    """

    train: Source | None
    validation: Source
    classes: tuple[str, ...]

    @property
    def sample(self) -> str:
        """What must be said beside every figure; empty for all of ImageNet."""
        train = 0 if self.train is None else len(self.train.labels)
        found = len(self.validation.labels)
        whole = found == IMAGENET_VALIDATION and train in (0, IMAGENET_TRAIN)
        if whole and len(self.classes) == IMAGENET_CLASSES:
            return ""
        shown = len(np.unique(self.validation.labels))
        return (
            f"{train:,} training images and {found:,} validation images of {shown} of {len(self.classes)} classes, "
            "which is not ImageNet"
        )


def open_images(folder: Path, classes: tuple[str, ...] | None = None, *, train: bool = True) -> ImageData:
    """Open a folder of images in any of the layouts.

    Parameters
    ----------
    folder
        As the user names it.
    classes
        Names in the order of the network's outputs; by default the training folders, sorted, or as many numbers as
        ImageNet has classes.
    train
        Whether training images are needed.

    Raises
    ------
    MissingDataError
        If the folder has none of the layouts; the message says what is expected and where to get it.
    DataFileError
        If a file or folder is wrong.
    """
    if not folder.is_dir():
        raise MissingDataError(f"Expected a folder of images. Got {folder}, which is none. {LAYOUTS}")
    for opened in (_folders, _shards, _parquet):
        found = opened(folder, classes, train)
        if found is not None:
            return found
    raise MissingDataError(f"Expected images in {folder}. Got none in any layout. {LAYOUTS}")


def _folders(folder: Path, classes: tuple[str, ...] | None, train: bool) -> ImageData | None:
    parts = [next((folder / name for name in names if (folder / name).is_dir()), None) for names in (TRAIN, VALIDATION)]
    training, validation = parts
    if validation is None or (train and training is None):
        if training is None and validation is None:
            return None
        raise MissingDataError(
            f"Expected {folder}/train and {folder}/val. Got no {'train' if training is None else 'val'}. {LAYOUTS}"
        )
    if any(path.suffix == ".parquet" for path in validation.iterdir()):
        return None
    names = classes or class_folders(training if training is not None else validation)
    if not names:
        raise DataFileError(training or validation, None, f"Expected a folder for each class. Got none. {LAYOUTS}")
    own = None if training is None or not train else FolderSource(training, names)
    return ImageData(own, FolderSource(validation, names), names)


def _shards(folder: Path, classes: tuple[str, ...] | None, train: bool) -> ImageData | None:
    found = sorted(folder.rglob("*.tar"))
    if not found:
        return None
    training, validation = _split(folder, found, train)
    names = classes or _numbers()
    own = ShardSource(training, len(names)) if train else None
    return ImageData(own, ShardSource(validation, len(names)), names)


def _parquet(folder: Path, classes: tuple[str, ...] | None, train: bool) -> ImageData | None:
    found = sorted(folder.rglob("*.parquet"))
    if not found:
        return None
    training, validation = _split(folder, found, train)
    names = classes or _numbers()
    own = ParquetSource(training, len(names)) if train else None
    return ImageData(own, ParquetSource(validation, len(names)), names)


def _numbers() -> tuple[str, ...]:
    return tuple(str(number) for number in range(IMAGENET_CLASSES))


def _split(folder: Path, files: list[Path], train: bool) -> tuple[list[Path], list[Path]]:
    training = [path for path in files if "train" in path.name]
    validation = [path for path in files if "val" in path.name]
    if not validation or (train and not training):
        missing = "validation" if not validation else "training"
        raise MissingDataError(
            f"Expected files called *train* and *val* in {folder}. Got none for {missing}. {LAYOUTS}"
        )
    return training, validation
