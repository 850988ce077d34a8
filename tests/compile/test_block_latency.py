"""Latency of blocks as a cost: measured tables by kept blocks, with an injected clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solvers.problem import Product, Table
from structprune import Budget, InfeasibleBudgetError, Pruned, account, blocks, channels, solve
from structprune.account import amount
from structprune.axes import as_example
from structprune.compile import block_latency, fuse, packing, sparse
from structprune.compile.block_latency import (
    LayerTime,
    at_density,
    block_latency_ns,
    network_time,
    without,
)
from structprune.layers import ROWLOOP
from structprune.layers.tune import BlockSparse, Call, Timed, Tuned
from structprune.report import CostRow, LatencyRow

DENSE_NS, PACKED_NS, REST_NS = 1000.0, 800.0, 500.0


class Clock:
    """Times by name and density; ``slow`` layers never pay, ``calls`` lists the measurements.

    ``whole`` are times of compiled networks over the dense one's, in turn; 0 where it has no more.
    """

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.calls: list[tuple[str, float]] = []
        self.packs = True
        self.gain = 0.0
        self.whole: list[float] = []

    def tune(
        self, name: str, dense: nn.Module, build: Callable[[Any], BlockSparse], calls: list[Call], **_: Any
    ) -> Tuned:
        """A sparse layer takes 40 ns and 1000 ns times its density, a slow one 3000 ns."""
        density = build(ROWLOOP).pattern.density
        self.calls.append((name, density))
        best = PACKED_NS if self.packs else DENSE_NS
        taken = 3000.0 if name in self.slow else 40.0 + 1000.0 * density
        medians = {"dense": DENSE_NS, "rowloop": taken} | ({"dense-onednn": PACKED_NS} if self.packs else {})
        pays = taken < 0.95 * best
        return Tuned(name, "", ROWLOOP if pays else None, "rowloop", taken / best, medians)

    def latency_row(self, *_: Any) -> LatencyRow:
        """The dense network takes 1000 ns."""
        after = int(1000 * self.whole.pop(0)) if self.whole else 0
        return LatencyRow(64, "cpu", 1000, 1000, 1000, after, after, after)

    def time_calls(self, calls: dict[str, Any], *_: Any) -> dict[str, Timed]:
        """The rest of a network takes 500 ns, rebuilt less by ``gain``."""
        times = {"dense, the rest": REST_NS, "dense, the rest rebuilt": REST_NS - self.gain}
        return {name: Timed(times[name], times[name], times[name]) for name in calls}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """Return the clock that everything is timed by."""
    found = Clock()
    for module in (block_latency, sparse):
        monkeypatch.setattr(module, "tune", found.tune)
    monkeypatch.setattr(block_latency, "time_calls", found.time_calls)
    monkeypatch.setattr(fuse, "time_fused", lambda *_, **__: 1.0)
    monkeypatch.setattr(packing, "time_packed", lambda *_, **__: (1.0, False))
    monkeypatch.setattr(account, "latency_row", found.latency_row)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


class Perceptron(nn.Module):
    """Two layers of one size, one that is too small to be timed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def layer(**changes: Any) -> LayerTime:
    """Return a layer of 100 weights."""
    facts: dict[str, Any] = {
        "name": "fc",
        "kept": np.array([0, 50, 99]),
        "sparse_ns": np.array([10.0, 60.0, 110.0]),
        "dense_ns": 100.0,
        "best_dense_ns": 100.0,
        "shipped_ns": 100.0,
    }
    return LayerTime(**facts | changes)


def test_between_densities_time_is_interpolated() -> None:
    """Linearly, and exactly at the measured ones."""
    assert layer().at(np.array([0, 25, 50]), 100).tolist() == [10, 35, 60]


def test_where_sparse_does_not_pay_the_dense_time_counts() -> None:
    """From 95 % of the best dense time on."""
    assert layer().at(np.array([84, 85, 99, 100]), 100) == pytest.approx([60 + 50 * 34 / 49, 100, 100, 100])


def test_a_packed_layer_is_what_is_shipped_instead() -> None:
    """Where blocks are missing and sparse does not pay; a whole layer takes what it took."""
    found = layer(best_dense_ns=50.0, shipped_ns=50.0).at(np.array([0, 40, 99, 100]), 100)
    assert found.tolist() == [10, 50, 50, 100]


def test_noise_makes_no_table_decrease() -> None:
    """More blocks never cost less."""
    found = layer(sparse_ns=np.array([20.0, 60.0, 55.0])).at(np.arange(101), 100)
    assert (np.diff(found) >= 0).all() and found[60] == 60


