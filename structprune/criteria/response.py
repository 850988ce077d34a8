"""What a network makes of a linear map's outputs before it looks at them.

Often ``clip(a y + b + other, low, high)``: a batch norm's scale and shift per output, a residual branch that is added,
a ReLU. A fit need not reach outputs that are clipped away, and it can make up for errors of the other branch. The
fitted outputs are only asked to give the same clipped sum (after the asymmetric response reconstruction of Zhang, Zou,
He and Sun 2016, section 3.2, who alternate between targets and weights as is done here).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from structprune.axes.linear_maps import BATCH_NORM, LinearMap
from structprune.axes.sweep import Sweep
from structprune.criteria.moments import Gather

__all__ = ["Response", "response_behind"]

aten = torch.ops.aten

#: Operators that clip, with the limits they take by default.
CLIPS: dict[Any, tuple[float, float]] = {
    aten.relu.default: (0.0, inf),
    aten.hardtanh.default: (-1.0, 1.0),
    aten.clamp.default: (-inf, inf),
    aten.clamp_min.default: (0.0, inf),
}


@dataclass(frozen=True)
class Response:
    """``clip(a y + b + other, low, high)`` of a map's outputs ``y``.

    Attributes
    ----------
    norm
        The batch norm that gives ``a`` and ``b``; None for 1 and 0.
    other
        What is added, known before the map runs; None for nothing.
    low, high
        Bounds of the clipping.
    """

    norm: fx.Node | None = None
    other: fx.Node | None = None
    low: float = -inf
    high: float = inf

    @property
    def clips(self) -> bool:
        """Whether some outputs need not be reached."""
        return self.low > -inf or self.high < inf

    def affine(self, state: Sweep, like: Tensor) -> tuple[Tensor, Tensor]:
        """``a`` and ``b`` per output, shape ``(outputs,)``, of a dense network; ``a`` is never 0."""
        if self.norm is None:
            return torch.ones((), dtype=like.dtype, device=like.device), torch.zeros(
                (), dtype=like.dtype, device=like.device
            )
        scale, shift, mean, variance = (self._tensor(state, position, like) for position in (1, 2, 3, 4))
        slope = scale / (variance + float(self.norm.args[6])).sqrt()  # type: ignore[arg-type]
        slope = torch.where(slope == 0, torch.ones_like(slope), slope)  # an output that nobody sees
        return slope, shift - mean * slope

    def _tensor(self, state: Sweep, position: int, like: Tensor) -> Tensor:
        assert self.norm is not None
        node = self.norm.args[position]
        if not isinstance(node, fx.Node):  # a batch norm without scale and shift
            return torch.full((), 1.0 if position == 1 else 0.0, dtype=like.dtype, device=like.device)
        return state.batches(node)[0].to(like)

    def added(self, state: Sweep, batch: int, gather: Gather) -> Tensor | float:
        """The other branch at the rows that ``gather`` read last, ``(rows, outputs)``."""
        return 0.0 if self.other is None else gather.outputs(state.batches(self.other)[batch])

    def wanted(self, dense: Tensor, reached: Tensor | None) -> Tensor:
        """The sum to aim at: the dense one, or where it is clipped the one ``reached``, if that is clipped too."""
        if reached is None or not self.clips:
            return dense
        below, above = dense <= self.low, dense >= self.high
        aim = torch.where(below, reached.clamp(max=self.low), dense)
        return torch.where(above, reached.clamp(min=self.high), aim)


def response_behind(one: LinearMap) -> Response:
    """What follows the map, as far as each step is the only one that looks at the outputs."""
    order = {node: number for number, node in enumerate(one.node.graph.nodes)}
    node, norm, other = one.node, None, None
    user = _only_user(node)
    if user is not None and user.target == BATCH_NORM and user.args[0] is node and _readable(user):
        first = [found for found in user.users if found.args[1] == 0]
        if len(first) != 1 or len(user.users) != 1:
            return Response()
        norm, node = user, first[0]
        user = _only_user(node)
    if user is not None and user.target == aten.add.Tensor and not user.kwargs:
        operands: list[Any] = [operand for operand in user.args if operand is not node]
        if len(operands) == 1 and _like(operands[0], node) and order[operands[0]] < order[one.node]:
            other, node = operands[0], user
            user = _only_user(node)
    low, high = _bounds(user)
    return Response(norm, other, low, high)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _readable(norm: fx.Node) -> bool:
    """Whether scale, shift and statistics are parameters or buffers rather than computed."""
    return all(not isinstance(norm.args[i], fx.Node) or norm.args[i].op == "placeholder" for i in (1, 2, 3, 4))  # type: ignore[union-attr]


def _like(operand: Any, node: fx.Node) -> bool:
    """Whether the operand is a tensor of the same shape."""
    found = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    own = node.meta.get("val")
    return isinstance(found, Tensor) and isinstance(own, Tensor) and found.shape == own.shape


def _bounds(user: fx.Node | None) -> tuple[float, float]:
    """Limits that the operator clips to; infinite where it does not."""
    if user is None or user.target not in CLIPS:
        return -inf, inf
    limits = [*user.args[1:], *CLIPS[user.target][len(user.args) - 1 :]]
    low, high = (default if limit is None else limit for limit, default in zip(limits, (-inf, inf), strict=True))
    return float(low), float(high)  # type: ignore[arg-type]
