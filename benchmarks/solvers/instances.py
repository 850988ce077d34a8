"""Allocation problems with the true shapes of networks and SYNTHETIC scores: a generator and its seed.

    problem(resnet50(), {"macs": 0.5}, step=8, sigma=1.0, seed=0)

Scores are lognormal, and so is each layer's scale; real ones are in `benchmarks.solvers.real_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from benchmarks.solvers.latency_model import LatencyModel
from benchmarks.solvers.networks import Network
from solvers.problem import Capacity, Group, IntArray, SelectionProblem, Term, ValueTable

__all__ = ["SIGMAS", "levels_of", "name_of", "problem"]

#: Spreads of the lognormal scores inside a layer: nearly equal, as trained layers often are, and heavy-tailed.
SIGMAS = (0.3, 1.0, 1.8)


def problem(
    network: Network,
    budgets: Mapping[str, float],
    *,
    step: int = 8,
    sigma: float = 1.0,
    seed: int = 0,
    by_degree: bool = False,
    latency: LatencyModel | None = None,
    removable: bool = False,
) -> SelectionProblem:
    """Return the problem of choosing the widths of a network with synthetic scores.

    Parameters
    ----------
    budgets
        Allowed fraction of the dense network's 'macs', 'params' or 'latency_ns'.
    step
        Widths are multiples of this (or of a head's dimensions, if larger), and the whole width; 1 for every width.
    sigma
        Standard deviation of the logarithm of the scores within a layer. Each layer's scale is lognormal with
        standard deviation 1.
    seed
        Of the scores: equal seeds give equal problems.
    by_degree
        Multiply a layer's scores by the number of operators that touch it, as a sum over its tensors would.
    latency
        Where the tables of 'latency_ns' come from; by default ``LatencyModel(seed=seed)``.
    removable
        Whether residual branches can be left out: the widths inside get level 0, all of a branch or none.

    Returns
    -------
    SelectionProblem
        One group per width, one capacity per budget; values rise by the sorted scores, 1 in total.
    """
    levels = levels_of(network, step, removable)
    rng = np.random.default_rng(seed)
    degrees = network.degrees()
    scores = []
    for index, width in enumerate(network.widths):
        units = width.size // width.unit
        drawn = np.repeat(np.sort(rng.lognormal(sigma=sigma, size=units))[::-1], width.unit) / width.unit
        scores.append(drawn * rng.lognormal() * (degrees[index] if by_degree else 1))
    total = sum(float(one.sum()) for one in scores)
    groups, start = [], 0
    for width, allowed, score in zip(network.widths, levels, scores, strict=True):
        kept = np.concatenate([[0.0], np.cumsum(score / total)])[allowed]
        groups.append(Group(width.name, allowed, kept, np.arange(start, start + width.size)))
        start += width.size
    capacities = tuple(
        _capacity(resource, fraction, network, levels, latency or LatencyModel(seed=seed))
        for resource, fraction in budgets.items()
    )
    tables = _together(network, levels) if removable else ()
    return SelectionProblem(tuple(groups), capacities, start, value_tables=tables)


def levels_of(network: Network, step: int, removable: bool = False) -> list[IntArray]:
    """Return the allowed numbers of channels per width: multiples of the step, and all of them; 0 in branches."""
    inside = {width for block in network.blocks for width in block} if removable else set()
    found = []
    for index, width in enumerate(network.widths):
        each = -(-step // width.unit) * width.unit
        first = 0 if index in inside else each
        found.append(np.unique(np.append(np.arange(first, width.size, each, dtype=np.int64), width.size)))
    return found


def _together(network: Network, levels: list[IntArray]) -> tuple[ValueTable, ...]:
    """Tables that forbid a branch of which one width is gone and the next is not."""
    tables = []
    for block in network.blocks:
        for first, second in zip(block, block[1:], strict=False):
            gone = (levels[first] == 0)[:, None], (levels[second] == 0)[None, :]
            label = f"{network.widths[first].name} and {network.widths[second].name} go together"
            tables.append(ValueTable((first, second), np.where(gone[0] == gone[1], 0.0, -np.inf), label))
    return tuple(tables)


def _capacity(
    resource: str, fraction: float, network: Network, levels: list[IntArray], latency: LatencyModel
) -> Capacity:
    terms: tuple[Term, ...]
    if resource == "latency_ns":
        tables = latency.tables(network, levels)
        terms, dense = tuple(tables), sum(int(table.entries.flat[-1]) for table in tables)
    else:
        terms, dense = tuple(network.terms(resource)), network.dense(resource)
    # The decimal that was written, not its binary neighbour.
    return Capacity(resource, int(Fraction(str(fraction)) * dense), terms)


def name_of(network: Network, budgets: Mapping[str, float], step: int, sigma: float, seed: int) -> str:
    """Return an instance's name for tables, such as 'ResNet-50 macs 0.5, step 8, sigma 1, seed 0'."""
    caps = " ".join(f"{resource.removesuffix('_ns')} {fraction:g}" for resource, fraction in budgets.items())
    return f"{network.name} {caps}, step {step}, sigma {sigma:g}, seed {seed}"
