"""What a result depends on besides its inputs."""

from __future__ import annotations

import platform
from importlib import metadata

__all__ = ["installed_versions"]


def installed_versions() -> dict[str, str]:
    """Return the versions that a result depends on, read without importing what they are of."""
    versions = {"python": platform.python_version()}
    for name in ("structprune", "torch", "numpy", "scipy", "ortools"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"platform": platform.platform(terse=True)}
