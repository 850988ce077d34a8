"""The benchmark of latency budgets: its table, and networks without the parts whose worth it shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks.block_latency import Row, perceptron, table, unfused, unpacked
from structprune.compile.fuse import Applied, Fusion, fused
from structprune.compile.packing import pack_linear, packed_layers
from structprune.layers import BlockSparseLinear

ROW = Row("net", 0.5, 0.49, 0.4, 0.25, 4, 3, 1, 2, 10.0, 4.0, 6.0, 5.0)


def test_the_table_gives_shares_of_the_dense_network() -> None:
    """Of all four latencies."""
    line = "| net | 10.0 | 0.5 | 0.49 | **0.40** | 0.25 | 3, 1, 2 of 4 | 0.60 | 0.50 |"
    assert table([ROW]).splitlines()[-1] == line


def test_parts_can_be_taken_out() -> None:
    """And the network computes the same without them."""
    model = perceptron(4).model
    dense = model.get_submodule("0")
    assert isinstance(dense, nn.Linear)
    kept = np.ones((dense.out_features // 64, dense.in_features), dtype=bool)
    model.register_module("0", BlockSparseLinear.from_dense(dense, kept, 64, 1).eval())
    x = torch.randn(4, 512)
    with torch.no_grad():
        expected = model(x)
        fast = pack_linear(fused(model, [Fusion("0", "1", "gelu")]), ["2"])
        plain, apart = unpacked(fast), unfused(fast)
        assert packed_layers(fast) == packed_layers(apart) == ("2",) and not packed_layers(plain)
        assert isinstance(plain.get_submodule("1"), Applied) and isinstance(apart.get_submodule("1"), nn.GELU)
        for network in (fast, plain, apart):
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
