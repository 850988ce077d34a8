"""Trained networks with block-sparse layers compute what the masked ones do, and faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.block_sparse_models import (
    Row,
    Subject,
    arranged_table,
    arrangement,
    measure,
    minilm,
    mobilenet,
    table,
)
from structprune.layers import CPU_JIT

ROW = Row("net", 64, 1, 0.25, 3, 2, 1e-7, {"dense": 4.0, "dense, oneDNN packed": 2.0, "block-sparse": 1.0}, 0.5, 0.4)


def test_the_table_compares_with_the_fastest_dense_network() -> None:
    """Its time is the one that is shown."""
    assert table([ROW]).splitlines()[-1] == "| net | 64x1 | 0.25 | 2 of 3 | 2.0 | 1.0 | **0.50** | 0.40 | 1e-07 |"


def test_the_table_of_arrangements_has_every_layer_that_is_cut() -> None:
    """With what its blocks keep before and after; layers that stay whole are not there."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    row = arrangement(Subject("net", model, (torch.randn(2, 8),), ("2",), False), (4, 1), 0.25)
    lines = arranged_table([row]).splitlines()
    (layer,) = row.found.layers
    assert all(0 < apart < 2 for apart in row.apart)
    assert len(lines) == 4 and lines[2].startswith("| net | 4x1 | all |")
    assert lines[3] == f"| | | 0 | {layer.before:.3f} | {layer.after:.3f} | folded | | |"


@pytest.mark.slow
def test_trained_layers_keep_more_after_reordering(data_folder: Path) -> None:
    """64x1 blocks of MiniLM's feed-forward layers keep at least a fifth more after the reordering."""
    found = arrangement(minilm(data_folder, 2), (64, 1), 0.25).found
    assert found.after > 1.2 * found.before
    assert found.error < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(bool(CPU_JIT.available()), reason=CPU_JIT.available() or "runs here")
@pytest.mark.parametrize("make", [minilm, mobilenet], ids=["minilm", "mobilenet"])
def test_a_quarter_of_the_weights(
    make: object, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-4 of the masked network, no layer slower than dense, and the whole network faster than any dense."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subject = (minilm if make is minilm else mobilenet)(data_folder, 1 if make is mobilenet else 16)
    row = measure(subject, (64, 1), 0.25, rounds=9)
    print(table([row]))
    assert row.error < 1e-4
    assert row.sparse > 0 and row.worst_layer <= 1.0
    assert row.ratio < 1.0
