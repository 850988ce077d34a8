"""Reorder the outputs of weights before blocks are chosen, so that tall blocks keep more of what is worth keeping."""

from structprune.arrange.arrange import ArrangedLayer, Arrangement, arrange

__all__ = ["ArrangedLayer", "Arrangement", "arrange"]
