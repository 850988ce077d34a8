"""What ``solve`` hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from solvers.problem import SelectionProblem
from solvers.result import Certificate, Result, Termination
from structprune.axes import Example
from structprune.io import save
from structprune.report import Report
from structprune.structures import Structures

__all__ = ["Pruned"]


@dataclass(frozen=True, eq=False)
class Pruned:
    """A smaller network with the choice that made it and the proof of how good the choice is.

    Attributes
    ----------
    model
        An ordinary module in evaluation mode.
    structures, problem, result
        What could be removed, the allocation problem that was solved, and the solver's answer.
    report
        Predicted beside measured; prints, saves as JSON and HTML.
    example
        The arguments that the network was traced and checked on.
    built_as
        'module', 'graph', 'block-sparse' or 'masked', see :class:`structprune.compile.Compiled`.
    """

    model: nn.Module
    structures: Structures
    problem: SelectionProblem
    result: Result
    report: Report
    example: Example
    built_as: str

    @property
    def selection(self) -> np.ndarray:
        """Boolean ``(n,)``, True = kept."""
        assert self.result.selection is not None
        return self.result.selection

    @property
    def certificate(self) -> Certificate | None:
        """Objective, bound, gap, used and allowed amounts; None when no bound is known."""
        return self.result.certificate

    @property
    def termination(self) -> Termination:
        """Why the solver stopped."""
        return self.result.termination

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder with weights, structure and report, whole or not at all; see :func:`structprune.load`."""
        return save(self.model, self.built_as, self.example, self.report, path, overwrite=overwrite)

    def __str__(self) -> str:
        return str(self.report)
