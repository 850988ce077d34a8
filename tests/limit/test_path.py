"""Nested supports: recomputed from masks, valid at every position, nothing lost that always stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solvers.effective_dimension import Spectrum
from solvers.pruning_threshold import paper_threshold
from structprune.limit.active import checked_path
from structprune.limit.curvature import LossAt
from structprune.limit.layout import Layout
from structprune.limit.path import Path, removal_path
from structprune.structures import Structures, blocks, channels, kernels, nm
from tests.cases import BY_NAME, Case

KINDS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Structures | None]]] = {
    "weights": ("mlp", lambda model, example: None),
    "channels": ("plain", channels),
    "channels of residual blocks": ("residual", channels),
    "channels by fours": ("plain", lambda model, example: channels(model, example, multiple_of=4)),
    "heads": ("attention", channels),
    "blocks": ("mlp", lambda model, example: blocks(model, (4, 3))),
    "kernels": ("plain", lambda model, example: kernels(model)),
    "nm": ("mlp", lambda model, example: nm(model)),
}
kinds = pytest.mark.parametrize("kind", KINDS)
structured = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weights"])


@cache
def made(kind: str) -> tuple[nn.Module, Structures | None, Path]:
    """A network, its structures and its path."""
    name, build = KINDS[kind]
    model, example = BY_NAME[name].make()
    structures = build(model, example)
    return model, structures, removal_path(model, structures)


def places(path: Path, count: int = 9) -> list[int]:
    """A few positions, both ends among them."""
    return [int(j) for j in np.unique(np.linspace(0, path.last, count).astype(int))]


@kinds
def test_supports_are_nested(kind: str) -> None:
    """What is kept at one position is kept at all later ones, and at the last everything is."""
    _, _, path = made(kind)
    supports = torch.stack([path.kept(j) for j in places(path)])
    assert bool((supports[1:] >= supports[:-1]).all())
    assert bool(supports[-1].all())
    assert not bool(path.cut(path.last).any())


@kinds
def test_counts_and_energies_are_those_of_the_masks(kind: str) -> None:
    """Kept weights and the removed energy come out the same when they are counted from the masks."""
    model, _, path = made(kind)
    weights = path.layout.weights(model)
    counts, energy = path.counts(), path.energy(weights)
    for j in places(path):
        kept = path.kept(j)
        assert counts[j] == int(kept.sum())
        assert energy[j] == pytest.approx(float(weights[~kept].double().square().sum()))
    some = np.arange(path.layout.size) % 3 == 0
    assert path.counts(some)[0] == int((path.kept(0).numpy() & some).sum())
    assert energy[path.last] == 0


@kinds
def test_masks_by_name_are_the_same_support(kind: str) -> None:
    """The masks of the parameters, flat and in order, are the support."""
    _, _, path = made(kind)
    j = path.last // 2
    assert bool((path.layout.flat(path.kept_mask(j)) == path.kept(j)).all())


@kinds
def test_only_removed_weights_are_cut(kind: str) -> None:
    """The part of the removed weights that the loss notices is a part of them."""
    _, _, path = made(kind)
    assert all(bool((~path.kept(j) | ~path.cut(j)).all()) for j in places(path))


def test_single_weights_come_back_by_size() -> None:
    """Position j keeps the j largest entries of the matrices, and every bias."""
    model, _, path = made("weights")
    weights = path.layout.weights(model).abs()
    prunable = torch.from_numpy(path.birth > 0)
    assert path.free == 16 + 12 + 5
    for j in places(path):
        chosen = path.kept(j) & prunable
        assert int(chosen.sum()) == j
        if 0 < j < path.last:
            assert float(weights[chosen].min()) >= float(weights[~path.kept(j)].max())


def selection_at(path: Path, structures: Structures, position: int) -> np.ndarray:
    """Which structures are complete at a position, from the masks alone."""
    masks = path.kept_mask(position)
    ones = {name: torch.ones(shape) for name, shape in structures.shapes.items() if name in masks}
    whole = structures.sum(ones)
    there = structures.sum({name: masks[name].float() for name in ones})
    energy = np.zeros(structures.n, dtype=bool)
    for index in range(structures.n):
        alone = np.ones(structures.n, dtype=bool)
        alone[index] = False
        own = structures.masks(alone)
        energy[index] = any(bool((masks[name] & ~mask).any()) for name, mask in own.items() if name in masks)
    # A structure is there if something that only it could remove is there.
    return energy & ((there > 0) | (whole == 0))


@structured
def test_masks_are_those_of_a_selection(kind: str) -> None:
    """Every position is a selection of whole structures: the same masks as the structures give for it."""
    _, structures, path = made(kind)
    assert structures is not None
    for j in places(path, 5):
        selection = selection_at(path, structures, j)
        assert int(selection.sum()) == path.structures[j]
        expected, found = structures.masks(selection), path.kept_mask(j)
        for name, mask in found.items():
            assert bool((mask == expected.get(name, torch.ones_like(mask))).all()), name


@pytest.mark.parametrize("kind", ["channels", "channels by fours", "channels of residual blocks", "heads"])
def test_widths_are_ones_that_the_axis_allows(kind: str) -> None:
    """No axis of channels is ever emptied, and widths go in the steps that were asked for."""
    _, structures, path = made(kind)
    assert structures is not None
    for j in places(path, 6):
        widths = structures.widths(selection_at(path, structures, j))
        assert all(width in axis.levels for width, axis in zip(widths, structures.axes, strict=True))
        assert min(widths) >= 1


def test_structures_come_back_by_energy_per_weight() -> None:
    """At every position the blocks of an axis that stay have more energy per weight than those that do not."""
    model, structures, path = made("blocks")
    assert structures is not None
    squares = {name: p.detach().double().square() for name, p in model.named_parameters()}
    energy = structures.sum(squares) / structures.count
    for j in places(path)[1:-1]:
        selection = selection_at(path, structures, j)
        assert energy[selection].min() >= energy[~selection].max()


def test_nm_layers_are_valid_at_every_position() -> None:
    """Every run of four inputs has two weights, the two largest, or all four; and so has the whole layer."""
    model, structures, path = made("nm")
    assert structures is not None
    assert path.last == len(structures.axes) == 2
    for j in range(path.last + 1):
        for axis in structures.axes:
            (name,) = axis.tensors()
            runs = path.kept_mask(j)[name].reshape(-1, 4)
            left = runs.sum(1)
            assert bool((left == 2).all()) or bool((left == 4).all())
            sizes = model.get_parameter(name).detach().abs().reshape(-1, 4)
            kept = torch.where(runs, sizes, torch.inf).min(1).values
            assert bool((kept >= torch.where(runs, 0, sizes).max(1).values).all())


@kinds
def test_free_weights_always_stay(kind: str) -> None:
    """A parameter named by a pattern is whole at every position."""
    name, build = KINDS[kind]
    model, example = BY_NAME[name].make()
    chosen = "fc2" if name == "mlp" else next(n for n, p in model.named_parameters() if p.ndim > 1)
    path = removal_path(model, build(model, example), free=(chosen,))
    weight = chosen if chosen.endswith("weight") else f"{chosen}.weight"
    assert bool(path.kept_mask(0)[weight].all())


def test_a_pattern_may_be_given_alone() -> None:
    """A single string is one pattern, not a sequence of letters."""
    model, _ = BY_NAME["mlp"].make()
    assert removal_path(model, free="fc1").free == removal_path(model, free=["fc1.*"]).free


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    """A name that is not there is refused with names that are."""
    model, _ = BY_NAME["mlp"].make()
    with pytest.raises(ValueError, match="fc9.*matches none. Names look like.*fc1.weight"):
        removal_path(model, free=("fc9",))


def test_nothing_to_remove_is_refused() -> None:
    """A path without a step is refused."""
    model, _ = BY_NAME["mlp"].make()
    with pytest.raises(ValueError, match="Pass fewer free="):
        removal_path(model, free=("*",))


@pytest.mark.parametrize("position", [-1, 10_000])
def test_positions_beyond_the_path_are_refused(position: int) -> None:
    """A position that the path does not have is refused with those that it has."""
    _, _, path = made("weights")
    with pytest.raises(ValueError, match=f"between 0 and {path.last}"):
        path.kept(position)


def outputs(model: nn.Module, example: object, weights: dict[str, Tensor]) -> list[Tensor]:
    """Outputs with other weights."""
    args = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(torch.func.functional_call(model, weights, args))


READ = (
    *("plain", "residual_padded", "grouped", "squeeze_excite", "unet", "mlp"),
    *("attention", "fused_attention", "torch_encoder", "torch_attention", "lstm", "recommender"),
)


@pytest.mark.parametrize("case", [BY_NAME[name] for name in READ], ids=str)
def test_the_active_part_is_all_that_matters(case: Case) -> None:
    """Zeroing only the entries by which later layers read a structure gives the outputs of zeroing all of them."""
    model, example = case.make()
    loss = LossAt(model, Layout.of(model), nn.functional.mse_loss, ((example, None, 2),))
    weights = loss.layout.weights(model)
    path, _ = checked_path(loss, weights, channels(model, example))
    for j in places(path, 6)[:-1]:
        whole = outputs(model, example, path.layout.split(weights * path.kept(j)))
        active = outputs(model, example, path.layout.split(weights * ~path.cut(j)))
        for one, other in zip(whole, active, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["fused_attention", "recommender"])
def test_what_is_read_by_a_product_matters_whole(name: str) -> None:
    """Axes that a product of activations reads are active in all their entries; others keep their smaller part."""
    model, example = BY_NAME[name].make()
    loss = LossAt(model, Layout.of(model), nn.functional.mse_loss, ((example, None, 2),))
    weights = loss.layout.weights(model)
    structures = channels(model, example)
    path, notes = checked_path(loss, weights, structures)
    plain = removal_path(model, structures)
    assert notes == []
    assert int((plain.active > 0).sum()) < int((path.active > 0).sum()) < int((path.birth > 0).sum())


@pytest.mark.parametrize(("name", "build"), [("mlp", KINDS["blocks"][1]), ("plain", KINDS["kernels"][1])])
def test_whole_structures_have_no_smaller_limit_than_single_weights(
    name: str, build: Callable[[nn.Module, Tensor], Structures | None]
) -> None:
    """With the same spectrum and epsilon the published law keeps at least as many weights in structures as singly."""
    model, example = BY_NAME[name].make()
    single, whole = removal_path(model), removal_path(model, build(model, example))
    weights = single.layout.weights(model)
    spectrum = Spectrum.of_eigenvalues(np.geomspace(1e-3, 1, single.layout.size))
    for epsilon in (0.01, 0.1, 1.0):
        kept = [
            path.counts()[paper_threshold(path.counts(), path.energy(weights), spectrum, epsilon)]
            for path in (single, whole)
        ]
        assert kept[0] <= kept[1]