def test_terms_give_the_dense_time_at_full_widths(clock: Clock) -> None:
    """To the nanosecond, in whatever unit of time the layers were measured; the head is a constant."""
    model, x = Perceptron().eval(), as_example(torch.randn(64, 128))
    structures = blocks(model, (64, 1))
    full = [axis.size for axis in structures.axes]
    for dense_ns in (2500, 1777, 1_000_003):
        terms = block_latency_ns(structures, model, x, dense_ns=dense_ns)
        assert amount(terms, structures, full) == dense_ns
        assert [term.groups for term in terms] == [(0,), (1,), ()]
        assert all(isinstance(term, Table) and (np.diff(term.entries) >= 0).all() for term in terms[:2])
    assert amount(block_latency_ns(structures, model, x), structures, full) == 2 * DENSE_NS + REST_NS


def test_terms_give_the_measured_time_of_layers(clock: Clock) -> None:
    """As their share of the network: twice the time in all is twice the time of each."""
    model, x = Perceptron().eval(), as_example(torch.randn(64, 128))
    structures = blocks(model, (64, 1))
    for double in (1, 2):
        first, second, rest = block_latency_ns(structures, model, x, dense_ns=2500 * double)
        assert isinstance(first, Table) and isinstance(rest, Product)
        size = structures.axes[0].size
        assert first.entries[[0, size // 4, size // 2]].tolist() == [40 * double, 290 * double, 540 * double]
        assert first.entries[-2:].tolist() == [800 * double, 1000 * double]  # packed, whole
        assert rest.coefficient == REST_NS * double


def test_blocks_at_a_ragged_edge_are_charged_as_kept(clock: Clock) -> None:
    """They are an axis of their own, and one table holds the layer's time."""
    model, x = nn.Linear(128, 96).eval(), as_example(torch.randn(64, 128))
    structures = blocks(model, (64, 1))
    assert [axis.size for axis in structures.axes] == [128, 128]
    table, _ = block_latency_ns(structures, model, x, dense_ns=1500)
    assert isinstance(table, Table) and table.groups == (0,)
    assert table.entries[0] == pytest.approx(40 + 1000 / 3, abs=20)


@pytest.mark.parametrize("gain, less", [(200.0, 200), (-100.0, 0)])
def test_what_a_rebuilt_rest_gains_is_charged_to_one_layer(clock: Clock, gain: float, less: int) -> None:
    """While it is whole; full widths take the dense time still, and a slower rest is not rebuilt."""
    clock.gain = gain
    model, x = Perceptron().eval(), as_example(torch.randn(64, 128))
    structures = blocks(model, (64, 1))
    terms = block_latency_ns(structures, model, x, dense_ns=2500)
    first, second, rest = terms
    assert isinstance(first, Table) and isinstance(second, Table) and isinstance(rest, Product)
    assert rest.coefficient == REST_NS - less
    assert first.entries[-2:].tolist() == [800, 1000 + less] and second.entries[-1] == 1000
    assert amount(terms, structures, [axis.size for axis in structures.axes]) == 2500


def test_with_images_the_rest_is_rebuilt_beside_block_sparse_layers_only(clock: Clock) -> None:
    """A dense convolution that lost a block keeps the network's layout."""
    clock.gain, clock.packs = 200.0, False
    model, x = nn.Conv2d(64, 64, 3, padding=1).eval(), as_example(torch.randn(2, 64, 8, 8))
    table, rest = block_latency_ns(blocks(model, (64, 1)), model, x, dense_ns=1500)
    assert isinstance(table, Table) and isinstance(rest, Product)
    assert rest.coefficient == REST_NS - 200
    size = len(table.entries) - 1
    assert table.entries[[0, size // 2, size - 1, size]].tolist() == [40, 540, 1200, 1200]


def test_equal_layers_are_measured_once(clock: Clock) -> None:
    """Per density."""
    model, x = Perceptron().eval(), as_example(torch.randn(64, 128))
    network_time(blocks(model, (64, 1)), model, x, densities=(0, 0.5, 1))
    assert [name for name, _ in clock.calls] == ["fc1"] * 3
    assert [density for _, density in clock.calls] == pytest.approx([0, 0.5, 1], abs=0.01)


def test_layers_that_cannot_be_block_sparse_are_constants(clock: Clock) -> None:
    """Blocks of 8 outputs have no kernels; the whole network is one number."""
    model, x = Perceptron().eval(), as_example(torch.randn(64, 128))
    (term,) = block_latency_ns(blocks(model, (8, 8)), model, x, dense_ns=1234)
    assert isinstance(term, Product) and term.groups == () and term.coefficient == 1234


def test_selections_have_the_density_asked_for() -> None:
    """On every axis, equal ones on equal axes, and never everything."""
    structures = blocks(Perceptron(), (64, 1))
    for share in (0.0, 0.25, 1.0):
        selection = at_density(structures, share)
        parts = [selection[axis.entries] for axis in structures.axes]
        assert [int(part.sum()) for part in parts] == [min(round(share * len(part)), len(part) - 1) for part in parts]
        assert np.array_equal(parts[0], parts[1])


def test_the_rest_of_a_network_computes_the_same() -> None:
    """With outputs at hand that the layers gave, also for a layer that is called twice."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc(torch.tanh(self.fc(x)))) + self.fc.weight.sum()

    model, x = Twice().eval(), torch.randn(3, 8)
    with torch.no_grad():
        expected = model(x)
        rest = without(model, ["fc"], as_example(x))
        assert torch.equal(rest(x), expected) and torch.equal(rest(x), expected)


@pytest.mark.parametrize("densities", [(0.5,), (0, 0.5), (0.1, 1), (0, 0.5, 0.5, 1), (0, 0.7, 0.3, 1)])
def test_densities_run_from_0_to_1(densities: tuple[float, ...]) -> None:
    """And increase."""
    model = Perceptron()
    with pytest.raises(ValueError, match="increasing densities from 0 to 1"):
        network_time(blocks(model, (64, 1)), model, as_example(torch.randn(64, 128)), densities=densities)


def test_channels_have_tables_of_their_own() -> None:
    """The message names them."""
    model, x = Perceptron().eval(), torch.randn(64, 128)
    with pytest.raises(ValueError, match="structprune.latency"):
        block_latency_ns(channels(model, x), model, as_example(x))


def test_solving_within_a_latency(clock: Clock) -> None:
    """The cap holds in predicted time, and what gains nothing keeps all of its blocks."""
    model, x = Perceptron().eval(), torch.randn(64, 128)
    clock.slow.add("fc1")
    model.fc2 = nn.Linear(128, 128, bias=False)  # another kind of layer than fc1, with a measurement of its own
    structures = blocks(model, (64, 1), example=x)
    pruned = solve(model.eval(), Budget(latency_ns=0.7), structures=structures, example=x, progress=False)
    kept = dict(zip([axis.name for axis in structures.axes], structures.widths(pruned.selection), strict=True))
    assert kept["fc1"] >= structures.axes[0].size - 1  # one block less makes it a layer that may be packed
    assert 0 < kept["fc2"] < structures.axes[1].size / 2 and pruned.built_as == "block-sparse"
    (row,) = [row for row in pruned.report.costs if row.resource == "latency_ns"]
    assert row.allowed is not None and row.predicted <= row.allowed and pruned.report.latency is not None


def within(clock: Clock, share: float, whole: list[float]) -> tuple[Pruned, CostRow]:
    """Solve for a share of the dense latency, with scripted measurements; all of them are made."""
    model, x = Perceptron().eval(), torch.randn(64, 128)
    clock.whole = list(whole)
    pruned = solve(
        model, Budget(latency_ns=share), structures=blocks(model, (64, 1), example=x), example=x, progress=False
    )
    assert not clock.whole
    return pruned, {row.resource: row for row in pruned.report.costs}["latency_ns"]


def test_a_choice_that_is_too_slow_is_made_again(clock: Clock) -> None:
    """Measured a quarter above its cap, its prediction falls by as much; the report has the cap that was asked for."""
    pruned, cost = within(clock, 0.8, [0.8 * 1.25, 0.79])
    assert cost.allowed is not None and 0.79 * cost.before < cost.allowed <= 0.8 * cost.before
    assert cost.predicted <= cost.allowed / 1.25
    assert pruned.report.latency is not None and pruned.report.latency.after_ns == 790
    assert sum("measured 25.0% above its cap, so" in note for note in pruned.report.notes) == 1


def test_a_choice_that_stays_too_slow_is_said_to_be(clock: Clock) -> None:
    """After three more attempts, with the last measurement."""
    pruned, _ = within(clock, 0.8, [0.81, 0.82, 0.83, 0.84])
    assert pruned.report.notes[-1] == "latency: measured 5.0% above its cap; only the prediction is within it"


def test_a_choice_that_cannot_be_faster_stays(clock: Clock) -> None:
    """With what was measured of it."""
    pruned, cost = within(clock, 0.8, [50.0])
    assert pruned.report.notes[-1] == "latency: measured 6150.0% above its cap, and the tables know no faster choice"
    assert 0 < cost.predicted <= (cost.allowed or 0)


def test_a_latency_that_cannot_be_reached(clock: Clock) -> None:
    """The message gives the least."""
    model, x = Perceptron().eval(), torch.randn(64, 128)
    structures = blocks(model, (64, 1), example=x)
    with pytest.raises(InfeasibleBudgetError, match=r"Pass Budget\(latency_ns="):
        solve(model, Budget(latency_ns=0.1), structures=structures, example=x, progress=False)


def test_a_real_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements give a table for each layer that is large enough, and a positive rest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, x = Perceptron().eval(), torch.randn(64, 128)
    structures = blocks(model, (64, 1), example=x)
    found = network_time(structures, model, as_example(x), densities=(0, 0.5, 1))
    assert set(found.layers) == {"fc1.weight", "fc2.weight"} and found.rest_ns >= found.rebuilt_ns > 0
    terms = found.terms(structures, 1_000_000)
    assert amount(terms, structures, [axis.size for axis in structures.axes]) == 1_000_000
