"""Discrimination-aware gains of channels, kernels or blocks, given what is kept (Zhuang et al. 2018, algorithm 2).

The weights ``W`` of the maps that an axis has entries in are zero but for the kept structures, and

    L(W) = sum_maps  L_rec(W) + lam L_S(W),

where ``L_rec`` is the squared distance of the maps' outputs from those of the dense network and ``L_S`` the loss of an
auxiliary head behind them, or the network's own. A structure's gain is ``||dL/dW_g||_F`` at the fitted ``W``, also
where ``W_g`` is zero. With ``lam = 0`` this is group orthogonal matching pursuit on the layer's outputs.

``L_rec`` is known in closed form by second moments. ``L_S`` needs passes through the network behind the maps, with
batch norm frozen. The fit takes Newton steps with the curvature ``(scale + lam s_o) H`` of output ``o``: ``H`` the
second moment of the inputs, which makes the step for ``L_rec`` exact, and ``s_o`` the mean squared gradient of ``L_S``
with respect to the output, the diagonal of its covariance (after K-FAC, Martens and Grosse 2015). A step that raises
the loss on its examples is shortened, or left out.

The same curvature around the weights before the selection expands L to second order (:meth:`DiscriminationOracle.
expansion`): least squares again, which solvers can choose by without asking the network any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from solvers.moment_least_squares import MomentLeastSquares, MomentMap, group_norms
from solvers.result import Selection
from structprune.axes.sweep import Sweep
from structprune.criteria.auxiliary import Objective
from structprune.criteria.moments import Gather
from structprune.criteria.owners import Owned, as_matrix, as_tensor
from structprune.criteria.span import Span
from structprune.data import batch_size

__all__ = ["Discrimination", "DiscriminationOracle", "Part", "parts_at"]

SHORTER = (1.0, 0.3, 0.1)
"""Fractions of a Newton step that are tried, longest first."""

INTERCEPT_DAMPING = 1e-6
"""Fraction of the inputs' damping that an intercept gets: it costs nothing, so that there is little to hold back."""


@dataclass(frozen=True)
class Discrimination:
    """Settings of the loss and its fit.

    Attributes
    ----------
    lam
        Weight of the discriminative loss L_S, in 1/nats; by default what held-out images chose on trained ResNets.
    norm
        'group' for gains ``||G_g||_F`` as in the paper, 'outputs' for ``sum_o ||G_{o,g}||`` as in the authors' code.
    relative
        Whether L_rec is divided by its value with nothing kept, so that layers compare; else it is the mean squared
        error of the authors' code.
    refits
        Newton steps of each fit.
    reconstruct_last
        Whether the weights that stay in the end are those that reconstruct best, whatever the picks were made by: a
        head that has seen few examples can lead a fit astray more easily than a choice. The paper's own are those of
        the picks' fits; on ResNets they lost several points.
    damping
        Ridge towards the weights before the selection, as a fraction of the inputs' mean second moment.
    rows_per_column
        Sampled output positions of a convolution, per column of its weight.
    pass_examples
        Examples of each pass through the network; the passes go through all examples in turn. None for all at once.

    Raises
    ------
    ValueError
        Numbers out of range.
    """

    lam: float = 0.1
    norm: Literal["group", "outputs"] = "group"
    relative: bool = True
    refits: int = 1
    reconstruct_last: bool = True
    damping: float = 1e-2
    rows_per_column: int = 48
    pass_examples: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lam < np.inf:
            raise ValueError(f"Expected lam >= 0. Got {self.lam}. Use 0 for reconstruction alone.")
        if self.norm not in ("group", "outputs"):
            raise ValueError(f"Expected norm to be 'group' or 'outputs'. Got {self.norm!r}. Use 'group'.")
        if not 0 <= self.damping < 1:
            raise ValueError(f"Expected damping in [0, 1). Got {self.damping}. Use for instance 0.01.")
        if self.refits < 1 or self.rows_per_column < 1 or (self.pass_examples is not None and self.pass_examples < 1):
            raise ValueError(
                "Expected refits, rows_per_column and pass_examples of at least 1. "
                f"Got {self.refits}, {self.rows_per_column} and {self.pass_examples}. Count steps, rows and examples."
            )


