"""Tests of image sources and loading: three layouts give the same images, and damage is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow, of the extra bench")

from PIL import Image

from benchmarks.cifar import MissingDataError
from benchmarks.grid.loading import order
from benchmarks.grid.problems import DataFileError
from benchmarks.imagenet.augment import Pixels, PlainCrops
from benchmarks.imagenet.loading import Images, evaluation_loader, training_loader
from benchmarks.imagenet.sources.find import open_images
from benchmarks.imagenet.sources.source import decoded

CLASSES = ("n01", "n02", "n03")


def jpegs(count: int, seed: int) -> list[bytes]:
    """Return small encoded images."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pixels = np.kron(rng.integers(0, 255, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="JPEG")
        found.append(stream.getvalue())
    return found


def as_folders(folder: Path) -> Path:
    """Write images as a folder per class; image i has class i modulo 3."""
    for part, count, seed in (("train", 12, 0), ("val", 6, 1)):
        for number, content in enumerate(jpegs(count, seed)):
            path = folder / part / CLASSES[number % 3] / f"{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def as_shards(folder: Path) -> Path:
    """Write the same images as tar files of up to five."""
    folder.mkdir()
    for part, count, seed in (("train", 12, 0), ("val", 6, 1)):
        images = jpegs(count, seed)
        for shard in range(0, count, 5):
            with tarfile.open(folder / f"imagenet-{part}-{shard:03d}.tar", "w") as archive:
                for number in range(shard, min(shard + 5, count)):
                    for ending, content in (("jpg", images[number]), ("cls", str(number % 3).encode())):
                        member = tarfile.TarInfo(f"./a.b/{number:03d}.{ending}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    return folder


def as_parquet(folder: Path) -> Path:
    """Write the same images as Hugging Face does, row groups of four."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra bench")
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True)
    for part, count, seed in (("train", 12, 0), ("validation", 6, 1)):
        rows = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(jpegs(count, seed))]
        table = pyarrow.table({"image": rows, "label": [number % 3 for number in range(count)]})
        parquet.write_table(table, folder / "data" / f"{part}-00000-of-00001.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("layout", [as_folders, as_shards, as_parquet])
def test_every_layout_gives_all_images_with_their_classes(tmp_path, layout):
    """Whatever the layout, the validation images and their classes are those that were stored."""
    data = open_images(layout(tmp_path / "data"), CLASSES)
    assert data.train is not None
    assert sorted(data.train.labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    stored = {content: number % 3 for number, content in enumerate(jpegs(6, 1))}
    found = {data.validation.read(index): int(label) for index, label in enumerate(data.validation.labels)}
    assert found == stored


def test_parts_of_imagenet_say_so(tmp_path):
    """Anything but the whole data set carries a sentence that it is not ImageNet."""
    data = open_images(as_folders(tmp_path))
    assert data.sample == "12 training images and 6 validation images of 3 of 3 classes, which is not ImageNet"


def test_an_absent_folder_is_answered_with_instructions(tmp_path):
    """Where there are no images, the message gives the layouts and where ImageNet is to be had."""
    with pytest.raises(MissingDataError, match=r"which is none\. .*DIR/train/CLASS.*image-net\.org"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match=r"Got none in any layout\. .*parquet"):
        open_images(tmp_path)
    (tmp_path / "train" / "n01").mkdir(parents=True)
    with pytest.raises(MissingDataError, match=r"Got no val\."):
        open_images(tmp_path)


def test_an_unknown_class_folder_is_named(tmp_path):
    """A validation folder that is no class of the training folders is refused by its path."""
    as_folders(tmp_path)
    (tmp_path / "val" / "n99").mkdir()
    with pytest.raises(DataFileError, match=r"val/n99: Expected one of the 3 classes n01, n02, n03 .* Got n99"):
        open_images(tmp_path)


def test_a_class_that_does_not_exist_is_named(tmp_path):
    """A label beyond the number of classes is refused with the shard and the image."""
    with pytest.raises(DataFileError, match=r"imagenet-train-000\.tar: Expected a class of 0 \.\.\. 1\. Got 2 for"):
        open_images(as_shards(tmp_path / "data"), CLASSES[:2])


def test_images_outside_of_class_folders_are_told(tmp_path):
    """A flat validation folder is answered with what to do."""
    as_folders(tmp_path)
    for path in list((tmp_path / "val").rglob("*.JPEG")):
        path.rename(tmp_path / "val" / path.name)
    with pytest.raises(DataFileError, match=r"val: .*6 images outside of class folders"):
        open_images(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"no image at all"])
def test_a_corrupt_image_is_named(tmp_path, damage):
    """An image that cannot be decoded ends loading with its file's name."""
    as_folders(tmp_path)
    path = tmp_path / "val" / "n02" / "001.JPEG"
    path.write_bytes(damage(path.read_bytes()))
    data = open_images(tmp_path)
    with pytest.raises(DataFileError, match=r"val/n02/001\.JPEG: Expected an image that can be decoded\. Got a dam"):
        for index in range(6):
            decoded(data.validation, index)


def test_a_truncated_shard_is_named(tmp_path):
    """A tar file that breaks off is refused before anything is trained."""
    as_shards(tmp_path / "data")
    shard = tmp_path / "data" / "imagenet-val-000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataFileError, match=r"imagenet-val-000\.tar: Expected"):
        open_images(tmp_path / "data", CLASSES)


def test_a_truncated_parquet_file_is_named(tmp_path):
    """A parquet file without its end is refused."""
    as_parquet(tmp_path / "data")
    path = tmp_path / "data" / "data" / "validation-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataFileError, match=r"validation-00000-of-00001\.parquet: Expected a whole parquet file"):
        open_images(tmp_path / "data", CLASSES)


def test_orders_are_permutations_that_seed_and_epoch_decide():
    """Every epoch has every image once; equal seeds and epochs give equal orders, others do not."""
    for groups in (np.arange(100), np.repeat(np.arange(20), 5)):
        first = order(groups, 1, 0, window=4)
        assert sorted(first.tolist()) == list(range(100))
        np.testing.assert_array_equal(first, order(groups, 1, 0, window=4))
        assert (first != order(groups, 1, 1, window=4)).any()
        assert (first != order(groups, 2, 0, window=4)).any()


def test_images_that_lie_together_are_read_together():
    """Within a window of four storage groups no other group is touched."""
    groups = np.repeat(np.arange(20), 5)
    mixed = groups[order(groups, 0, 0, window=4)]
    assert all(len(np.unique(mixed[begin : begin + 20])) == 4 for begin in range(0, 100, 20))


def test_augmentation_does_not_depend_on_who_loads(tmp_path):
    """The same epoch gives the same batches with and without worker processes, another one others."""
    data = open_images(as_parquet(tmp_path / "data"), CLASSES)
    assert data.train is not None
    images = Images(data.train, 16, PlainCrops(), Pixels(), seed=5)
    alone, helped = training_loader(images, 4, 0, seed=7), training_loader(images, 4, 1, seed=7)
    first, again = list(alone), list(helped)
    alone.set_epoch(1)
    second, third = list(alone), list(alone)
    assert len(first) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, third, strict=True))


def test_evaluation_takes_the_middle_in_order(tmp_path):
    """Validation images come in order, scaled to the network's values."""
    data = open_images(as_folders(tmp_path))
    images = Images(data.validation, 16, PlainCrops(), Pixels((0, 0, 0), (255, 255, 255)), seed=0)
    inputs, labels = next(iter(evaluation_loader(images, 6, 0)))
    assert labels.tolist() == data.validation.labels.tolist()
    wanted = PlainCrops().centre(decoded(data.validation, 3), 16)
    torch.testing.assert_close(inputs[3], torch.from_numpy(wanted.copy()).permute(2, 0, 1) / 255)
