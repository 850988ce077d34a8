"""Facts of the readers: the publishers' layouts, tried on tiny files made here."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cifar import MissingDataError
from benchmarks.limits.datasets import Pixels, cifar10, cifar100, digits, fashion, tiny_imagenet


def write_batch(path: Path, labels: str, count: int, first: int) -> np.ndarray:
    """Write an official CIFAR file of random pixels with classes first, first + 1, ...; returns the pixels."""
    data = np.random.default_rng(first).integers(0, 256, (count, 3072), dtype=np.uint8)
    content = {b"data": data, labels.encode(): [first + index for index in range(count)], b"batch_label": b"made"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return data


def test_cifar10_is_read_from_the_official_batches(tmp_path: Path) -> None:
    """Five training files in order and one test file; planes are red, green, blue, row by row."""
    folder = tmp_path / "cifar-10-batches-py"
    rows = [write_batch(folder / f"data_batch_{number}", "labels", 2, 2 * number - 2) for number in range(1, 6)]
    write_batch(folder / "test_batch", "labels", 3, 4)
    split = cifar10(tmp_path)
    assert split.train.pixels.shape == (10, 3, 32, 32) and split.train.targets.tolist() == list(range(10))
    assert split.held_out.targets.tolist() == [4, 5, 6]
    assert split.train.pixels[2, 1, 0, 5] == rows[1][0, 1024 + 5]
    assert len(cifar10(folder).train) == 10


def test_cifar10_npz_files_of_the_folder_are_read_too(data_folder: Path) -> None:
    """The folder of data that the other benchmarks use holds all of CIFAR-10."""
    split = cifar10(data_folder)
    assert (len(split.train), len(split.held_out)) == (50_000, 10_000)
    inputs = split.train.first(2000).inputs()
    assert inputs.abs().mean(dim=(0, 2, 3)).max() < 1.2 and inputs.mean().abs() < 0.1


def test_cifar100_is_read_with_its_fine_classes(tmp_path: Path) -> None:
    """One file for each part, classes under fine_labels."""
    write_batch(tmp_path / "cifar-100-python" / "train", "fine_labels", 4, 90)
    write_batch(tmp_path / "cifar-100-python" / "test", "fine_labels", 2, 10)
    split = cifar100(tmp_path)
    assert split.train.targets.tolist() == [90, 91, 92, 93] and split.held_out.targets.tolist() == [10, 11]


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    """Only arrays are unpickled."""

    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return os.getcwd, ()

    path = tmp_path / "cifar-100-python" / "train"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({b"data": Harmful(), b"fine_labels": []}))
    with pytest.raises(pickle.UnpicklingError, match="Expected NumPy arrays"):
        cifar100(tmp_path)


def test_tiny_imagenet_is_read_from_its_layout(tmp_path: Path) -> None:
    """Classes in the order of wnids.txt; held-out ones from the annotations; grey images have three channels."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install '.[bench]'")
    root = tmp_path / "tiny-imagenet-200"
    names = ["n02", "n01"]
    for name in names:
        (root / "train" / name / "images").mkdir(parents=True)
        for number in range(2):
            grey = image.fromarray(np.full((64, 64), 100 * names.index(name) + 20, dtype=np.uint8))
            grey.save(root / "train" / name / "images" / f"{name}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(root / "val" / "images" / "val_0.JPEG")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t62\n")
    split = tiny_imagenet(tmp_path)
    assert split.train.targets.tolist() == [0, 0, 1, 1] and split.held_out.targets.tolist() == [1]
    assert split.train.pixels.shape == (4, 3, 64, 64) and split.train.pixels[0].float().mean().round() == 20
    assert float(split.train.inputs().mean()) == pytest.approx(0, abs=1e-4)
    assert float(split.train.inputs().std(unbiased=False)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("reader", "message"),
    [(cifar10, "cifar-10-batches-py"), (cifar100, "train"), (tiny_imagenet, "wnids.txt"), (fashion, "fashion_mnist")],
)
def test_what_is_missing_is_named(tmp_path: Path, reader: object, message: str) -> None:
    """An empty folder gives an error that says which file is expected and where."""
    with pytest.raises(MissingDataError, match=message) as error:
        reader(tmp_path)  # type: ignore[operator]
    assert str(tmp_path) in str(error.value)


def test_digits_parts_are_disjoint_and_fixed() -> None:
    """1,297 digits to train on, 500 held out, the same in every call."""
    split = digits()
    assert (len(split.train), len(split.held_out)) == (1297, 500)
    assert torch.equal(split.train.pixels, digits().train.pixels)


def test_batches_cover_the_examples_in_order() -> None:
    """Nothing is shuffled or augmented."""
    pixels = Pixels(torch.randn(7, 3), torch.arange(7))
    batches = pixels.batches(3)
    assert [len(targets) for _, targets in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), pixels.inputs())
