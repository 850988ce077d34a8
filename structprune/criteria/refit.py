"""Fit a linear map's weight anew, so that a pruned network gives what the dense one gave.

For inputs ``x`` of the dense map and ``z`` of the pruned one, over sampled rows,

    minimise  sum_rows |t - V z - c|^2 + ridge |V - W|^2,

where ``W`` is the old weight and ``t`` the outputs to aim at: ``W x``, or what makes the network's next look at them
come out the same (:mod:`.response`). The intercept ``c`` is fitted where there is a place for it: the map's own bias,
or the running mean of a batch norm that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from structprune.axes.linear_maps import BATCH_NORM, MOVES, LinearMap
from structprune.axes.sweep import Sweep
from structprune.criteria.moments import Gather
from structprune.criteria.probing import matrices
from structprune.criteria.response import Response, response_behind
from structprune.structures import Structures

__all__ = ["Fitted", "fit", "fitted_maps"]

ROWS_PER_COLUMN = 96
"""Sampled rows behind each fitted weight: neighbouring positions of an image are much alike."""

ROUNDS = 3
"""Fits with targets that follow what was reached where the network clips it; more change little."""


@dataclass(frozen=True)
class Fitted:
    """A map whose weight serves nothing else, and the tensor that takes the intercept of its fit.

    Attributes
    ----------
    map
        The map.
    response
        What the network makes of its outputs.
    intercept
        Its bias, or the running mean of the batch norm that its outputs go to; None where neither is its own.
    sign
        What a unit of intercept adds to that tensor: 1 for a bias, -1 for a mean, which is subtracted.
    """

    map: LinearMap
    response: Response
    intercept: str | None
    sign: int


def fitted_maps(structures: Structures, maps: list[LinearMap], first: dict[str, str]) -> list[Fitted]:
    """Return the maps that can be fitted. A bias or mean that serves another operator too is left as it is.

    Parameters
    ----------
    structures
        Of a traced network.
    maps
        Its linear maps.
    first
        For every name of a tensor the first one, under which shared tensors are counted.
    """
    labelled = structures.labelled
    assert labelled is not None

    def uses(node: fx.Node) -> int:
        return sum(uses(user) if user.target in MOVES else 1 for user in node.users)

    used: dict[str, int] = {}
    for node in labelled.graph.module.graph.nodes:
        if node.op == "placeholder" and node.name in labelled.graph.tensors:
            name = first[labelled.graph.tensors[node.name]]
            used[name] = used.get(name, 0) + uses(node)
    found = []
    for one in maps:
        if used[first[one.weight]] > 1:
            continue
        mean = _mean_behind(one, labelled.graph.tensors) if one.bias is None else None
        place, sign = (one.bias, 1) if mean is None else (mean, -1)
        own = place if place is not None and used[first[place]] == 1 else None
        found.append(Fitted(one, response_behind(one), own, sign))
    return found


def _mean_behind(one: LinearMap, tensors: dict[str, str]) -> str | None:
    """Name of the running mean of the batch norm that the map's outputs go to, and to nothing else."""
    users = list(one.node.users)
    if len(users) != 1 or users[0].target != BATCH_NORM or users[0].args[0] is not one.node:
        return None
    mean = users[0].args[3]
    return tensors.get(mean.name) if isinstance(mean, fx.Node) else None


def fit(fitted: Fitted, dense: Sweep, pruned: Sweep, damping: float, seed: int) -> dict[str, Tensor]:
    """Return the new weight and intercept by name; empty where the pruned inputs are the dense ones.

    Parameters
    ----------
    fitted
        The map; it is the next to run in both sweeps.
    dense, pruned
        The two networks, side by side.
    damping
        The ridge, as a fraction of the mean second moment of the inputs.
    seed
        For the sampled positions.
    """
    one, response = fitted.map, fitted.response
    nodes = [one.source] if response.other is None else [one.source, response.other]
    changes = (zip(dense.batches(node), pruned.batches(node), strict=True) for node in nodes)
    if all(torch.equal(a, b) for pairs in changes for a, b in pairs):
        return {}
    old = [torch.from_numpy(matrix) for matrix in matrices(one, dense.weights)]  # type: ignore[arg-type]
    # A depthwise convolution's outputs go with its inputs, and one input leaves nothing to share out.
    if old[0].shape[1] <= 1 or (one.kind == "conv" and len(old) > 1 and dense.weights[one.weight].shape[1] == 1):
        return {}
    pass_over = _Rows(fitted, dense, pruned, old, seed)
    gram = [torch.zeros(0)] * len(old)
    reached: list[Tensor] | None = None
    for _ in range(ROUNDS if response.clips else 1):
        cross = [torch.zeros(0)] * len(old)
        for part, inputs, targets, scale in pass_over.rows(reached):
            if reached is None:
                moment = (inputs.T @ inputs).double().cpu() * scale
                gram[part] = gram[part] + moment if len(gram[part]) else moment
            both = (targets.T @ inputs).double().cpu() * scale
            cross[part] = cross[part] + both if len(cross[part]) else both
        reached = [
            _solved(matrix, own, both, damping, fitted.intercept is not None)
            for matrix, own, both in zip(old, gram, cross, strict=True)
        ]
    assert reached is not None
    return _unpack(fitted, reached, dense.weights[one.weight], pruned)


