"""The algebra of labels: which positions vanish together."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from structprune.axes.labels import Ids, Label, empty_label, merge_labels, stack_rows


def rows(ids: Ids, label: Label) -> list[set[int]]:
    """The ids at every position, as sets."""
    return [set(row[row != 0].tolist()) for row in ids.norm(label)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_splitting_a_merged_dimension_gives_back_its_parts(sizes: list[int]):
    """split is the inverse of merge, whatever the sizes, up to positions of size 1."""
    ids = Ids()
    parts = [ids.fresh(size) if size > 1 else empty_label(1) for size in sizes]
    merged = merge_labels(parts)
    assert len(merged) == prod(sizes)
    again = ids.split(merged, sizes, "")
    assert [rows(ids, label) for label in again] == [rows(ids, label) for label in parts]


@given(st.integers(2, 4), st.integers(2, 4))
def test_a_split_dimension_becomes_a_product(a: int, b: int):
    """Fresh factors refine the dimension: position (i, j) goes when factor i or factor j goes."""
    ids = Ids()
    whole = ids.fresh(a * b)
    head, tail = ids.split(whole, [a, b], "")
    expected = [first | second for first in rows(ids, head) for second in rows(ids, tail)]
    assert rows(ids, whole) == expected
    assert len(set(map(frozenset, expected))) == a * b


def test_labels_read_before_a_union_follow_it():
    """A label is normalised when it is read, so earlier labels know of later unions."""
    ids = Ids()
    first, second, third = ids.fresh(3), ids.fresh(3), ids.fresh(3)
    ids.unify(first, second, "")
    ids.unify(second, third, "")
    assert rows(ids, first) == rows(ids, third)
    assert len(set(map(frozenset, rows(ids, first)))) == 3


def test_tying_to_what_never_goes_pins_and_says_why():
    """The reason names the operator that ties and the cause at the other end, through any number of ties."""
    ids = Ids()
    image, first, second = ids.fixed(3, "is an input of the network"), ids.fresh(3), ids.fresh(3)
    ids.unify(first, image, "conv1")
    ids.unify(second, first, "add")
    assert not ids.norm(first).size
    assert ids.reason(first) == "is tied by conv1 to a dimension that is an input of the network"
    assert ids.reason(second) == "is tied by add to a dimension that is an input of the network"


def test_reason_comes_from_the_side_that_cannot_shrink():
    """A pinned factor beside the one that gets pinned is not blamed."""
    ids = Ids()
    three, free = ids.fresh(2), ids.fresh(2)
    ids.pin(three, "is indexed by a constant")
    product = np.concatenate([three, free], axis=1)
    ids.unify(product, ids.fixed(2, "is an output of the network"), "view")
    assert ids.reason(free) == "is tied by view to a dimension that is an output of the network"


def test_products_of_equal_length_are_tied_factor_by_factor():
    """{a, b} tied to {c, d} ties a to c and b to d."""
    ids = Ids()
    a, b, c, d = (ids.fresh(n) for n in (2, 3, 2, 3))
    ids.unify(merge_labels([a, b]), merge_labels([c, d]), "")
    assert rows(ids, a) == rows(ids, c)
    assert rows(ids, b) == rows(ids, d)


def test_concatenation_stacks_rows_and_slices_index_them():
    """Each part of a concatenation keeps its own ids."""
    ids = Ids()
    first, second = ids.fresh(2), ids.fresh(3)
    both = stack_rows([first, empty_label(1), second])
    assert rows(ids, both) == [*rows(ids, first), set(), *rows(ids, second)]


def test_a_view_across_unequal_parts_ties_the_rows():
    """A dimension of which some entries never go is split so that only entries in all rows go."""
    ids = Ids()
    free = ids.fresh(2)
    whole = stack_rows([free, empty_label(2)])
    head, tail = ids.split(whole, [2, 2], "view")
    assert rows(ids, tail) == [set(), set()]
    assert rows(ids, head) == [set(), set()]
    assert ids.reason(free) is not None


@pytest.mark.parametrize("size", [1, 4])
def test_pinned_ids_disappear_from_labels(size: int):
    """A pinned position has an empty row."""
    ids = Ids()
    label = ids.fresh(size)
    ids.pin(label, "is sorted")
    assert rows(ids, label) == [set()] * size
    assert ids.reason(label) == "is sorted"
