"""How far a network can be pruned at all: estimates with error bars, before anything is trained."""

from structprune.limit.value import Interval, LayerCurve, Limit, LimitEstimate

__all__ = ["Interval", "LayerCurve", "Limit", "LimitEstimate"]
