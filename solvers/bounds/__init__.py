"""Upper bounds on the kept value, and exact statements about boxes of choices."""

from solvers.bounds.boxes import Boxes, least_choice, least_reachable
from solvers.bounds.hull import upper_hull
from solvers.bounds.lagrangian import MAX_CELLS, Dual, Lagrangian

__all__ = ["MAX_CELLS", "Boxes", "Dual", "Lagrangian", "least_choice", "least_reachable", "upper_hull"]
