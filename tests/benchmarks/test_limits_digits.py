"""The pruning limit of the digits network against survivors retrained: the figures that the estimates stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.limits.measure import Falling, structures_of
from benchmarks.limits.tasks import TASKS, Options
from benchmarks.limits.truth import Truth
from structprune.limit import pruning_limit, removal_path


@pytest.mark.slow
def test_estimates_of_the_digits_network_beside_the_retrained_truth(tmp_path: Path) -> None:
    """Trust 0.05 within .08 of the survivors retrained for 400 steps, constructive never below, at two epsilons."""
    torch.set_num_threads(1)
    task = next(one for one in TASKS if one.name == "digits-5e-4")
    prepared = task.prepare(Options(data=None, work=tmp_path))
    for kind in task.structures:
        structures = structures_of(kind, prepared.model, prepared.data[0][0], task.block)
        truth = Truth(
            prepared.model,
            Falling(removal_path(prepared.model, structures)),
            prepared.data,
            F.cross_entropy,
            retraining=prepared.retrainings[0],
        )
        for epsilon in task.epsilons:
            limit = pruning_limit(
                prepared.model, prepared.data, structures=structures, epsilon=epsilon, curvature="ggn", progress=False
            )
            built = limit["constructive"]
            # The bisection alone is half a per cent coarse: the built size is retrained as well.
            truth.measure(truth.at(built.keep_fraction.value))
            found = truth.limit(limit.loss + limit.epsilon.value).point.keep_fraction
            assert limit["trust 0.05"].keep_fraction.value == pytest.approx(found, abs=0.08)
            assert built.keep_fraction.value >= found - 1e-9
            rises = dict(built.curve)
            assert rises[built.keep_fraction.value] <= limit.epsilon.value
