"""Write the 10,000 real rows of the folder of data as Kaggle's train.txt: a sample to see that everything works.

python -m benchmarks.criteo.sample --to out/criteo_10k/train.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.cifar import MissingDataError, data_folder, read
from benchmarks.criteo.layouts import MISSING_INT
from structprune.files import write_atomically

__all__ = ["write_sample"]

FILE = "criteo_10k.npz.xz"


def write_sample(folder: Path, path: Path, rows: int | None = None) -> Path:
    """Write the first labelled rows of ``criteo_10k.npz.xz`` in the layout of train.txt.

    Parameters
    ----------
    folder
        Of data.
    path
        The file; its folder must exist.
    rows
        How many; all by default.

    Raises
    ------
    MissingDataError
        If the folder has no such file.
    """
    arrays = read(folder, FILE)
    lines = []
    for label, numbers, keys in zip(arrays["label"][:rows], arrays["dense"], arrays["cat"], strict=False):
        cells = ["" if number == MISSING_INT else str(number) for number in numbers]
        cells += ["" if key == 0 else f"{key:08x}" for key in np.asarray(keys)]
        lines.append("\t".join([str(label), *cells]))
    return write_atomically(path, ("\n".join(lines) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.criteo.sample", description=__doc__)
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--to", type=Path, required=True, help="the file to write")
    options = made.parse_args(arguments)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    try:
        print(write_sample(data_folder(options.data), options.to))
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
