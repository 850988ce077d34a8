"""How far a network can be pruned at all: estimates with error bars, before anything is trained."""

from structprune.limit.certified import fewest_inputs
from structprune.limit.path import Path, removal_path
from structprune.limit.prior import LimitPrior
from structprune.limit.pruning_limit import pruning_limit
from structprune.limit.value import Interval, LayerCurve, Limit, LimitEstimate

__all__ = [
    "Interval",
    "LayerCurve",
    "Limit",
    "LimitEstimate",
    "LimitPrior",
    "Path",
    "fewest_inputs",
    "pruning_limit",
    "removal_path",
]
