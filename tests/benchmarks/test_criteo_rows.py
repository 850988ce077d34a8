"""Tests of Criteo's rows: what is read, what is refused and in which words, and that no stop spoils the arrays."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra bench")

from benchmarks.criteo.arrays import open_prepared
from benchmarks.criteo.layouts import CATEGORICAL, CRITEO_X1, FIELDS, KAGGLE, MISSING_INT, TERABYTE
from benchmarks.criteo.prepare import Request, prepare
from benchmarks.criteo.recipes import MISSING_ID, RARE_ID, Numbers, Preprocessing
from benchmarks.criteo.splits import ByFile, InOrder, LastFile, Scattered
from benchmarks.criteo.text import Place, pieces
from benchmarks.grid.problems import DataFileError, DiskFullError

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = Preprocessing(Numbers.LOG, min_count=2)


def kaggle_row(rng: np.random.Generator) -> str:
    """Return a made-up row of train.txt."""
    numbers = ["" if rng.random() < 0.3 else str(rng.integers(-2, 1000)) for _ in range(13)]
    keys = ["" if rng.random() < 0.2 else f"{rng.integers(0, 9) * 0x1F3D5B79 % 2**32:08x}" for _ in range(26)]
    return "\t".join([str(rng.integers(0, 2)), *numbers, *keys])


def kaggle_file(path: Path, rows: int, seed: int = 0) -> Path:
    """Write made-up rows, packed where the name says so."""
    rng = np.random.default_rng(seed)
    text = ("\n".join(kaggle_row(rng) for _ in range(rows)) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def request(path: Path, **changes: object) -> Request:
    """Return a request for a file of few rows, read in many pieces."""
    given = {"layout": KAGGLE, "files": (path,), "split": InOrder(20, 30), "preprocessing": RECIPE, "piece_bytes": 5000}
    return Request(**{**given, **changes})  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of every array below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.npy"))
    }


# ------------------------------------------------------------------------------------------------- reading


def test_every_cell_arrives(tmp_path):
    """Labels, numbers and categories in the arrays are those of the text, missing ones marked."""
    path = kaggle_file(tmp_path / "train.txt", 120)
    part = next(iter(pieces(path, 1 << 20, Place())))
    columns = KAGGLE.parse(part)
    for row, line in enumerate(path.read_text().splitlines()):
        label, *cells = line.split("\t")
        assert columns.label[row] == int(label)
        assert columns.numeric[:, row].tolist() == [MISSING_INT if not c else int(c) for c in cells[:13]]
        assert columns.keys[:, row].tolist() == [int(c or "0", 16) for c in cells[13:]]
        assert [bool(columns.missing[row] >> bit & 1) for bit in range(26)] == [not c for c in cells[13:]]


def test_a_key_of_zeros_is_no_missing_one(tmp_path):
    """A category whose hash is 0 and an empty cell stay apart."""
    cells = ["1", *["5"] * 13, *["00000000"] * 25, ""]
    path = tmp_path / "train.txt"
    path.write_text("\t".join(cells) + "\n")
    columns = KAGGLE.parse(next(iter(pieces(path, 1 << 20, Place()))))
    assert columns.keys[:, 0].tolist() == [0] * 26
    assert columns.missing[0] == 1 << 25


def test_packed_and_plain_text_give_the_same_arrays(tmp_path):
    """A gzip file is read as its text."""
    plain = prepare(request(kaggle_file(tmp_path / "train.txt", 200)), tmp_path / "a").folder
    packed = prepare(request(kaggle_file(tmp_path / "train.txt.gz", 200)), tmp_path / "b").folder
    assert digests(plain) == digests(packed)


def test_the_size_of_pieces_decides_nothing(tmp_path):
    """Arrays do not depend on how much text is read at once, be it less than a line."""
    path = kaggle_file(tmp_path / "train.txt", 80)
    found = [
        digests(prepare(request(path, piece_bytes=size), tmp_path / str(size)).folder) for size in (100, 3000, 1 << 20)
    ]
    assert found[0] == found[1] == found[2]


def test_the_vocabulary_is_that_of_the_training_rows(tmp_path):
    """Identities follow the training rows' categories with the minimum count; others are rare, empty ones missing."""
    path = kaggle_file(tmp_path / "train.txt", 150)
    prepared = prepare(request(path, preprocessing=Preprocessing(Numbers.LOG, min_count=15)), tmp_path / "arrays")
    rows = [line.split("\t")[14:] for line in path.read_text().splitlines()]
    for column in range(len(CATEGORICAL)):
        counts = Counter(row[column] for row in rows[:100] if row[column])
        known = sorted(key for key, count in counts.items() if count >= 15)
        assert prepared.sizes[column] == len(known) + 2
        for row, cell in enumerate(row[column] for row in rows[120:]):
            wanted = MISSING_ID if not cell else known.index(cell) + 2 if cell in known else RARE_ID
            assert prepared.parts["test"].ids[row, column] == wanted


