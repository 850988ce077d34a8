"""Statistical dimensions by sampling: project standard normal vectors, average squared norms.

``|g|^2`` is independent of the direction of g and has mean D, so ``D |P_C(g)|^2 / |g|^2`` has the mean of
``|P_C(g)|^2``, and a smaller variance, being its conditional expectation given the direction (Rao and Blackwell).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.conic.estimate import Estimate
from solvers.conic.projection import CLARABEL, SCS, Cone, ConicProjector, ConicSolver, ProjectionFailedError

__all__ = ["monte_carlo", "sampled"]

FloatArray = NDArray[np.float64]


def sampled(
    project: Callable[[FloatArray], FloatArray], dimension: int, samples: int = 1000, seed: int = 0
) -> Estimate:
    """The statistical dimension of a cone in R^dimension from its exact projection, ``(dimension,)`` to the same."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        g = rng.standard_normal(dimension)
        nearest = project(g)
        values.append(dimension * float(nearest @ nearest) / float(g @ g))
    return Estimate.of(values)


def monte_carlo(
    cone: Cone,
    dimension: int,
    samples: int = 100,
    seed: int = 0,
    tolerance: float = 1e-6,
    solvers: Sequence[ConicSolver] = (CLARABEL, SCS),
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """The statistical dimension of any cone that cvxpy can express, some milliseconds a sample.

    Parameters
    ----------
    cone
        Takes a cvxpy variable of shape ``(dimension,)``, returns a list of constraints.
    dimension
        Of the space.
    samples
        At least 2. The standard error is at most about ``sqrt(2 dimension / samples)``.
    seed
        Equal seeds give equal estimates; of two cones they project the same vectors.
    tolerance
        Greatest error of one projection's squared norm, as a fraction of the vector's: the mean is off by at most
        ``tolerance * dimension`` beside the standard error.
    solvers
        Tried in this order until an answer passes the check.
    progress
        Called with the samples that are done and all of them.

    Raises
    ------
    ValueError
        The constraints are not convex or not those of a cone, or there are fewer than 2 samples.
    ProjectionFailedError
        For one sample, which is named, no solver was accurate.
    """
    if samples < 2:
        raise ValueError(f"Expected at least 2 samples. Got {samples}. A single one says nothing of its error.")
    projector = ConicProjector(cone, dimension, tolerance, solvers)
    rng = np.random.default_rng(seed)
    values = []
    for sample in range(samples):
        g = rng.standard_normal(dimension)
        try:
            squared_norm = projector(g).squared_norm
        except ProjectionFailedError as error:
            raise ProjectionFailedError(f"Sample {sample} of {samples} (seed {seed}): {error}") from error
        values.append(dimension * squared_norm / float(g @ g))
        if progress is not None:
            progress(sample + 1, samples)
    return Estimate.of(values)
