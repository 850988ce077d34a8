"""Measured medians on disk, so that a network is measured once per machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["Cache", "default_folder", "environment"]

FILE_FORMAT = 1


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/structprune``, or ``~/.cache/structprune``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "structprune"


def environment(device: torch.device) -> dict[str, str]:
    """What a measurement depends on beside the operator: device, torch, threads and precision."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{device.type} {_processor()}",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "precision": torch.get_float32_matmul_precision(),
        "instructions": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "cudnn benchmark": str(cuda and torch.backends.cudnn.benchmark),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Cache:
    """Medians in nanoseconds by signature, in one JSON file per environment.

    The file is written whole under a temporary name and then renamed. A file that cannot be read is ignored with a
    warning and written anew.
    """

    def __init__(self, folder: str | os.PathLike[str], device: torch.device) -> None:
        self._environment = environment(device)
        digest = hashlib.sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"latency-{digest}.json"

    def read(self) -> dict[str, float]:
        """All medians known; empty where there is no readable file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._ignored(str(error))
        try:
            content = json.loads(text)
            if content["format"] != FILE_FORMAT or content["environment"] != self._environment:
                return self._ignored("it was written by another version or for another machine")
            medians = {str(key): float(value) for key, value in content["medians_ns"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self._ignored(f"{type(error).__name__}: {error}")
        if not all(0 < value < float("inf") for value in medians.values()):
            return self._ignored("it holds latencies that are no positive numbers")
        return medians

    def _ignored(self, why: str) -> dict[str, float]:
        warnings.warn(
            f"Expected measured latencies in {self.path}. Got a file that cannot be used ({why}). "
            "It is ignored; the operators are measured again and the file is replaced.",
            stacklevel=4,
        )
        return {}

    def add(self, medians: Mapping[str, float]) -> None:
        """Write new medians beside the known ones. A folder that cannot be written to gives a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader has been told
            known = self.read()
        content = {"format": FILE_FORMAT, "environment": self._environment, "medians_ns": {**known, **medians}}
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".latency-", suffix=".tmp", dir=self.path.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(temporary, self.path)
            temporary = None
        except OSError as error:
            warnings.warn(
                f"Expected a cache folder that can be written to. Got {self.path.parent} ({error}). "
                "Nothing is kept; pass cache=False, or another folder.",
                stacklevel=3,
            )
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
