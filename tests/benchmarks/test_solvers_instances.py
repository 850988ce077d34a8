"""The synthetic instances have the true shapes of their networks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.solvers.instances import levels_of, problem
from benchmarks.solvers.latency_model import LatencyModel
from benchmarks.solvers.networks import (
    NETWORKS,
    Network,
    llama_7b,
    mobilenet_v2,
    resnet18,
    resnet50,
    resnet152,
    unet,
    vit_b,
)


@pytest.mark.parametrize(
    ("network", "macs", "params", "widths"),
    [
        (resnet18(), "1.814 G", "11.68 M", 12),
        (resnet50(), "4.089 G", "25.50 M", 37),
        (resnet152(), "11.51 G", "60.04 M", 105),
        (mobilenet_v2(), "0.3008 G", "3.470 M", 25),
        (vit_b(), "17.56 G", "86.29 M", 25),
        (llama_7b(), "14631 G", "6738 M", 65),
        (unet(), "54.61 G", "31.02 M", 22),
    ],
    ids=lambda given: given.name if isinstance(given, Network) else None,
)
def test_totals(network: Network, macs: str, params: str, widths: int) -> None:
    """Macs and parameters are those of the real networks without norms and biases."""
    for resource, text, unit in (("macs", macs, 10**9), ("params", params, 10**6)):
        number = text.split()[0]
        digits = len(number.partition(".")[2])
        assert f"{network.dense(resource) / unit:.{digits}f}" == number
    assert len(network.widths) == widths


@pytest.mark.parametrize("make", NETWORKS)
def test_dense_is_what_a_problem_uses(make) -> None:
    """The widest choice uses the whole network's macs and params, and keeps all value."""
    network = make()
    step = 64 if network.widths[-1].size > 1000 else 16
    made = problem(network, {"macs": 0.5, "params": 0.5}, step=step)
    found = made.evaluate([len(group) - 1 for group in made.groups])
    assert found.used == {"macs": network.dense("macs"), "params": network.dense("params")}
    assert found.value == pytest.approx(1.0)
    assert made.capacities[0].limit == network.dense("macs") // 2


def test_levels() -> None:
    """Widths are multiples of the step and the whole width; heads stay whole."""
    by_name = {width.name: level for width, level in zip(vit_b().widths, levels_of(vit_b(), 8), strict=True)}
    assert by_name["layer0.heads"].tolist() == list(range(64, 769, 64))
    assert by_name["stream"][:2].tolist() == [8, 16]
    assert levels_of(resnet18(), 48)[0].tolist() == [48, 64]
    assert [len(level) for level in levels_of(resnet18(), 1)] == [width.size for width in resnet18().widths]


def test_equal_seeds_give_equal_problems() -> None:
    """The generator and its seed are the instance."""
    budgets = {"latency_ns": 0.6}
    first, again = (problem(mobilenet_v2(), budgets, seed=3) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != problem(mobilenet_v2(), budgets, seed=4).fingerprint


def test_latency_without_noise() -> None:
    """An operator takes its overhead and whole tiles of 32 channels in and 64 out."""
    network = resnet18()
    levels = levels_of(network, 8)
    tables = LatencyModel(noise=0.0).tables(network, levels)
    conv = next(one for one in network.operators if one.name == "stage1.0.conv1")
    table = tables[network.operators.index(conv)]
    for i, j in ((0, 0), (3, 7), (4, 7), (7, 7)):
        tiles = -(-int(levels[0][i]) // 32) * 32 * 64
        assert table.entries[i, j] == 5_000 + -(-conv.work * tiles // 2_000)


def test_latency_noise() -> None:
    """Noise is about 2 %, and makes some wider operator faster than a narrower one."""
    network = resnet18()
    levels = levels_of(network, 8)
    clean, noisy = (LatencyModel(noise=noise).tables(network, levels) for noise in (0.0, 0.02))
    errors = np.concatenate([(a.entries / b.entries - 1).ravel() for a, b in zip(noisy, clean, strict=True)])
    assert np.std(errors) == pytest.approx(0.02, rel=0.1)
    assert any(np.any(np.diff(table.entries, axis=0) < 0) for table in noisy)


def test_no_channels_no_time() -> None:
    """An operator that has lost all channels on one side takes no time."""
    network = resnet18()
    levels = [np.concatenate([[0], level]) for level in levels_of(network, 32)]
    for table in LatencyModel().tables(network, levels):
        assert table.entries.flat[0] == 0
        assert table.entries.flat[-1] > 0


def test_removable_branches() -> None:
    """A branch of two widths goes whole or stays: the value tables forbid everything between."""
    network = resnet50()
    made = problem(network, {"latency_ns": 0.5}, step=64, removable=True)
    assert len(made.value_tables) == len(network.blocks) == 12
    choice = made.checked([len(group) - 1 for group in made.groups])
    first, second = network.blocks[0]
    choice[first] = 0
    assert made.evaluate(choice).value == -np.inf
    choice[second] = 0
    assert np.isfinite(made.evaluate(choice).value)
    dense = made.used([len(group) - 1 for group in made.groups])[0]
    assert dense - made.used(choice)[0] > 3 * 0.8 * 5_000  # three operators less


def test_unknown_resource() -> None:
    """A resource that shapes do not tell is refused."""
    with pytest.raises(ValueError, match="Expected 'macs' or 'params'"):
        problem(resnet18(), {"energy": 0.5})
