"""Trained networks with block-sparse layers compute what the masked ones do, and faster."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.block_sparse_models import Row, measure, minilm, mobilenet, table
from structprune.layers import CPU_JIT

ROW = Row("net", 64, 1, 0.25, 3, 2, 1e-7, {"dense": 4.0, "dense, oneDNN packed": 2.0, "block-sparse": 1.0}, 0.5, 0.4)


def test_the_table_compares_with_the_fastest_dense_network() -> None:
    """Its time is the one that is shown."""
    assert table([ROW]).splitlines()[-1] == "| net | 64x1 | 0.25 | 2 of 3 | 2.0 | 1.0 | **0.50** | 0.40 | 1e-07 |"


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
