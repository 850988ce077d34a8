"""The errors that callers may want to catch by name."""

from __future__ import annotations

__all__ = ["CompileError", "FileFormatError", "InfeasibleBudgetError", "TraceError"]


class TraceError(ValueError):
    """The network could not be recorded as one fixed list of operators."""


class CompileError(RuntimeError):
    """No smaller network could be built that equals the masked one."""


class InfeasibleBudgetError(ValueError):
    """No selection meets the budget; the message names the least budget that works."""


class FileFormatError(ValueError):
    """A file is truncated, foreign, or of a version this release cannot read."""