class _Rows:
    """Inputs of the pruned map and outputs to aim at, batch by batch, the same rows in every round."""

    def __init__(self, fitted: Fitted, dense: Sweep, pruned: Sweep, old: list[Tensor], seed: int) -> None:
        self._fitted = fitted
        self._dense = dense
        self._pruned = pruned
        self._old = old
        self._seed = seed

    def rows(self, reached: list[Tensor] | None) -> Iterator[tuple[int, Tensor, Tensor, float]]:
        """Convolution group, inputs ``(rows, n)``, targets ``(rows, m)`` and the positions that a row stands for."""
        one, response = self._fitted.map, self._fitted.response
        weight = self._dense.weights[one.weight]
        gather_dense, gather_pruned = (Gather(one, weight, self._seed, ROWS_PER_COLUMN) for _ in range(2))
        batches = zip(self._dense.batches(one.source), self._pruned.batches(one.source), strict=True)
        for batch, (before, after) in enumerate(batches):
            parts_dense, scale = gather_dense(before)
            parts_pruned, _ = gather_pruned(after)
            added_dense = response.added(self._dense, batch, gather_dense)
            added_pruned = response.added(self._pruned, batch, gather_pruned)
            slope, shift = response.affine(self._dense, before)
            if one.bias is not None:
                shift = shift + slope * self._dense.weights[one.bias].to(before)
            first = 0
            for part, (x, z) in enumerate(zip(parts_dense, parts_pruned, strict=True)):
                own = slice(first, first + len(self._old[part]))
                first = own.stop
                if self._fitted.intercept is not None:
                    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype, device=z.device)], 1)
                a, b = (value[own] if value.ndim else value for value in (slope, shift))
                plus, plus_pruned = (
                    value[:, own] if isinstance(value, Tensor) else value for value in (added_dense, added_pruned)
                )
                total = a * (x @ self._old[part].T.to(x)) + b + plus
                now = None if reached is None else a * (z @ reached[part].T.to(z)) + b + plus_pruned
                yield part, z, (response.wanted(total, now) - plus_pruned - b) / a, scale


def _solved(matrix: Tensor, gram: Tensor, cross: Tensor, damping: float, shifts: bool) -> Tensor:
    """The ridge regression; the last column is the intercept's where there is one, which is hardly damped."""
    if shifts:
        matrix = torch.cat([matrix, torch.zeros(len(matrix), 1)], 1)
    columns = len(gram) - shifts
    alive = gram.diagonal() > 0
    inputs = gram.diagonal()[:columns][alive[:columns]]
    ridge = damping * (inputs.mean().clamp(min=1e-12) if len(inputs) else torch.tensor(1e-12))
    system = gram + ridge * torch.eye(len(gram))
    if shifts:
        system[-1, -1] -= ridge * (1 - 1e-6)
    return torch.linalg.solve(system, (cross + ridge * matrix * alive).T).T * alive


def _unpack(fitted: Fitted, solved: list[Tensor], weight: Tensor, pruned: Sweep) -> dict[str, Tensor]:
    """The solved matrices in the shapes of the tensors they are for."""
    one = fitted.map
    found: dict[str, Tensor] = {}
    if fitted.intercept is not None:
        place = pruned.weights[fitted.intercept]
        found[fitted.intercept] = place + fitted.sign * torch.cat([part[:, -1] for part in solved]).to(place)
        solved = [part[:, :-1] for part in solved]
    matrix = torch.cat(solved)
    if one.kind == "linear" and one.transposed:
        matrix = matrix.T
    found[one.weight] = matrix.reshape(weight.shape).to(weight)
    return found
