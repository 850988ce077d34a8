"""Compiled equals masked on every network of tests/cases.py."""

from __future__ import annotations

import numpy as np
import pytest

from structprune.axes import as_example
from structprune.axes.graph import run
from structprune.compile import masked
from structprune.compile.proof import difference
from tests.agreement import compiled_equals_masked, counted_equals_predicted, in_double
from tests.cases import CASES, Case
from tests.generated import random_selection
from tests.laws import channels_of


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_selections_compile_to_the_masked_network(case: Case):
    """In float32, with the predicted costs."""
    model, example = case.make()
    structures = channels_of(case)
    # Widths of at least 2, because torch.einsum multiplies entry by entry, not by matrices, where a width is 1.
    selection = random_selection(structures, 0.4, seed=0, least=2)
    compiled = compiled_equals_masked(model, example, structures, selection)
    counted_equals_predicted(model, example, structures, selection, compiled)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_networks_are_exact_in_float64(case: Case):
    """In float64: a random selection, the smallest, and single structures removed from up to five axes."""
    model, example = case.make()
    model, example, structures = in_double(model, example, channels_of(case))
    smallest = np.zeros(structures.n, dtype=bool)
    for axis in structures.axes:
        smallest[axis.start + axis.size - int(axis.levels[0]) : axis.start + axis.size] = True
    compiled_equals_masked(model, example, structures, random_selection(structures, 0.6, seed=2))
    compiled_equals_masked(model, example, structures, smallest)
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(structures.axes))[:5]:
        axis = structures.axes[number]
        single = np.ones(structures.n, dtype=bool)
        single[axis.start + rng.integers(axis.size)] = False
        compiled_equals_masked(model, example, structures, single, effective=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masking_any_axis_changes_the_output(case: Case):
    """The checks are not vacuous: without all but one structure of an axis the network computes something else."""
    model, example = case.make()
    structures = channels_of(case)
    dense = run(model, as_example(example))
    for axis in structures.axes:
        selection = np.ones(structures.n, dtype=bool)
        selection[axis.start + 1 : axis.start + axis.size] = False
        assert difference([run(masked(model, structures, selection), as_example(example))], [dense]) > 1e-4
