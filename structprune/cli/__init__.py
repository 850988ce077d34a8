"""The command line: ``structprune demo``, ``solve``, ``inspect``, ``report``; also ``python -m structprune``."""

from structprune.cli.commands import main

__all__ = ["main"]
