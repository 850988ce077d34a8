"""Patterns of kept blocks and the packed form of a weight."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structprune.layers import GroupedColumns, pack, unpack
from structprune.layers.pack import pattern_of


@st.composite
def patterns(draw: st.DrawFn) -> GroupedColumns:
    """Return a pattern of any ragged size, sometimes with an order, sometimes with empty groups."""
    outputs, inputs = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    height, width = draw(st.sampled_from([16, 32, 64])), draw(st.sampled_from([1, 4, 16, 32]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = rng.random((-(-outputs // height), -(-inputs // width))) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    order = rng.permutation(outputs) if draw(st.booleans()) else None
    return GroupedColumns.from_blocks(kept, outputs, inputs, height, width, order)


@given(patterns())
def test_a_pattern_is_that_of_its_mask(pattern: GroupedColumns) -> None:
    """The mask of a pattern, given back with its order, is the pattern."""
    assert GroupedColumns.from_entries(pattern.mask(), pattern.height, pattern.width, pattern.order) == pattern


@given(patterns())
def test_density_counts_the_mask(pattern: GroupedColumns) -> None:
    """Entries and density are those of the mask, ragged edges included."""
    assert pattern.entries == pattern.mask().sum()
    assert pattern.density == pattern.mask().mean()


@given(patterns())
def test_json_keeps_a_pattern(pattern: GroupedColumns) -> None:
    """Written as text and read again, a pattern is itself."""
    assert GroupedColumns.from_json(json.loads(json.dumps(pattern.to_json()))) == pattern


@given(patterns(), st.sampled_from([None, 16, 32]))
def test_the_transposed_pattern_holds_the_transposed_weight(pattern: GroupedColumns, height: int | None) -> None:
    """Values taken from where the transposed pattern says unpack to the transposed weight, in stored rows."""
    weight = torch.rand(pattern.outputs, pattern.inputs) + 1
    packed = pack(weight, pattern)
    transposed = pattern.transpose(height)
    flat = torch.cat([packed.values.flatten(), torch.zeros(1)])
    values = flat[torch.from_numpy(transposed.source).long()]
    mirrored = replace(pack(torch.zeros(pattern.inputs, pattern.outputs), transposed.pattern), values=values)
    expected = unpack(replace(packed, order=None)).t()
    assert torch.equal(unpack(mirrored), expected)


@given(patterns())
def test_pack_and_unpack_lose_nothing_that_is_kept(pattern: GroupedColumns) -> None:
    """Unpacked, a packed weight is the weight times the mask, bit for bit."""
    weight = torch.randn(pattern.outputs, pattern.inputs)
    packed = pack(weight, pattern)
    assert torch.equal(unpack(packed), torch.where(torch.from_numpy(pattern.mask()), weight, 0))
    assert pattern_of(packed, pattern.width) == pattern


def test_transposing_wide_pieces_adds_nothing() -> None:
    """Pieces of 16 columns become groups of 16 rows: the transposed pattern keeps the same entries."""
    pattern = GroupedColumns.from_blocks(np.random.default_rng(0).random((4, 8)) < 0.4, 64, 128, 16, 16)
    assert pattern.transpose().pattern.entries == pattern.entries


def test_values_of_outputs_that_do_not_exist_are_zero() -> None:
    """The last group of 20 outputs has 4 rows, and the values of its other 12 rows are zero."""
    pattern = GroupedColumns.from_entries(np.ones((20, 3), dtype=bool), 16, 1)
    values = pack(torch.ones(20, 3), pattern).values
    assert values.shape == (6, 16)
    assert values[3:, 4:].eq(0).all() and values[3:, :4].eq(1).all()


def test_a_block_stays_if_one_entry_does() -> None:
    """A mask of single entries is completed to blocks."""
    mask = np.zeros((32, 8), dtype=bool)
    mask[17, 5] = True
    pattern = GroupedColumns.from_entries(mask, 16, 4)
    assert pattern.starts.tolist() == [0, 0, 4]
    assert pattern.columns.tolist() == [4, 5, 6, 7]


def test_an_order_gathers_rows_that_use_the_same_inputs() -> None:
    """With rows that use even and odd inputs in turn, storing each kind together halves what is kept."""
    mask = np.zeros((32, 8), dtype=bool)
    mask[::2, ::2] = mask[1::2, 1::2] = True
    order = np.concatenate([np.arange(0, 32, 2), np.arange(1, 32, 2)])
    assert GroupedColumns.from_entries(mask, 16, 1).density == 1.0
    assert GroupedColumns.from_entries(mask, 16, 1, order).density == 0.5
    assert np.array_equal(GroupedColumns.from_entries(mask, 16, 1, order).mask(), mask)


def test_equal_patterns_have_equal_hashes() -> None:
    """Patterns compare and hash by value."""
    first, second = (GroupedColumns.from_entries(np.eye(16, dtype=bool), 16, 1) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert first != replace(first, order=np.arange(16))


def test_a_pattern_cannot_be_changed() -> None:
    """Its arrays are read-only copies."""
    columns = np.array([0, 1])
    pattern = GroupedColumns(16, 4, 16, 1, columns, np.array([0, 2]))
    columns[0] = 3
    assert pattern.columns.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        pattern.columns[0] = 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"height": 24}, "Expected a height in"),
        ({"width": 3}, "Expected a width in"),
        ({"outputs": 0}, "Expected at least one output"),
        ({"columns": np.array([0, 9])}, "Expected columns in 0 ... 7"),
        ({"columns": np.array([1, 0])}, "ascend within a group"),
        ({"columns": np.array([1, 2])}, "whole pieces of 2 columns"),
        ({"columns": np.array([0.0, 1.0])}, "Expected columns as whole numbers"),
        ({"starts": np.array([0, 2])}, "Expected 3 starts"),
        ({"starts": np.array([0, 3, 2])}, "Expected 3 starts"),
        ({"order": np.zeros(20, dtype=int)}, "Expected an order that holds each of 0 ... 19 once"),
    ],
)
def test_what_is_no_pattern_is_refused(changed: dict[str, object], words: str) -> None:
    """Arrays that kernels could not trust are refused where they enter."""
    good: dict[str, object] = {
        "outputs": 20,
        "inputs": 8,
        "height": 16,
        "width": 2,
        "columns": np.array([0, 1]),
        "starts": np.array([0, 2, 2]),
    }
    GroupedColumns(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        GroupedColumns(**(good | changed))  # type: ignore[arg-type]


def test_a_mask_of_another_shape_or_type_is_refused() -> None:
    """Masks are boolean and have the shape that the sizes imply."""
    with pytest.raises(ValueError, match=r"boolean mask of blocks of shape \(2, 3\)"):
        GroupedColumns.from_blocks(np.ones((2, 4), dtype=bool), 20, 9, 16, 4)
    with pytest.raises(ValueError, match="boolean mask of entries"):
        GroupedColumns.from_entries(np.ones((2, 4)), 16, 4)
    with pytest.raises(ValueError, match="Expected a weight of shape"):
        pack(torch.ones(3, 3), GroupedColumns.from_entries(np.ones((2, 4), dtype=bool), 16, 4))


def test_a_record_of_other_pieces_is_refused() -> None:
    """A record whose pieces lie outside the weight is refused, not wrapped around."""
    record = GroupedColumns.from_entries(np.ones((16, 8), dtype=bool), 16, 4).to_json()
    with pytest.raises(ValueError, match="Expected pieces in 0 ... 1"):
        GroupedColumns.from_json(record | {"pieces": [[-1]]})
    with pytest.raises(ValueError, match="Expected 1 groups"):
        GroupedColumns.from_json(record | {"pieces": []})
