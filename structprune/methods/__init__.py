"""Training methods: they train a network while they decide what to keep."""

from structprune.methods.hooks import Hooks

__all__ = ["Hooks"]
