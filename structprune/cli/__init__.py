"""The command line ``structprune``, also ``python -m structprune``: demo, solve, inspect, limit, report."""

from structprune.cli.commands import main

__all__ = ["main"]
