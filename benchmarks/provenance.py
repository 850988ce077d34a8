"""What it takes to repeat a measurement: versions, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["ROOT", "commit", "machine", "versions"]

ROOT = Path(__file__).resolve().parent.parent


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(code: Sequence[str]) -> str:
    """Return the checkout's commit, with a + if files that match ``code`` differ from it; 'unknown' without git."""
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def git(*arguments: str) -> str:
    """Return what git prints in the checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """Return the processor in words."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
