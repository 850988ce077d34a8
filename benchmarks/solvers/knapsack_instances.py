"""Synthetic knapsacks: layers of structures with lognormal scores, and layers of many blocks.

Scores within a layer are lognormal, the layers' scales too, as those of trained networks roughly are; costs per
structure spread over three decades. Every instance is made anew from its seed.
"""

from __future__ import annotations

import numpy as np

from solvers.blocks import BlockLayers
from solvers.problem import Capacity, Group, Product, SelectionProblem, Table, Term

__all__ = ["blocks", "layers"]


def layers(seed: int, count: int, width: int, budgets: int = 1, stairs: bool = False) -> SelectionProblem:
    """Layers of ``width`` structures with lognormal scores; costs linear, or in 6 to 14 noisy steps, limits 50 %."""
    rng = np.random.default_rng(seed)
    levels = np.arange(1, width + 1)
    groups: list[Group] = []
    terms: list[list[Term]] = [[] for _ in range(budgets)]
    for g in range(count):
        scores = np.sort(rng.lognormal(size=width))[::-1] * rng.lognormal()
        groups.append(Group(f"layer{g}", levels, np.cumsum(scores), np.arange(g * width, (g + 1) * width)))
        for each in terms:
            unit = int(np.exp(rng.uniform(np.log(1e3), np.log(1e6))))
            if not stairs:
                each.append(Product((g,), unit))
                continue
            steps = int(rng.integers(6, 15))
            table = (np.ceil(levels / width * steps) / steps + 0.1) * unit * width
            table *= 1.0 + 0.03 * rng.standard_normal(width)
            each.append(Table((g,), np.maximum(table, 1.0).astype(np.int64)))
    dense = [len(group) - 1 for group in groups]
    capacities = []
    for k, each in enumerate(terms):
        alone = SelectionProblem(tuple(groups), (Capacity("alone", 0, tuple(each)),), count * width)
        capacities.append(Capacity(f"resource{k}", alone.used(dense)[0] // 2, tuple(each)))
    return SelectionProblem(tuple(groups), tuple(capacities), count * width)


def blocks(seed: int, size: int, fractions: tuple[float, ...], layers: int = 54, counted: bool = False) -> BlockLayers:
    """About ``size`` blocks in layers of different sizes, one cost per layer.

    Parameters
    ----------
    seed, size, layers
        Of the instance.
    fractions
        Limits as fractions of what everything uses. The first resource is like the multiply-accumulates of a block in
        a convolution of some area, further ones like parameters.
    counted
        Whether the last resource counts blocks: each costs 1.
    """
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.3, 1.7, size=layers)
    sizes = np.maximum(1, (size * share / share.sum()).astype(np.int64))
    values = tuple(rng.lognormal(size=int(count)) * rng.lognormal() for count in sizes)
    columns = [rng.integers(49, 12_544, size=layers)]
    columns += [rng.integers(9, 577, size=layers) for _ in fractions[1:]]
    if counted:
        columns[-1] = np.ones(layers, dtype=np.int64)
    costs = np.stack(columns, axis=1)
    limits = (np.array(fractions) * (sizes @ costs)).astype(np.int64)
    return BlockLayers(values, costs, limits)
