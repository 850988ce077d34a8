"""Norms of groups and proximal steps on weights, for index tensors and for axes of structures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from structprune.regularizers import MCP, GroupLasso, Weighted, axis_groups, group_norms, prox
from structprune.structures import Axis, blocks, channels
from tests.cases import BY_NAME
from tests.laws import channels_of

WEIGHTS = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 7.0]])
GROUPS = torch.tensor([[0, 0], [1, 1], [2, -1]])


def test_norms_are_euclidean() -> None:
    """Entries of no group count nowhere; groups without entries have norm 0."""
    assert group_norms(WEIGHTS, GROUPS).tolist() == [5.0, 1.0, 0.0]
    assert group_norms(WEIGHTS, GROUPS, 4).tolist() == [5.0, 1.0, 0.0, 0.0]


def test_a_group_may_reach_over_tensors() -> None:
    """Squares add up over names, and each tensor is scaled by the joint norm."""
    values = {"weight": torch.tensor([[3.0], [1.0]]), "bias": torch.tensor([4.0, 0.0])}
    groups = {"weight": torch.tensor([[0], [1]]), "bias": torch.tensor([0, 1])}
    assert group_norms(values, groups).tolist() == [5.0, 1.0]
    found = prox(GroupLasso(1.0), values, groups, 2.0)
    torch.testing.assert_close(found["weight"], torch.tensor([[1.8], [0.0]]))
    torch.testing.assert_close(found["bias"], torch.tensor([2.4, 0.0]))


def test_prox_scales_each_group_along_itself() -> None:
    """Directions stay, entries of no group stay, the argument is not written to."""
    before = WEIGHTS.clone()
    found = prox(GroupLasso(2.0), WEIGHTS, GROUPS, 0.5)
    torch.testing.assert_close(found, torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 7.0]]))
    assert torch.equal(WEIGHTS, before)


def test_half_precision_is_summed_in_single() -> None:
    """The squares of 1000 entries of 100 do not overflow, and the type of the weights is kept."""
    weights = torch.full((1000,), 100.0, dtype=torch.float16)
    groups = torch.zeros(1000, dtype=torch.int64)
    torch.testing.assert_close(group_norms(weights, groups), torch.tensor([100.0 * 1000**0.5]))
    assert prox(GroupLasso(1.0), weights, groups, 1.0).dtype == torch.float16


def test_weights_per_group_are_steps_per_group() -> None:
    """The weighted lasso subtracts each group's own amount, and its value is the weighted sum."""
    weighted = Weighted(GroupLasso(2.0), torch.tensor([1.0, 3.0, 0.0]))
    norms = torch.tensor([5.0, 5.0, 5.0])
    torch.testing.assert_close(weighted.prox_norms(norms, 0.5), torch.tensor([4.0, 2.0, 5.0]))
    assert float(weighted.value(norms)) == 40.0


def test_blocks_of_structures_are_groups() -> None:
    """An axis of blocks gives its own index; the squared norms are the structures' sums of squares."""
    model = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))
    structures = blocks(model, (3, 4))
    named = {name: p.detach() for name, p in model.named_parameters()}
    for axis in structures.axes:
        groups = axis_groups(axis, structures.shapes)
        norms = group_norms({name: named[name] for name in groups}, groups, axis.size)
        wanted = axis.sum({name: p.square() for name, p in named.items()})
        torch.testing.assert_close(norms.double().square(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "residual", "torch_encoder"])
def test_channels_of_structures_are_groups(name: str) -> None:
    """An axis of channels reaches over producers, norms and consumers; the same sums of squares."""
    structures = channels_of(BY_NAME[name])
    model, _ = BY_NAME[name].make()
    named = {n: p.detach() for n, p in model.named_parameters()}
    for axis in structures.axes:
        groups = axis_groups(axis, {n: s for n, s in structures.shapes.items() if n in named})
        norms = group_norms({n: named[n] for n in groups}, groups, axis.size)
        wanted = axis.sum({n: p.square() for n, p in named.items()})
        torch.testing.assert_close(norms.double().square(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-8)


class Twice(nn.Module):
    """A square layer whose input and output are added: one axis along both dimensions of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual."""
        x = self.first(x)
        return self.last((x + self.square(x)).relu())


def test_overlapping_groups_are_refused() -> None:
    """A weight in two structures has no proximal map of norms; leaving that tensor out works."""
    structures = channels(Twice(), torch.randn(2, 4))
    (axis,) = structures.axes
    with pytest.raises(ValueError, match="Leave square.weight out"):
        axis_groups(axis, structures.shapes)
    groups = axis_groups(axis, {n: s for n, s in structures.shapes.items() if n != "square.weight"})
    assert set(groups) == {"first.weight", "first.bias", "square.bias", "last.weight"}


def test_mistakes_are_named() -> None:
    """Shapes, types, names and indices that do not fit."""
    with pytest.raises(ValueError, match="Expected int64 groups of shape"):
        group_norms(WEIGHTS, GROUPS[:2])
    with pytest.raises(ValueError, match="Expected int64 groups of shape"):
        group_norms(WEIGHTS, GROUPS.int())
    with pytest.raises(ValueError, match="Expected groups from -1 to 1"):
        group_norms(WEIGHTS, GROUPS, 2)
    with pytest.raises(ValueError, match="Use equal names"):
        group_norms({"a": WEIGHTS}, {"b": GROUPS})
    with pytest.raises(ValueError, match="two tensors or two mappings"):
        group_norms({"a": WEIGHTS}, GROUPS)
    with pytest.raises(ValueError, match="Expected a tensor of the axis"):
        axis_groups(blocks(nn.Linear(4, 4), (2, 2)).axes[0], {})
    with pytest.raises(TypeError, match="Expected a ChannelAxis or an EntryAxis"):
        axis_groups(Axis("a", 1, 0, GROUPS[0].numpy()), {})
    with pytest.raises(ValueError, match="Expected one finite weight"):
        Weighted(MCP(), torch.tensor([-1.0]))
