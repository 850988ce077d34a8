"""Latency tables and interleaved measurements: facts about their shape, their sum and their cache."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from solvers.problem import Capacity, Group, Product, SelectionProblem, Table, Term
from structprune.latency import Timing, cache, latency_ns, measure, tables, timing
from structprune.latency.operators import Network
from structprune.latency.signatures import TensorSpec, callables
from structprune.latency.terms import upper_line
from structprune.structures import Structures, blocks, channels


class Residual(nn.Module):
    """Convolutions around a skip connection, down to a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Three convolutions whose concatenation feeds a fourth: one operator along four axes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for width in (4, 6, 8))
        self.join = nn.Conv2d(18, 10, 1)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.join(torch.cat([part(x) for part in self.parts], 1)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Separate projections, so that heads, query dimensions and value dimensions are three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 32))


class Words(nn.Module):
    """Token indices, an embedding, dropout and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.mix = nn.Conv1d(8, 12, 3, padding=1, groups=2)
        self.drop = nn.Dropout()
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(self.mix(self.table(tokens).transpose(1, 2))).mean(2))


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 4))


NETWORKS = {
    "mlp": (mlp, torch.zeros(16, 8)),
    "residual": (Residual, torch.zeros(2, 3, 8, 8)),
    "dense": (Dense, torch.zeros(2, 3, 8, 8)),
    "attention": (Attention, torch.zeros(2, 5, 16)),
    "words": (Words, torch.zeros(2, 6, dtype=torch.int64)),
}


@functools.cache
def traced(name: str) -> Structures:
    """Structures of a small network; they are frozen, so all tests share them."""
    make, example = NETWORKS[name]
    return channels(make(), example)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep every test away from the user's cache, and quiet about a busy machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tables, "MOST_SPREAD", float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads wait for each other where other programs run
    yield tmp_path / "structprune"
    torch.set_num_threads(threads)


@pytest.fixture(params=NETWORKS)
def structures(request: pytest.FixtureRequest) -> Structures:
    """Structures of each small network."""
    return traced(request.param)


def cost(structures: Structures, terms: tuple[Term, ...], widths: list[int]) -> int:
    """Sum of the terms, written out."""
    total = 0
    for term in terms:
        if isinstance(term, Table):
            total += int(term.entries[tuple(list(structures.axes[g].levels).index(widths[g]) for g in term.groups)])
        else:
            total += term.coefficient * prod(widths[g] for g in term.groups)
    return total


def full(structures: Structures) -> list[int]:
    """Widths of the dense network."""
    return [axis.size for axis in structures.axes]


def cache_file(folder: Path) -> Path:
    """The only file in the cache."""
    (path,) = folder.iterdir()
    return path


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of calls that each later measurement times."""
    counts: list[int] = []

    def count(calls: Any, *args: Any) -> np.ndarray:
        counts.append(len(calls))
        return timing.interleaved(calls, *args)

    monkeypatch.setattr(tables, "interleaved", count)
    return counts


def test_tables_have_one_entry_per_level(structures: Structures) -> None:
    """The terms are valid in a selection problem over the axes' levels."""
    terms = latency_ns(structures, rounds=1)
    groups = tuple(
        Group(axis.name, axis.levels, np.zeros(len(axis.levels)), np.arange(axis.entries.start, axis.entries.stop))
        for axis in structures.axes
    )
    problem = SelectionProblem(groups, (Capacity("latency_ns", 0, terms),), structures.n)
    dense = np.array([len(axis.levels) - 1 for axis in structures.axes])
    assert problem.evaluate(dense).used["latency_ns"] == cost(structures, terms, full(structures))


def test_no_width_costs_less_than_a_smaller_one(structures: Structures) -> None:
    """Every table is non-decreasing along every axis, and positive."""
    for term in latency_ns(structures, rounds=1):
        if isinstance(term, Table):
            assert term.entries.min() >= 0
            assert all((np.diff(term.entries, axis=d) >= 0).all() for d in range(term.entries.ndim))


def test_the_dense_network_is_predicted_as_measured(structures: Structures) -> None:
    """At full widths the terms sum to the dense network's latency, whether operators take less or more than that."""
    for dense_ns in (100_000, 1_000_000_000):
        terms = latency_ns(structures, rounds=1, dense_ns=dense_ns)
        assert dense_ns <= cost(structures, terms, full(structures)) <= 1.01 * dense_ns + len(terms)