@dataclass(frozen=True, eq=False)
class Part:
    """One map of an axis with its moments.

    Attributes
    ----------
    owned
        The map and who owns its entries.
    moments
        Of its inputs and wanted outputs; where there is an intercept the last column is its.
    before
        The weight before the selection, ``(m, n)``, the intercept 0.
    """

    owned: Owned
    moments: MomentMap
    before: np.ndarray


def parts_at(
    owned: Sequence[Owned], size: int, dense: Sweep, pruned: Sweep, settings: Discrimination, seed: int
) -> list[Part]:
    """Read the moments of the maps' inputs and dense outputs, both sweeps standing at the first of the maps.

    Parameters
    ----------
    owned
        The maps, in the order of execution.
    size
        Number of structures.
    dense, pruned
        The network to imitate, and the one whose inputs the maps have. Inputs of later maps are those before anything
        of this axis goes.
    """
    first = owned[0].map.node
    there = Span.of(dense, first, [one.map.node for one in owned])
    here = Span.of(pruned, first, [one.map.source for one in owned])
    batches = list(zip(there.given(dense), here.given(pruned), strict=True))
    examples = sum(batch_size(given) for _, given in batches)
    gathers = [
        Gather(one.map, dense.weights[one.map.weight], seed, settings.rows_per_column, examples) for one in owned
    ]
    sums = [_Sums() for _ in owned]
    with torch.no_grad():
        for given_dense, given_pruned in batches:
            outputs = there.run(dense.weights, given_dense)
            inputs = here.run(pruned.weights, given_pruned)
            for one, gather, total, x, y in zip(owned, gathers, sums, inputs, outputs, strict=True):
                total.add(one, gather, x, y, pruned.weights)
    return [_part(one, total, examples, size, pruned.weights, settings) for one, total in zip(owned, sums, strict=True)]


class _Sums:
    """Running sums of a map's moments."""

    def __init__(self) -> None:
        self.moment: np.ndarray | float = 0.0
        self.cross: np.ndarray | float = 0.0
        self.square: np.ndarray | float = 0.0
        self.rows = 0.0

    def add(self, one: Owned, gather: Gather, x: Tensor, y: Tensor, weights: Mapping[str, Tensor]) -> None:
        (rows,), stands_for = gather(x)
        wanted = gather.outputs(y)
        if one.map.bias is not None:
            wanted = wanted - weights[one.map.bias]
        if one.fitted.intercept is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        self.moment = self.moment + (rows.T @ rows).double().cpu().numpy() * stands_for
        self.cross = self.cross + (rows.T @ wanted).double().cpu().numpy() * stands_for
        self.square = self.square + wanted.double().square().sum(0).cpu().numpy() * stands_for
        self.rows += len(rows) * stands_for


def _part(
    one: Owned, sums: _Sums, examples: int, size: int, weights: Mapping[str, Tensor], settings: Discrimination
) -> Part:
    before = as_matrix(one.map, weights[one.map.weight]).astype(np.float64)
    owner = one.owner
    moment, cross = np.asarray(sums.moment) / examples, np.asarray(sums.cross) / examples
    square = np.asarray(sums.square) / examples
    lost = (owner == size).all(axis=1)  # outputs that are gone already: nobody asks what they were
    cross[:, lost], square[lost] = 0.0, 0.0
    columns = before.shape[1]
    ridge = np.full(columns, settings.damping * float(np.mean(np.diag(moment)[:columns])))
    if one.fitted.intercept is not None:
        before = np.pad(before, ((0, 0), (0, 1)))
        owner = np.pad(owner, ((0, 0), (0, 1)), constant_values=-1)
        owner[lost, -1] = size
        ridge = np.append(ridge, INTERCEPT_DAMPING * ridge[:1])
    moment = moment + np.diag(ridge)
    cross = cross + ridge[:, None] * before.T
    energy = float(square.sum() + (ridge * before**2).sum())
    plain = MomentMap(moment, cross, energy, owner)
    scale = 2.0 * examples / (sums.rows * max(int((~lost).sum()), 1))
    if settings.relative:
        nothing = plain.loss(plain.fitted(np.zeros(size, dtype=bool)))
        scale = 1.0 / nothing if nothing > np.finfo(np.float32).tiny else 0.0
    return Part(one, MomentMap(moment, cross, energy, owner, scale), before)


