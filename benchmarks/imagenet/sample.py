"""Write the real JPEG images of the folder of data as folders of classes: samples to see that everything works.

    python -m benchmarks.imagenet.sample --to out/images

makes ``imagenette`` (2,000 training images of 10 classes, every fifth of a class for validation), ``val20c`` (1,000
validation images of 20 classes) and ``classes.txt``, with which ``val20c`` is judged among all 1,000 classes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cifar import MissingDataError, data_folder, read
from structprune.files import write_atomically

__all__ = ["write_sample"]

CLASSES = 1000
FIFTH = 5


def jpegs(folder: Path, name: str) -> Iterator[tuple[bytes, int]]:
    """Yield the images of an archive with their classes."""
    arrays = read(folder, name)
    offsets, blob = arrays["offset"], arrays["blob"]
    for index, label in enumerate(arrays["label"]):
        yield blob[offsets[index] : offsets[index + 1]].tobytes(), int(label)


def write_sample(folder: Path, to: Path, *, per_class: int | None = None) -> None:
    """Write both samples below ``to``.

    Parameters
    ----------
    folder
        Of data.
    to
        Made where it is missing.
    per_class
        Most images of a class; all by default.

    Raises
    ------
    MissingDataError
        If an archive is missing.
    """
    for archive, sample in (("imagenette_train2000_160.npz", "imagenette"), ("imagenet_val20c_160.npz", "val20c")):
        seen: Counter[int] = Counter()
        for content, label in jpegs(folder, archive):
            number = seen[label]
            if per_class is not None and number >= per_class:
                continue
            seen[label] += 1
            part = "train" if sample == "imagenette" and number % FIFTH != FIFTH - 1 else "val"
            path = to / sample / part / f"{label:04d}" / f"{number:04d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
    names = "\n".join(f"{label:04d}" for label in range(CLASSES)) + "\n"
    write_atomically(to / "classes.txt", names.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.imagenet.sample", description=__doc__)
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--to", type=Path, required=True, help="the folder to write to")
    options = made.parse_args(arguments)
    try:
        write_sample(data_folder(options.data), options.to)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
