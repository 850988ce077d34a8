"""Latency of a network by its widths, from measured operators, and of whole networks measured side by side."""

from structprune.latency.tables import latency_ns
from structprune.latency.timing import Timing, measure

__all__ = ["Timing", "latency_ns", "measure"]
