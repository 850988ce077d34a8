"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from structprune.files import write_atomically


def test_bytes_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    """The folder holds the file alone."""
    write_atomically(tmp_path / "a.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"new")]


def test_a_function_writes_where_it_is_told(tmp_path: Path) -> None:
    """Libraries that insist on writing a file themselves get the temporary path, in the same folder."""
    folders = []

    def save(path: Path) -> None:
        folders.append(path.parent)
        path.write_text("new")

    write_atomically(tmp_path / "a.bin", save)
    assert folders == [tmp_path.resolve()]
    assert (tmp_path / "a.bin").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever stops the writing, the old content stays and no temporary file does."""
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def save(path: Path) -> None:
        path.write_bytes(b"ha")
        raise error

    with pytest.raises(error):
        write_atomically(target, save)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """What the link points to is replaced, and the link stays one."""
    (tmp_path / "real").write_bytes(b"old")
    os.symlink(tmp_path / "real", tmp_path / "link")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    """Others may read it as far as the umask lets them, unlike files of the tempfile module."""
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path) -> None:
    """Both say what to do."""
    with pytest.raises(FileNotFoundError, match="Create it first"):
        write_atomically(tmp_path / "no" / "a", b"")
    with pytest.raises(IsADirectoryError, match="Name a file in it"):
        write_atomically(tmp_path, b"")