def test_the_range_is_that_of_the_training_rows(tmp_path):
    """Logarithms are scaled by the training rows' least and largest value, whatever later rows hold."""
    path = kaggle_file(tmp_path / "train.txt", 150)
    lines = path.read_text().splitlines()
    huge = lines[-1].split("\t")
    lines[-1] = "\t".join([huge[0], *["1000000"] * 13, *huge[14:]])
    path.write_text("\n".join(lines) + "\n")
    prepared = prepare(request(path), tmp_path / "arrays")
    training = prepared.parts["train"].numbers
    assert training.max(0).tolist() == [1.0] * 13
    assert prepared.parts["test"].numbers[-1].tolist() == [1.0] * 13
    first = [line.split("\t")[1] for line in lines[:100]]
    logs = np.array([np.nan if not cell else np.log1p(max(int(cell), 0)) for cell in first])
    wanted = np.nan_to_num((logs - np.nanmin(logs)) / (np.nanmax(logs) - np.nanmin(logs)))
    np.testing.assert_allclose(training[:, 0], wanted, rtol=1e-6)


def test_buckets_turn_numbers_into_categories(tmp_path):
    """With buckets all 39 fields are categories: floor(log2 x) above 2, one for all below."""
    path = kaggle_file(tmp_path / "train.txt", 150)
    prepared = prepare(request(path, preprocessing=Preprocessing(Numbers.BUCKETS)), tmp_path / "arrays")
    assert (prepared.numeric, len(prepared.sizes), prepared.fields) == (0, 39, FIELDS)
    cells = [line.split("\t")[1] for line in path.read_text().splitlines()]
    buckets = [int(np.log2(int(cell))) if cell and int(cell) > 2 else 1 for cell in cells]
    known = sorted({bucket for cell, bucket in zip(cells[:100], buckets, strict=False) if cell})
    wanted = [known.index(b) + 2 if c else MISSING_ID for c, b in zip(cells[:100], buckets, strict=False)]
    assert prepared.parts["train"].ids[:, 0].tolist() == wanted


