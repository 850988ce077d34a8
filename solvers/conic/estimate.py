"""A mean with its standard error: what sampling knows of a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """The mean of independent samples.

    Attributes
    ----------
    mean
        Their average.
    standard_error
        The samples' standard deviation over ``sqrt(samples)``.
    samples
        How many there were, at least 2.
    """

    mean: float
    standard_error: float
    samples: int

    @classmethod
    def of(cls, values: ArrayLike) -> Estimate:
        """The estimate from the samples, shape ``(samples,)``.

        Raises
        ------
        ValueError
            There are fewer than two samples, or one is not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or len(array) < 2 or not np.all(np.isfinite(array)):
            raise ValueError(
                f"Expected at least 2 finite samples in one row. Got shape {array.shape}. "
                "A single sample says nothing of its error: draw more."
            )
        return cls(float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array)), len(array))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's interval that covers the true mean with about this confidence.

        Raises
        ------
        ValueError
            The confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"Expected a confidence between 0 and 1. Got {confidence}. Use for instance 0.95.")
        reach = float(student.ppf((1 + confidence) / 2, self.samples - 1)) * self.standard_error
        return self.mean - reach, self.mean + reach
