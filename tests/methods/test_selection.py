"""Which structures stay: exact counts, stable ties, nested removals, caps, and shares of a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from solvers.choose import Automatic
from solvers.result import Result
from structprune.costs import costs
from structprune.criteria.scores import Scores
from structprune.methods.grids import table
from structprune.methods.groups import by_axis, by_layer
from structprune.methods.selection import Allocate, ByValue, Caps, Evenly, Uniform, select
from structprune.problem import selection_problem
from structprune.structures import Structures, blocks, channels, nm


def network() -> nn.Sequential:
    """Layers of 15 + 3 + 5 + 1, 54 and 3 blocks of 4 x 4; the first has them cut at both edges."""
    return nn.Sequential(nn.Linear(22, 13), nn.Conv2d(8, 12, 3), nn.Linear(4, 12))


def solver(structures: Structures, model: nn.Module, fraction: float) -> Allocate:
    """The solver under a budget of parameters, as ``solve`` hands it to methods."""
    terms = {"params": costs(structures, model, "params")}
    full = sum(parameter.numel() for parameter in model.parameters())

    def allocate(scores: Scores) -> Result:
        return Automatic().solve(selection_problem(structures, scores, terms, {"params": int(fraction * full)}))

    return allocate


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.73, 0.9])
@pytest.mark.parametrize("kind", ["random", "tied", "zero"])
def test_every_layer_keeps_exactly_its_share(sparsity: float, kind: str) -> None:
    """k = round((1 - s) n) of each layer's blocks, ragged ones counted, also where all values are equal."""
    structures = blocks(network(), (4, 4))
    values = {
        "random": np.random.default_rng(0).random(structures.n),
        "tied": np.round(np.random.default_rng(0).random(structures.n)),
        "zero": np.zeros(structures.n),
    }[kind]
    keep = Uniform(sparsity, min_structures=1)
    groups, alive = keep.groups(structures), np.ones(structures.n, dtype=bool)
    kept = select(keep, groups, values, alive, keep.counts(structures, values, None), 1.0)
    assert [group.size for group in groups] == [24, 54, 3]
    for group in groups:
        assert kept[group.entries].sum() == max(1, int((1 - sparsity) * group.size + 0.5))


def test_equal_values_keep_the_first() -> None:
    """Ties go to the lowest index, so that equal runs choose alike."""
    structures = blocks(nn.Sequential(nn.Linear(40, 4)), (4, 4))
    keep = Uniform(0.7, min_structures=1)
    alive = np.ones(10, dtype=bool)
    kept = select(keep, keep.groups(structures), np.ones(10), alive, np.array([3]), 1.0)
    assert np.flatnonzero(kept).tolist() == [0, 1, 2]


def test_small_layers_stay_dense() -> None:
    """Layers of fewer blocks than asked lose none, and count as not eligible."""
    structures = blocks(network(), (4, 4))
    keep = Uniform(0.9, min_structures=50)
    assert keep.eligible(structures) == (False, True, False)
    assert keep.counts(structures, np.zeros(structures.n), None).tolist() == [24, 5, 3]


@given(
    seed=st.integers(0, 100),
    points=st.lists(st.floats(0, 1), min_size=2, max_size=6),
    caps=st.sampled_from([None, Caps(2.0), Caps(1.5, 1.5)]),
)
def test_a_removal_is_nested_and_exact_at_every_point(seed: int, points: list[float], caps: Caps | None) -> None:
    """Whatever values do meanwhile, nothing comes back, and n - floor((n - k) done) stay."""
    rng = np.random.default_rng(seed)
    structures = blocks(network(), (4, 4))
    keep = Uniform(0.8, min_structures=1, caps=caps)
    groups, alive = keep.groups(structures), np.ones(structures.n, dtype=bool)
    final = keep.counts(structures, rng.random(structures.n), None)
    for done in sorted(points):
        kept = select(keep, groups, rng.integers(0, 4, structures.n).astype(float), alive, final, done)
        assert not (kept & ~alive).any()
        for group, count in zip(groups, final, strict=True):
            assert kept[group.entries].sum() == group.size - int((group.size - count) * done + 1e-9)
        alive = kept


