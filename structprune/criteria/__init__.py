"""What each structure is worth: ``criterion(model, structures, data, loss) -> Scores``, higher = keep."""

from structprune.criteria.bn_scale import BNScale
from structprune.criteria.fisher import Fisher
from structprune.criteria.magnitude import Magnitude
from structprune.criteria.random import Random
from structprune.criteria.reconstruction import LayerReconstruction
from structprune.criteria.scores import Criterion, Curve, Data, Refit, Scores
from structprune.criteria.taylor import Taylor

__all__ = [
    "BNScale",
    "Criterion",
    "Curve",
    "Data",
    "Fisher",
    "LayerReconstruction",
    "Magnitude",
    "Random",
    "Refit",
    "Scores",
    "Taylor",
]