def test_without_a_known_latency_the_recorded_graph_is_measured(own_cache: Path) -> None:
    """The prediction at full widths is the cached median of the whole network."""
    structures = traced("mlp")
    predicted = cost(structures, latency_ns(structures, rounds=3), full(structures))
    medians = json.loads(cache_file(own_cache).read_text())["medians_ns"]
    whole = max(value for key, value in medians.items() if key.startswith("network"))
    assert 0 <= predicted - whole <= 20


def test_narrower_networks_are_predicted_to_be_faster() -> None:
    """Halving the widths of a network of matrix products takes more than a third off its predicted latency."""
    model = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 8))
    structures = channels(model, torch.zeros(64, 256), multiple_of=16)
    terms = latency_ns(structures, rounds=5)
    half = [axis.size // 2 for axis in structures.axes]
    assert cost(structures, terms, half) < 0.67 * cost(structures, terms, full(structures))


def test_a_second_call_measures_nothing(structures: Structures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal questions are answered from the cache, and equally."""
    counts = counted_calls(monkeypatch)
    first = latency_ns(structures, rounds=1)
    second = latency_ns(structures, rounds=1)
    assert len(counts) == 1
    for one, two in zip(first, second, strict=True):
        assert one.groups == two.groups
        if isinstance(one, Table) and isinstance(two, Table):
            assert np.array_equal(one.entries, two.entries)
        else:
            assert one == two


def test_equal_layers_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of one shape need no more measurements than one of them."""
    counts = counted_calls(monkeypatch)
    once = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    twice = nn.Sequential(*once, nn.Linear(8, 8))
    latency_ns(channels(once, torch.zeros(4, 8)), rounds=1, cache=False, dense_ns=1)
    latency_ns(channels(twice, torch.zeros(4, 8)), rounds=1, cache=False, dense_ns=1)
    assert counts[0] == counts[1]


def test_no_cache_leaves_no_file(own_cache: Path) -> None:
    """With cache=False nothing is written."""
    latency_ns(traced("mlp"), rounds=1, cache=False)
    assert not own_cache.exists()


def test_the_cache_can_lie_anywhere(tmp_path: Path, own_cache: Path) -> None:
    """A folder given is made and used in place of the user's."""
    latency_ns(traced("mlp"), rounds=1, cache=tmp_path / "a" / "b")
    assert cache_file(tmp_path / "a" / "b").name.startswith("latency-")
    assert not own_cache.exists()


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\x00\xff", '{"format": 99}', "null"])
def test_a_damaged_cache_is_replaced(own_cache: Path, damage: str) -> None:
    """A truncated or foreign file gives a warning, is measured over, and is readable afterwards."""
    structures = traced("mlp")
    latency_ns(structures, rounds=1)
    path = cache_file(own_cache)
    path.write_bytes(damage.encode("latin-1"))
    with pytest.warns(UserWarning, match="measured again and the file is replaced"):
        latency_ns(structures, rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.Cache(own_cache, torch.device("cpu")).read()


def test_impossible_latencies_in_the_cache_are_refused(own_cache: Path) -> None:
    """A median that is zero, negative or no number is not believed."""
    store = cache.Cache(own_cache, torch.device("cpu"))
    for value in (0.0, -1.0, float("nan"), float("inf")):
        store.add({"good": 1.0})
        content = json.loads(store.path.read_text())
        content["medians_ns"]["bad"] = value
        store.path.write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="no positive numbers"):
            assert store.read() == {}


def test_the_cache_is_written_whole_or_not_at_all(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption while writing leaves the old file and no temporary one."""
    store = cache.Cache(own_cache, torch.device("cpu"))
    store.add({"old": 1.0})

    def interrupted(content: Any, file: Any) -> None:
        file.write('{"format"')
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.json, "dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add({"new": 2.0})
    assert store.read() == {"old": 1.0}
    assert cache_file(own_cache) == store.path


def test_the_cache_keeps_what_others_added(own_cache: Path) -> None:
    """Medians written by another process since the last reading stay."""
    first, second = (cache.Cache(own_cache, torch.device("cpu")) for _ in range(2))
    first.add({"a": 1.0})
    second.add({"b": 2.0})
    assert first.read() == {"a": 1.0, "b": 2.0}


def test_a_folder_that_cannot_be_written_to_gives_a_warning(tmp_path: Path) -> None:
    """The latencies are returned all the same."""
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="pass cache=False"):
        assert latency_ns(traced("mlp"), rounds=1, cache=tmp_path / "file" / "below")


def test_thread_counts_do_not_share_measurements() -> None:
    """Another number of threads is another environment."""
    threads = torch.get_num_threads()
    before = cache.environment(torch.device("cpu"))
    try:
        torch.set_num_threads(threads + 1)
        assert cache.environment(torch.device("cpu")) != before
    finally:
        torch.set_num_threads(threads)


def test_a_busy_machine_is_reported_and_not_remembered(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians whose quartiles lie far apart are used with a warning, but never cached."""
    monkeypatch.setattr(tables, "MOST_SPREAD", 0.5)
    with pytest.warns(UserWarning, match="quiet machine"):
        latency_ns(traced("mlp"), rounds=3)
    assert not own_cache.exists()


def test_operators_are_called_with_the_sizes_of_the_pruned_network(structures: Structures) -> None:
    """Every operator runs at least and half widths, and so does the whole network put together of them."""
    assert structures.labelled is not None
    network = Network(structures.labelled, structures.found, None, torch.device("cpu"))
    for widths in ([1] * len(structures.axes), [(axis.size + 1) // 2 for axis in structures.axes]):
        for call in callables([network.signature(node, widths) for node in network.operators], network.device):
            call()
        network.forward(widths)()


def test_random_tensors_are_laid_out_as_recorded() -> None:
    """Transposed and repeated dimensions keep the order of their strides, at any size."""
    recorded = torch.zeros(3, 4, 1, 5).transpose(1, 3).expand(3, 5, 6, 4)
    spec = TensorSpec.like(recorded, (3, 2, 6, 4))
    made = spec.arranged(torch.zeros(spec.stored))
    assert made.shape == (3, 2, 6, 4)
    assert made.stride() == (8, 1, 0, 2)


def test_the_batch_can_be_chosen() -> None:
    """A batch of its own multiplies the batched dimensions only."""
    structures = channels(Attention(), torch.zeros(1, 5, 16))
    assert structures.labelled is not None
    network = Network(structures.labelled, structures.found, 7, torch.device("cpu"))
    assert network.forward(full(structures))()[0].shape == (7, 5, 16)
    assert latency_ns(structures, batch=7, rounds=1)


def test_the_sum_follows_the_whole_network() -> None:
    """What the network takes beside its operators is constant, in proportion, or between, as it shrinks or not."""
    assert tables._scale(300, 100, 50, 50) == 1  # 200 stay whatever the widths
    assert tables._scale(300, 100, 50, 150) == 3  # nothing stays
    assert tables._scale(300, 100, 50, 100) == 2  # 100 stay
    assert tables._scale(300, 100, 50, 45) == 0.9  # wider operators gain from what they find in the caches
    assert tables._scale(300, 100, 50, -5) == 0.5  # noise: the narrow network took longer
    assert tables._scale(300, 100, 50, 900) == 3
    assert tables._scale(50, 100, 50, 50) == 0.5  # fused operators
    assert tables._scale(50, 100, 0, 0) == 0.5
    assert tables._scale(50, 0, 0, 0) == 1


def test_views_are_free() -> None:
    """A network of views between two linear layers has these two operators alone."""
    model = nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 4)), nn.Dropout(), nn.Flatten(), nn.Linear(12, 2))
    structures = channels(model, torch.zeros(4, 8))
    assert structures.labelled is not None
    network = Network(structures.labelled, structures.found, None, torch.device("cpu"))
    assert [str(node.target) for node in network.operators] == ["aten.linear.default"] * 2


def test_an_operator_along_many_axes_is_no_table_of_all_of_them() -> None:
    """The convolution after a concatenation is a sum over pairs: one input's width times the output's."""
    structures = traced("dense")
    terms = latency_ns(structures, rounds=1)
    join = next(index for index, axis in enumerate(structures.axes) if axis.size == 10)
    pairs = {term.groups for term in terms if isinstance(term, Table) and len(term.groups) == 2}
    assert len(structures.axes) == 4
    assert {frozenset(pair) for pair in pairs} == {frozenset({join, other}) for other in range(4) if other != join}


def test_the_line_lies_on_no_point_and_touches_two() -> None:
    """The upper line is feasible, and no other line of the grid tried here is lower in the sum."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = np.sort(rng.integers(1, 1000, 5))
        y = 5 + 0.3 * x + rng.normal(size=5) * 20
        y = np.maximum(y, 1)
        a, b = upper_line(x.tolist(), y.tolist())
        assert a >= 0 and b >= 0
        assert (a + b * x >= y - 1e-6).all()
        for slope in np.linspace(0, 3, 301):
            constant = max(float((y - slope * x).max()), 0.0)
            assert (a + b * x).sum() <= (constant + slope * x).sum() + 1e-6


def test_tables_that_are_too_large_are_refused() -> None:
    """Two axes of 2,100 widths each ask for coarser widths, and nothing is measured."""
    model = nn.Sequential(nn.Linear(2, 2100), nn.Linear(2100, 2100), nn.Linear(2100, 2))
    with pytest.raises(ValueError, match="multiple_of=8"):
        latency_ns(channels(model, torch.zeros(2, 2)), rounds=1)


def test_structures_without_an_example_are_refused() -> None:
    """Blocks without a traced network have no operators to measure."""
    with pytest.raises(ValueError, match=r"Pass example= to blocks\(\)"):
        latency_ns(blocks(mlp(), (4, 4)))


def test_blocks_take_as_long_as_the_dense_network() -> None:
    """Masked layers are no faster: their latency is one constant."""
    terms = latency_ns(blocks(mlp(), (4, 4), example=torch.zeros(16, 8)), rounds=1, dense_ns=10**9)
    assert terms == (Product((), 10**9),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rounds": 0}, "at least 1 round"), ({"batch": 0}, "at least 1 example"), ({"device": "meta"}, None)],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str | None) -> None:
    """No rounds and an empty batch are mistakes; the meta device, which computes nothing, means the CPU."""
    structures = traced("mlp")
    if message is None:
        assert latency_ns(structures, rounds=1, **arguments)
        return
    with pytest.raises(ValueError, match=message):
        latency_ns(structures, **{"rounds": 1, **arguments})


def test_progress_ends_at_its_total() -> None:
    """Progress goes up one by one, to the number announced from the start."""
    seen: list[tuple[int, int]] = []
    latency_ns(traced("mlp"), rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert {total for _, total in seen} == {seen[0][1]}


class Logged(nn.Module):
    """Writes down that it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.log.append(self.name)
        return x


def test_networks_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round times every network once, in evaluation mode without gradients; their modes are put back."""
    monkeypatch.setattr(timing, "LEAST_NS", 0)
    log: list[str] = []
    models = {"before": Logged("a", log), "after": Logged("b", log)}
    models["after"].eval()
    measured = measure(models, torch.zeros(2), rounds=4)
    assert "".join(log[-8:]) == "abababab"
    assert models["before"].training and not models["after"].training
    for result in measured.values():
        assert isinstance(result, Timing)
        assert 0 < result.low_ns <= result.median_ns <= result.high_ns


def test_a_larger_network_takes_longer() -> None:
    """Interleaved medians tell a large matrix product from a small one."""
    large, small = nn.Linear(1024, 2048), nn.Linear(1024, 8)
    measured = measure({"large": large, "small": small}, torch.zeros(64, 1024), rounds=7)
    assert measured["large"].median_ns > 2 * measured["small"].median_ns


def test_measure_takes_tuples_and_keywords() -> None:
    """The example is whatever one forward call takes."""
    measured = measure(
        {"bilinear": nn.Bilinear(2, 3, 4)}, {"input1": torch.zeros(5, 2), "input2": torch.zeros(5, 3)}, rounds=1
    )
    again = measure({"bilinear": nn.Bilinear(2, 3, 4)}, (torch.zeros(5, 2), torch.zeros(5, 3)), rounds=1)
    assert measured.keys() == again.keys()


@pytest.mark.gpu
def test_tables_on_cuda() -> None:
    """A CUDA device gives tables of the same form, timed with events."""
    structures = traced("residual")
    terms = latency_ns(structures, device="cuda", rounds=3)
    assert cost(structures, terms, full(structures)) > 1000
    assert measure({"model": Residual().cuda()}, torch.zeros(2, 3, 8, 8), rounds=3)["model"].median_ns > 1000
