"""The planted task: what methods find of a teacher's blocks, between magnitude's mask and the truth."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from structprune.methods import (
    BlockSwaps,
    FixedMask,
    OneShotMagnitude,
    SequentialAttentionPP,
    SoftTopK,
    Swaps,
    Training,
    TrainingMethod,
    Uniform,
)
from tests.methods.planted import PLANTED, logistic, planted, student

TRAINING = Training(epochs=6, lr=3e-3, optimizer="adamw", weight_decay=1e-3)
KEEP = Uniform(1 - PLANTED / 192, min_structures=1)
SEEDS = (0, 1, 2)


@cache
def losses(method: TrainingMethod | None) -> np.ndarray:
    """Test loss of a method, or of the teacher's own mask, on each seed."""
    found = []
    for seed in SEEDS:
        task = planted(seed)
        used = method or FixedMask(training=TRAINING, selection=tuple(task.truth.tolist()))
        fitted = used.fit(student(seed), task.structures, task.training, logistic, keep=KEEP, seed=seed)
        assert fitted.selection.sum() == PLANTED
        found.append(task.loss(fitted.model))
    return np.array(found)


@pytest.mark.slow
def test_sequential_attention_beats_one_shot_magnitude_with_fine_tuning() -> None:
    """On standardised inputs, at equal steps: on every seed."""
    ours = losses(SequentialAttentionPP(training=TRAINING))
    assert (ours < losses(OneShotMagnitude(training=TRAINING))).all()


@pytest.mark.slow
def test_the_best_of_ours_closes_half_of_the_gap_to_the_truth() -> None:
    """Soft top-k, or exchanges by whitened gradients, on at least two of three seeds."""
    magnitude, truth = losses(OneShotMagnitude(training=TRAINING)), losses(None)
    ours = [losses(SoftTopK(training=TRAINING)), losses(BlockSwaps(training=TRAINING, swaps=Swaps(whiten=True)))]
    assert (magnitude - truth > 0.02).all()
    for found in ours:
        closed = (magnitude - found) / (magnitude - truth)
        assert (closed >= 0.5).sum() >= 2
