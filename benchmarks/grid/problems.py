"""What can be wrong with the user's files: every message names the file, and the line where there is one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DataFileError", "DiskFullError", "telling_disk_full"]

#: No space, no quota, and a limit on the size of files.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DataFileError(ValueError):
    """A file that is not what its layout says.

    Parameters
    ----------
    path
        The file.
    line
        Its line, from 1; None where the whole file is meant.
    text
        What is wrong, as "Expected X. Got Y. Do Z."
    """

    def __init__(self, path: Path, line: int | None, text: str) -> None:
        super().__init__(f"{path}{'' if line is None else f':{line}'}: {text}")
        self.path = path
        self.line = line


class DiskFullError(OSError):
    """No room for what is being written; what is there is kept, and the same command goes on from it."""


@contextmanager
def telling_disk_full(folder: Path) -> Iterator[None]:
    """Turn the system's errors for a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(
            error.errno,
            f"Expected room on the disk. Got none while writing {error.filename or folder} ({error.strerror}). "
            "Free some and run the same command again: it goes on where it stopped",
        ) from error
