"""Conic geometry: how large a cone is, by formula where there is one and by checked sampling where there is none."""

from solvers.conic.descent import DescentDimension, group_descent, l1_descent, nuclear_descent
from solvers.conic.ellipsoid import EllipsoidCone, effective_dimension, loss_cone_dimension, sublevel_width
from solvers.conic.estimate import Estimate
from solvers.conic.projection import CLARABEL, SCS, Cone, ConicProjector, ConicSolver, ProjectionFailedError
from solvers.conic.sampling import monte_carlo, sampled

__all__ = [
    "CLARABEL",
    "SCS",
    "Cone",
    "ConicProjector",
    "ConicSolver",
    "DescentDimension",
    "EllipsoidCone",
    "Estimate",
    "ProjectionFailedError",
    "effective_dimension",
    "group_descent",
    "l1_descent",
    "loss_cone_dimension",
    "monte_carlo",
    "nuclear_descent",
    "sampled",
    "sublevel_width",
]
