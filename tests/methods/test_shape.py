"""What masks look like: stability, coverage, and real sparsity against the published figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from structprune.methods.shape import (
    coverage,
    coverage_note,
    jaccard,
    real_sparsity,
    sparsity_note,
    stability,
    stability_note,
    uniform_sparsity,
)
from structprune.structures import blocks


def resnet50() -> dict[str, tuple[int, ...]]:
    """Shapes of the 54 convolution and linear weights of ResNet-50."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    inputs = 64
    for stage, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (width, inputs, 1, 1)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes[f"{name}.conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    return {**shapes, "fc": (1000, 2048)}


def test_the_shapes_are_those_of_resnet50() -> None:
    """54 weights of 25,502,912 entries."""
    shapes = resnet50()
    assert len(shapes) == 54
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 25_502_912


@pytest.mark.parametrize(
    ("side", "nominal", "real"),
    [(64, 70, 57.8), (64, 80, 66.0), (64, 90, 74.3), (64, 95, 78.4), (32, 70, 68.0), (32, 80, 77.8), (32, 90, 87.5)]
    + [(32, 95, 92.3), (8, 90, 90.0)],
)
def test_real_sparsity_of_resnet50_is_the_published_one(side: int, nominal: int, real: float) -> None:
    """Table 1 of SequentialAttention++: layers of fewer than 100 blocks stay dense, and the network with them."""
    assert 100 * uniform_sparsity(resnet50(), side, nominal / 100) == pytest.approx(real, abs=0.06)


def test_real_sparsity_from_shapes_is_that_of_the_mask() -> None:
    """On whole blocks the prediction is what removing them gives."""
    model = nn.Sequential(nn.Linear(40, 48), nn.Linear(48, 8))
    structures = blocks(model, (4, 4))
    selection = np.ones(structures.n, dtype=bool)
    selection[12:120] = False  # of 120 blocks; the second layer's 24 stay
    shapes = {"0.weight": (48, 40), "1.weight": (8, 48)}
    removed = {name: int((~mask).sum()) for name, mask in structures.masks(selection).items()}
    measured = real_sparsity({name: int(np.prod(shape)) for name, shape in shapes.items()}, removed)
    assert uniform_sparsity(shapes, 4, 0.9) == pytest.approx(measured)


def test_notes_tell_nominal_from_real_sparsity() -> None:
    """Half of the blocks, but less of the weights where the removed ones are the small ones."""
    model = nn.Sequential(nn.Linear(6, 4))
    structures = blocks(model, (4, 4))
    selection = np.array([True, False])
    (note,) = sparsity_note(model, structures, selection)
    assert "50.0 % of structures (nominal), 33.3 % of prunable weights" in note
    assert "28.6 % of all weights" in note  # 8 of 28


def test_coverage_counts_lines_with_something_alive() -> None:
    """A table of 2 rows and 3 columns with one row dead."""
    model = nn.Sequential(nn.Linear(8, 12))
    structures = blocks(model, (4, 4))
    mask = torch.zeros(12, 8, dtype=torch.bool)
    mask[0:4, 0:4] = mask[8:12, 0:4] = True  # inputs 0 ... 3 alone are read; outputs 4 ... 7 are dead
    selection = structures.sum({"0.weight": mask.float()}) > 0
    found = coverage(structures, selection)["0"]
    assert (found.rows, found.all_rows, found.columns, found.all_columns) == (1, 2, 2, 3)
    assert "1 of 2 block rows (inputs) and 2 of 3 block columns (outputs)" in coverage_note(structures, selection)[0]


def test_stability_is_the_replaced_fraction() -> None:
    """One of two exchanged is a half; Jaccard counts both ways."""
    first, second = np.array([True, True, False]), np.array([True, False, True])
    assert stability([first, second, second]) == (0.5, 0.0)
    assert jaccard(first, second) == pytest.approx(1 / 3)


def test_a_search_that_has_ended_is_told() -> None:
    """Three sparse phases without a change are pointed out, two are not."""
    mask = np.array([True, False])
    assert "stood still" in stability_note([mask] * 4)[0]
    assert "stood still" not in stability_note([mask] * 3)[0]
    assert stability_note([mask]) == ()
