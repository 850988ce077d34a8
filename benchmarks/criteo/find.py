"""Find out which of Criteo's layouts the user's files have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar import MissingDataError
from benchmarks.criteo.layouts import CRITEO_X1, KAGGLE, LAYOUTS, TERABYTE, Layout
from benchmarks.criteo.recipes import Numbers, Preprocessing
from benchmarks.criteo.splits import ByFile, InOrder, LastFile, Scattered, Split

__all__ = ["default_preprocessing", "default_split", "found_files", "instructions"]

WHERE = {
    "criteo_x1": "https://huggingface.co/datasets/reczoo/Criteo_x1 (what the paper trains on)",
    "kaggle": "https://go.criteo.net/criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
    "terabyte": "https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset/",
}


def instructions() -> str:
    """Where to get the rows, and what is expected of them."""
    return "\n".join(f"  {layout.name}: {layout.about} Get it from {WHERE[layout.name]}" for layout in LAYOUTS)


def found_files(data: Path, layout: str | None = None) -> tuple[Layout, tuple[Path, ...]]:
    """Return the layout and its files, in order.

    Parameters
    ----------
    data
        A folder with files of the usual names, plain or ``.gz``, or one file of rows.
    layout
        Needed for a file of another name.

    Raises
    ------
    MissingDataError
        If there are no such files; the message says what is expected and where to get it.
    """
    asked = [one for one in LAYOUTS if layout in (None, one.name)]
    if data.is_file():
        stem = data.name.removesuffix(".gz")
        fitting = asked if layout is not None else [one for one in asked if stem in one.files]
        if not fitting:
            raise MissingDataError(
                f"Expected a file of a known name. Got {data}. Name its layout with --layout:\n{instructions()}"
            )
        return fitting[0], (data,)
    for one in asked:
        files = [path for name in one.files if (path := _plain_or_packed(data / name)) is not None]
        complete = len(files) == len(one.files) or (one is TERABYTE and len(files) > 1)
        if complete:
            return one, tuple(files)
        if files:
            there = {path.name.removesuffix(".gz") for path in files}
            absent = [name for name in one.files if name not in there]
            raise MissingDataError(
                f"Expected {', '.join(one.files[:3])}{' ...' if len(one.files) > 3 else ''} in {data}. Got no "
                f"{', '.join(absent[:3])}. {one.about}"
            )
    what = "an empty or other folder" if data.is_dir() else "no such file or folder"
    raise MissingDataError(f"Expected Criteo's rows in {data}. Got {what}. Any of these will do:\n{instructions()}")


def _plain_or_packed(path: Path) -> Path | None:
    return next((one for one in (path, path.with_name(path.name + ".gz")) if one.is_file()), None)


def default_split(layout: Layout, files: Sequence[Path], rows: tuple[float, float] | None, seed: int) -> Split:
    """Return how rows are split: as the layout is published, or the last ``rows`` (validation, test) in order."""
    if rows is not None:
        return InOrder(*rows)
    if layout is CRITEO_X1:
        return ByFile()
    return LastFile() if layout is TERABYTE and len(files) > 1 else Scattered(0.1, 0.1, seed)


def default_preprocessing(layout: Layout) -> Preprocessing:
    """Return the recipe that the layout is usually prepared by."""
    if layout is CRITEO_X1:
        return Preprocessing(Numbers.AS_THEY_ARE, min_count=1)
    return Preprocessing(Numbers.BUCKETS if layout is KAGGLE else Numbers.LOG, min_count=10)