class DiscriminationOracle:
    """An oracle of `solvers.oracle` over the structures of one axis.

    ``fit`` returns L after its steps; ``values`` gives ``||dL/dW_g||`` outside and inside, at the fitted weights; at a
    last fit by reconstruction, behind which nothing is picked any more, of L_rec alone.

    Parameters
    ----------
    parts
        The axis' maps.
    size
        Number of structures.
    settings
        Weights of the losses, and how to fit.
    state
        The network, standing at the first of the maps.
    targets
        Per batch of the sweep, what is to be answered.
    objective
        L_S; None where ``lam`` is 0.
    last
        With ``reconstruct_last``, the number of structures whose fit is the path's last: it is made by reconstruction
        at once, and costs one pass forwards. None where the end is not known beforehand.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        size: int,
        settings: Discrimination,
        state: Sweep,
        targets: Sequence[Any],
        objective: Objective | None,
        last: int | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self._size = size
        self._settings = settings
        self._closed = MomentLeastSquares([part.moments for part in parts], size, settings.norm == "outputs")
        self._before = [part.before for part in parts]
        self._owners = [part.moments.owner for part in parts]
        self._objective = objective if settings.lam else None
        self._outputs = [part.owned.map.node for part in parts]
        self._frozen = dict(state.weights)
        self._batches: list[tuple[list[Any], Any]] = []
        if self._objective is not None:
            self._span = Span.of(state, self._outputs[0], [*self._objective.nodes, *self._outputs])
            self._batches = list(zip(self._span.given(state), targets, strict=True))
        self._last = last if settings.reconstruct_last else None
        self._next = 0
        self._supports: list[np.ndarray] | None = None
        self.weights = [np.zeros(part.before.shape) for part in parts]
        self._gradients = [np.zeros(part.before.shape) for part in parts]
        #: Examples that went forward and backward through the network so far.
        self.looked_at = 0

    @property
    def size(self) -> int:
        """Number of structures."""
        return self._size

    def fit(self, kept: Selection) -> float:
        """Fit to the kept structures, those that are new from their weights before the selection."""
        if self._objective is None:
            loss = self._closed.fit(kept)
            self.weights = self._closed.weights
            self._gradients = [p.moments.gradient(w) for p, w in zip(self.parts, self.weights, strict=True)]
            return loss
        if int(kept.sum()) == self._last:
            self._closed.fit(kept)
            self.weights, self._supports = self._closed.weights, [part.moments.support(kept) for part in self.parts]
            self._gradients = [p.moments.gradient(w) for p, w in zip(self.parts, self.weights, strict=True)]
            return self._loss(self.weights, self._turn())
        supports = [part.moments.support(kept) for part in self.parts]
        earlier = self._supports or [np.zeros(support.shape, dtype=bool) for support in supports]
        weights = [
            np.where(support, np.where(known, weight, before), 0.0)
            for support, known, weight, before in zip(supports, earlier, self.weights, self._before, strict=True)
        ]
        self._supports = supports
        batches = self._turn()
        loss, slopes, squares = self._look(weights, batches)
        for _ in range(self._settings.refits if kept.any() else 0):  # nothing to fit but intercepts where nothing is
            direction = self._newton(weights, supports, slopes, squares)
            for fraction in SHORTER:
                tried = [weight - fraction * step for weight, step in zip(weights, direction, strict=True)]
                found = self._look(tried, batches)
                if found[0] <= loss:
                    break
            if not found[0] <= loss:
                break
            weights, (loss, slopes, squares) = tried, found
        self.weights = weights
        self._gradients = [self._settings.lam * slope for slope in slopes]
        for gradient, part, weight in zip(self._gradients, self.parts, weights, strict=True):
            gradient += part.moments.gradient(weight)
        return loss

    def values(self, kept: Selection) -> np.ndarray:
        """Norm of each structure's gradient at the fitted weights, ``(size,)``."""
        return group_norms(self._gradients, self._owners, self._size, self._settings.norm == "outputs")

    def expansion(self) -> list[MomentMap]:
        """L to second order around the weights before the selection: a map per part.

        The slope is that of these weights. The curvature is ``(scale I + lam S) x H`` with ``S`` the second moment of
        the gradient of L_S with respect to the outputs (K-FAC), the mean of ``S`` with everything and with nothing
        kept: where a network is sure of its answers it tells little of what losing them costs. Where all outputs share
        their inputs they are turned to the eigenvectors of ``S``; where they do not, its diagonal has to do. Rows carry
        the square root of their curvature, and 0 is the best that may be had with all structures.
        """
        whole = np.ones(self._size, dtype=bool)
        start = [np.where(one.moments.support(whole), one.before, 0.0) for one in self.parts]
        slopes = [np.zeros(weight.shape) for weight in start]
        products = [np.zeros((len(weight), len(weight))) for weight in start]
        if self._objective is not None:
            _, slopes, products = self._look(start, self._turn(), products=True)
            _, _, others = self._look([one.moments.fitted(~whole) for one in self.parts], self._turn(), products=True)
            products = [(one + other) / 2 for one, other in zip(products, others, strict=True)]
        return [self._expanded(*one) for one in zip(self.parts, start, slopes, products, strict=True)]

    def _expanded(self, part: Part, weight: np.ndarray, slope: np.ndarray, product: np.ndarray) -> MomentMap:
        moments, lam = part.moments, self._settings.lam
        there = (moments.owner != self._size).any(axis=1)
        owner = moments.owner[there]
        product = product[np.ix_(there, there)]
        values, turn = np.diag(product), np.eye(len(owner))
        if len(owner) and (owner == owner[0]).all():
            values, turn = np.linalg.eigh(product)
        curvature = moments.scale + lam * np.maximum(values, 0.0)
        root = np.sqrt(np.maximum(curvature, np.finfo(np.float32).tiny))[:, None]
        wanted = turn.T @ (moments.scale * moments.cross.T - lam * slope)[there]
        wanted += lam * np.maximum(values, 0.0)[:, None] * (turn.T @ weight[there] @ moments.moment)
        cross = (wanted / root).T
        found = MomentMap(moments.moment, cross, 0.0, owner)
        everything = found.fitted(np.ones(self._size, dtype=bool))
        return replace(found, energy=float(np.sum(everything * cross.T)))

    def settle(self, kept: Selection) -> None:
        """Make the weights those that are to stay for a selection; it is the one that was fitted last."""
        if self._settings.reconstruct_last:
            self._closed.fit(kept)
            self.weights = self._closed.weights

    def tensors(self) -> dict[str, Tensor]:
        """The fitted weights and intercepts by name, in the network's shapes and types."""
        found: dict[str, Tensor] = {}
        for part, matrix in zip(self.parts, self.weights, strict=True):
            found.update(self._written(part, torch.from_numpy(matrix)))
        return found

    def _written(self, part: Part, matrix: Tensor) -> dict[str, Tensor]:
        one, fitted = part.owned.map, part.owned.fitted
        found: dict[str, Tensor] = {}
        if fitted.intercept is not None:
            place = self._frozen[fitted.intercept]
            found[fitted.intercept] = place + fitted.sign * matrix[:, -1].to(place)
            matrix = matrix[:, :-1]
        found[one.weight] = as_tensor(one, matrix, self._frozen[one.weight])
        return found

    def _turn(self) -> list[tuple[list[Any], Any]]:
        """The batches of the next fit."""
        wanted = self._settings.pass_examples
        if wanted is None:
            return self._batches
        found: list[tuple[list[Any], Any]] = []
        count = 0
        while count < wanted and len(found) < len(self._batches):
            batch = self._batches[self._next % len(self._batches)]
            self._next += 1
            count += batch_size(batch)
            found.append(batch)
        return found

    def _newton(
        self,
        weights: list[np.ndarray],
        supports: list[np.ndarray],
        slopes: list[np.ndarray],
        squares: list[np.ndarray],
    ) -> list[np.ndarray]:
        """Step to the least of the quadratic that has the gradient of L and the curvature ``(scale + lam s_o) H``."""
        lam, steps = self._settings.lam, []
        for part, weight, support, slope, square in zip(self.parts, weights, supports, slopes, squares, strict=True):
            moments = part.moments
            curvature = np.maximum(moments.scale + lam * square, np.finfo(np.float32).tiny)
            gradient = moments.gradient(weight) + lam * slope
            steps.append(moments.preconditioned(support, np.where(support, gradient, 0.0)) / curvature[:, None])
        return steps

    @torch.no_grad()
    def _loss(self, weights: list[np.ndarray], batches: Sequence[tuple[list[Any], Any]]) -> float:
        """L alone."""
        assert self._objective is not None
        changed = dict(self._frozen)
        for part, weight in zip(self.parts, weights, strict=True):
            changed.update(self._written(part, torch.from_numpy(weight)))
        total, count = 0.0, 0
        for given, targets in batches:
            size = batch_size((targets, given))
            values = self._span.run(changed, given)[: len(self._objective.nodes)]
            total += float(self._objective.value(values, targets)) * size
            count += size
        closed = sum(part.moments.loss(weight) for part, weight in zip(self.parts, weights, strict=True))
        return closed + self._settings.lam * total / count

    def _look(
        self, weights: list[np.ndarray], batches: Sequence[tuple[list[Any], Any]], products: bool = False
    ) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """L, the gradient of L_S for each weight ``(m, n)``, and its mean squared gradient per output ``(m,)``.

        With ``products`` the last are the mean products of all pairs of outputs, ``(m, m)``.
        """
        assert self._objective is not None
        closed = sum(part.moments.loss(weight) for part, weight in zip(self.parts, weights, strict=True))
        leaves, changed = [], dict(self._frozen)
        for part, weight in zip(self.parts, weights, strict=True):
            written = self._written(part, torch.from_numpy(weight))
            name = part.owned.map.weight
            leaves.append(written[name].detach().requires_grad_())
            changed.update({**written, name: leaves[-1]})
        total, count = 0.0, 0
        slopes = [np.zeros(weight.shape) for weight in weights]
        squares = [np.zeros((len(weight),) * (2 if products else 1)) for weight in weights]
        split = len(self._objective.nodes)
        for given, targets in batches:
            size = batch_size((targets, given))
            with torch.enable_grad():
                values = self._span.run(changed, given)
                loss = self._objective.value(values[:split], targets)
                outputs = values[split:]
                found = torch.autograd.grad(loss, [*leaves, *outputs], allow_unused=True)
            total += float(loss.detach()) * size
            count += size
            for place, part in enumerate(self.parts):
                self._add(part, found[place], found[len(leaves) + place], size, slopes[place], squares[place])
        self.looked_at += count
        slopes = [slope / count for slope in slopes]
        return closed + self._settings.lam * total / count, slopes, [square / count for square in squares]

    def _add(
        self,
        part: Part,
        slope: Tensor | None,
        output: Tensor | None,
        size: int,
        slopes: np.ndarray,
        squares: np.ndarray,
    ) -> None:
        """Add one batch's gradients to the sums."""
        if slope is None or output is None:
            return
        one = part.owned.map
        matrix = as_matrix(one, slope)
        slopes[:, : matrix.shape[1]] += matrix.astype(np.float64) * size
        rows = output.transpose(0, 1).flatten(1) if one.kind == "conv" else output.flatten(0, -2).T
        if part.owned.fitted.intercept is not None:
            slopes[:, -1] += rows.sum(1).double().cpu().numpy() * size
        # The loss is a mean over the batch: times its size these are gradients of single examples' losses.
        found = rows.double()
        mean = found.square().mean(1) if squares.ndim == 1 else found @ found.T / found.shape[1]
        squares += mean.cpu().numpy() * size**3