def x1_file(path: Path, rows: int) -> Path:
    """Write made-up rows in the layout of Criteo_x1."""
    rng = np.random.default_rng(len(path.name))
    lines = [",".join(("label", *FIELDS))]
    for _ in range(rows):
        cells = [f"{rng.random():.4f}" for _ in range(13)] + [str(rng.integers(0, 50)) for _ in range(26)]
        lines.append(",".join([str(rng.integers(0, 2)), *cells]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_criteo_x1_is_split_by_file_and_left_unscaled(tmp_path):
    """The three files are the three parts, and their numbers arrive as they are."""
    files = tuple(x1_file(tmp_path / name, rows) for name, rows in zip(CRITEO_X1.files, (50, 20, 10), strict=True))
    asked = Request(CRITEO_X1, files, ByFile(), Preprocessing(Numbers.AS_THEY_ARE), check_md5=False)
    prepared = prepare(asked, tmp_path / "arrays")
    assert prepared.manifest["rows"] == {"train": 50, "validation": 20, "test": 10}
    first = files[2].read_text().splitlines()[1].split(",")[1:14]
    np.testing.assert_array_equal(prepared.parts["test"].numbers[0], np.array(first, np.float32))


def test_criteo_x1_must_have_its_checksums(tmp_path):
    """Another train.csv is no Criteo_x1: both checksums are told."""
    files = tuple(x1_file(tmp_path / name, 10) for name in CRITEO_X1.files)
    asked = Request(CRITEO_X1, files, ByFile(), Preprocessing(Numbers.AS_THEY_ARE))
    with pytest.raises(DataFileError, match=r"train\.csv: Expected MD5 30b89c1c.*Got .*--any-checksum"):
        prepare(asked, tmp_path / "arrays")


def test_the_last_day_is_halved(tmp_path):
    """Of day files the last one validates with its first half and tests with its second."""
    files = tuple(kaggle_file(tmp_path / f"day_{day}", 40, day) for day in range(3))
    prepared = prepare(request(files[0], layout=TERABYTE, files=files, split=LastFile()), tmp_path / "arrays")
    assert prepared.manifest["rows"] == {"train": 80, "validation": 20, "test": 20}


def test_scattered_rows_are_about_as_many_as_asked():
    """Rows scattered at random come out as the probabilities say, and piece by piece as all at once."""
    split = Scattered(0.1, 0.2, seed=3)
    whole = split.assign(0, 0, 20000, (20000,))
    np.testing.assert_allclose(np.bincount(whole) / 20000, [0.7, 0.1, 0.2], atol=0.01)
    np.testing.assert_array_equal(whole[7000:9000], split.assign(0, 7000, 2000, (20000,)))
    assert (whole != Scattered(0.1, 0.2, seed=4).assign(0, 0, 20000, (20000,))).mean() > 0.3


# ------------------------------------------------------------------------------------------------- refusing


def refused(tmp_path: Path, line: int, cells: list[str] | None, name: str = "train.txt") -> str:
    """Return what is said of a file in which one line is exchanged."""
    path = kaggle_file(tmp_path / name, 100)
    lines = path.read_text().splitlines()
    lines[line - 1] = "\t".join(lines[line - 1].split("\t")[1:] if cells is None else cells)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataFileError) as found:
        prepare(request(path), tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()
    return str(found.value).removeprefix(str(tmp_path) + os.sep)


GOOD = ["1", *["5"] * 13, *["0a1b2c3d"] * 26]


@pytest.mark.parametrize(
    ("line", "cells", "said"),
    [
        (1, GOOD[:12], "train.txt:1: Expected 40 columns. Got 12"),
        (77, [*GOOD, "x"], "train.txt:77: Expected 40 columns. Got 41"),
        (60, ["2", *GOOD[1:]], "train.txt:60: Expected 0 or 1 in column label. Got '2'"),
        (60, ["", *GOOD[1:]], "train.txt:60: Expected 0 or 1 in column label. Got ''"),
        (99, ["1", "x7", *GOOD[2:]], "train.txt:99: Expected a 32-bit integer or nothing in column I1. Got 'x7'"),
        (33, [*GOOD[:-1], "0a1b2c3"], "train.txt:33: Expected 8 hexadecimal digits or nothing in column C26. Got"),
        (34, [*GOOD[:-2], "0a1b2c3g", ""], "train.txt:34: Expected 8 hexadecimal digits or nothing in column C25."),
        (50, None, "This is Kaggle's test.txt, which has no labels."),
        (50, [""], "train.txt:50: Expected 40 columns. Got 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, cells, said):
    """A line that is not what the layout says is refused with file, line, column and value."""
    assert said in refused(tmp_path, line, cells)


def test_a_header_without_a_column_is_named(tmp_path):
    """A CSV file that lacks a column is refused by the column's name."""
    path = x1_file(tmp_path / "train.csv", 10)
    path.write_text(path.read_text().replace(",C7,", ",X7,", 1))
    asked = Request(CRITEO_X1, (path,), ByFile(), Preprocessing(Numbers.AS_THEY_ARE), check_md5=False)
    with pytest.raises(DataFileError, match=r"train\.csv:1: Expected columns label.*without C7\."):
        prepare(asked, tmp_path / "arrays")


def test_a_truncated_gzip_file_is_named_with_its_last_line(tmp_path):
    """A packed file that breaks off is refused, and nothing of it is taken for whole."""
    path = kaggle_file(tmp_path / "train.txt.gz", 500)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataFileError, match=r"train\.txt\.gz.*Expected a whole gzip file"):
        prepare(request(path), tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()
    with pytest.raises(DataFileError, match=r"train\.txt\.gz:\d\d+: Expected a whole gzip file"):
        list(pieces(path, 5000, Place()))


def test_a_full_disk_is_told_and_the_run_goes_on_later(tmp_path):
    """Where no room is left the message says so; with room again the same call ends in the same arrays."""
    path = kaggle_file(tmp_path / "train.txt", 400)
    whole = digests(prepare(request(path), tmp_path / "whole").folder)
    script = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"  # a limit on file sizes stands for a full disk
    )
    found = run_script(script, path, tmp_path / "arrays")
    assert found.returncode == 1
    assert DiskFullError.__name__ in found.stderr
    assert "Expected room on the disk" in found.stderr
    assert not (tmp_path / "arrays").exists()
    assert digests(prepare(request(path), tmp_path / "arrays").folder) == whole


def test_unfinished_arrays_are_refused(tmp_path):
    """A folder without its manifest, or with a shortened array, is not opened."""
    prepared = prepare(request(kaggle_file(tmp_path / "train.txt", 100)), tmp_path / "arrays")
    ids = prepared.folder / "train.ids.npy"
    content = ids.read_bytes()
    ids.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"train\.ids\.npy of .* bytes"):
        open_prepared(prepared.folder)
    ids.write_bytes(content[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(ValueError, match="checksum"):
        open_prepared(prepared.folder).verify()
    (prepared.folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="Expected prepared rows"):
        open_prepared(prepared.folder)


def test_rows_prepared_otherwise_are_refused(tmp_path):
    """A folder that holds another recipe's arrays is not taken for this one's."""
    path = kaggle_file(tmp_path / "train.txt", 100)
    prepare(request(path), tmp_path / "arrays")
    with pytest.raises(ValueError, match="preprocessing differ"):
        prepare(request(path, preprocessing=Preprocessing(Numbers.BUCKETS)), tmp_path / "arrays")


# ------------------------------------------------------------------------------------------- stops and goes on

SCRIPT = """
import os, signal, sys
from pathlib import Path
from benchmarks.criteo.layouts import KAGGLE
from benchmarks.criteo.prepare import Request, prepare
from benchmarks.criteo.recipes import Numbers, Preprocessing
from benchmarks.criteo.splits import InOrder
{before}
left = int(sys.argv[3])
def tell(text):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
request = Request(KAGGLE, (Path(sys.argv[1]),), InOrder(20, 30), Preprocessing(Numbers.LOG, min_count=2), 5000)
prepare(request, Path(sys.argv[2]), tell)
"""


def run_script(before: str, source: Path, folder: Path, kill_at: int = 0) -> subprocess.CompletedProcess:
    """Prepare in a process of its own, which kills itself at a line of progress if asked to."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before), str(source), str(folder), str(kill_at)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("name", "kill_at"), [("train.txt.gz", 3), ("train.txt", 22), ("train.txt", 25)])
def test_killed_and_resumed_arrays_are_the_same(tmp_path, name, kill_at):
    """A process killed in any pass and started again ends with the same bytes as one left alone."""
    path = kaggle_file(tmp_path / name, 400)
    whole = digests(prepare(request(path), tmp_path / "whole").folder)
    killed = run_script("", path, tmp_path / "arrays", kill_at)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "arrays").exists()
    assert digests(prepare(request(path), tmp_path / "arrays").folder) == whole


def test_half_written_rows_are_cut_off_before_going_on(tmp_path):
    """Rows that a killed process appended after its last note of progress do not stay in the arrays."""
    path = kaggle_file(tmp_path / "train.txt", 400)
    whole = digests(prepare(request(path), tmp_path / "whole").folder)
    assert run_script("", path, tmp_path / "arrays", 25).returncode == -signal.SIGKILL
    work = tmp_path / "arrays.unfinished"
    with (work / "train.ids.npy").open("ab") as file:
        file.write(b"half a row")
    assert digests(prepare(request(path), tmp_path / "arrays").folder) == whole


def test_a_source_that_changes_half_way_is_refused(tmp_path):
    """Text that was changed since an unfinished call is not joined to what was read before."""
    path = kaggle_file(tmp_path / "train.txt", 400)
    assert run_script("", path, tmp_path / "arrays", 5).returncode == -signal.SIGKILL
    kaggle_file(path, 400, seed=1)
    with pytest.raises(ValueError, match="prepared the same way"):
        prepare(request(path), tmp_path / "arrays")
