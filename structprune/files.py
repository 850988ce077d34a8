"""A file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file under a temporary name in the same folder, then rename it.

    A reader sees the old file or the new one, never a part, and an interruption of any kind leaves neither a
    half-written file nor the temporary one.

    Parameters
    ----------
    path
        The file. Its folder must exist; a link is followed, so that the file it points to is the one replaced.
    content
        The bytes, or a function that is given the temporary path and writes there.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If `path` is a folder.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder for {path}. Got {target.parent}. Create it first.")
    if target.is_dir():
        raise IsADirectoryError(f"Expected the name of a file. Got {path}, which is a folder. Name a file in it.")
    # A long name with the suffix added could exceed the file system's limit, hence the cut.
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        flush_to_disk(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def flush_to_disk(path: Path) -> None:
    """Wait until the file's bytes are on disk: a rename may otherwise survive a power cut that they do not."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
