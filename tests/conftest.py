"""What every test may rely on: few threads, fixed seeds, real data where it is present, reasons where it is not."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run, so that a failure seen once is seen again; no deadline, because machines differ.
hypothesis.settings.register_profile("structprune", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("structprune")


def pytest_configure(config: pytest.Config) -> None:
    """Share two threads among the worker processes, and let Ctrl-C mean the same in each of them.

    Timings and rounding shall not depend on the machine, nor interrupts on the shell: one that starts a command in the
    background makes it, and whatever it starts in turn, ignore SIGINT.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, 2 // workers))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data and trained weights; a test that asks for it is skipped where there is none."""
    named = os.environ.get("STRUCTPRUNE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data, and {folder} is not a folder: name it in STRUCTPRUNE_DATA")
    return folder