def test_tables_have_rows_of_inputs_and_taps_and_columns_of_outputs() -> None:
    """Blocks in one row read the same inputs at the same tap; blocks in one column write the same outputs."""
    model = nn.Sequential(nn.Conv2d(8, 12, (1, 3)))
    structures = blocks(model, (4, 4))
    (group,) = by_layer(structures)
    places = table(group)
    assert places.shape == (6, 3)
    for block in range(structures.n):
        selection = np.zeros(structures.n, dtype=bool)
        selection[block] = True
        mask = structures.masks(selection)["0.weight"]
        output, inputs, _, tap = (int(found[0]) for found in torch.nonzero(mask, as_tuple=True))
        assert (places.rows[block], places.columns[block]) == (tap * 2 + inputs // 4, output // 4)


def test_capped_choice_is_the_best_within_the_caps() -> None:
    """Of all masks of 5 blocks with at most 2 per row of a 4 x 3 table the most valuable is chosen."""
    structures = blocks(nn.Sequential(nn.Linear(16, 12)), (4, 4))
    (group,) = by_layer(structures)
    values = np.random.default_rng(3).random(12)
    values[table(group).rows == 1] += 1  # one row of inputs would take three
    picked = Uniform(0.58, 1, Caps(1.0)).pick(group, values, np.ones(12, dtype=bool), 5)
    rows = table(group).rows
    best = max(
        values[list(chosen)].sum()
        for chosen in itertools.combinations(range(12), 5)
        if np.bincount(rows[list(chosen)]).max() <= 2
    )
    assert np.bincount(rows[picked]).max() <= 2
    assert values[picked].sum() == pytest.approx(best)


def test_caps_that_cannot_be_met_give_way() -> None:
    """Where all that is alive lies in one row, the best of it stays rather than nothing."""
    structures = blocks(nn.Sequential(nn.Linear(16, 12)), (4, 4))
    (group,) = by_layer(structures)
    alive = table(group).rows == 2
    picked = Uniform(0.8, 1, Caps(1.0)).pick(group, np.arange(12.0), alive, 3)
    assert np.array_equal(picked, alive)
    (note,) = Uniform(0.8, 1, Caps(1.0)).notes((group,), picked)
    assert note == "caps could not be met by what was left in 0: the best by value stayed there"


def test_masks_within_the_caps_need_no_word() -> None:
    """Nothing is said where the caps hold, or where there are none."""
    structures = blocks(nn.Sequential(nn.Linear(16, 12)), (4, 4))
    groups = by_layer(structures)
    keep = Uniform(0.58, 1, Caps(1.0))
    picked = keep.pick(groups[0], np.arange(12.0), np.ones(12, dtype=bool), 5)
    assert keep.notes(groups, picked) == () and Uniform(0.58, 1).notes(groups, picked) == ()


def test_even_shares_are_even_and_as_large_as_the_budget_allows() -> None:
    """Under one budget of parameters all layers keep the same fraction, to one structure, whatever their values."""
    model = network()
    structures = blocks(model, (4, 4))
    values = np.random.default_rng(0).random(structures.n) * np.repeat([1, 100, 1], [24, 54, 3])
    counts = Evenly().counts(structures, values, solver(structures, model, 0.4))
    sizes = np.array([axis.size for axis in structures.axes])
    removable = float(structures.count.sum())
    share = (0.4 * (removable + 37) - 37) / removable  # 37 biases stay
    assert (np.abs(counts - share * sizes) <= 1).all()


def test_even_shares_of_channels_leave_no_axis_empty() -> None:
    """Costs are products of widths there, and each axis still keeps something under a tight budget."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 6, 3))
    structures = channels(model, torch.randn(2, 3, 12, 12))
    counts = Evenly().counts(structures, np.ones(structures.n), solver(structures, model, 0.2))
    assert (counts >= 1).all() and (counts < [8, 16]).all()


def test_by_value_follows_values_across_layers_down_to_a_floor() -> None:
    """A layer that is worth nothing keeps its floor, not nothing; the others share the rest."""
    model = network()
    structures = blocks(model, (4, 4))
    values = np.random.default_rng(0).random(structures.n)
    values[by_layer(structures)[0].entries] = 0.0
    allocate = solver(structures, model, 0.4)
    counts = ByValue(floor=0.1).counts(structures, values, allocate)
    floors = [int(np.ceil(0.1 * axis.size)) for axis in structures.axes]
    first = [number for number, axis in enumerate(structures.axes) if axis.name.startswith("0")]
    assert (counts >= floors).all()
    assert counts[first].sum() <= sum(floors[number] for number in first) + 1
    # Without a floor it keeps only what fills the budget's last weights.
    assert ByValue(floor=0).counts(structures, values, allocate)[first].sum() <= 1


def test_structures_of_n_of_m_are_picked_run_by_run() -> None:
    """Half of an axis under 2:4 is two of every four."""
    structures = nm(nn.Sequential(nn.Linear(16, 3)))
    (group,) = by_axis(structures)
    picked = Evenly().pick(group, np.random.default_rng(0).random(48), np.ones(48, dtype=bool), 24)
    assert (picked.reshape(-1, 4).sum(axis=1) == 2).all()


def test_rules_that_share_a_budget_need_one() -> None:
    """Without a solver to ask, the message names the rule that needs none."""
    structures = blocks(network(), (4, 4))
    with pytest.raises(ValueError, match=r"Expected a budget for Evenly\(\). Got none.*keep=Uniform"):
        Evenly().counts(structures, np.zeros(structures.n), None)
