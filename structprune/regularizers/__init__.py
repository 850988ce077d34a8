"""Group-sparse penalties on norms of groups, ``value(norms)`` and ``prox_norms(norms, step)``, and what implies them.

``prox(GroupLasso(1e-3), weight, groups, step=lr)`` is a proximal step on weights, ``groups`` the group of each entry.
"""

from structprune.regularizers.d_gating import DGating
from structprune.regularizers.exp_gate import ExpGate, ExpGatePenalty
from structprune.regularizers.groups import axis_groups, group_norms, prox
from structprune.regularizers.l1_gate import L1Gate
from structprune.regularizers.lasso import GroupLasso
from structprune.regularizers.log_sum import LogSum
from structprune.regularizers.lq import GroupLq
from structprune.regularizers.mcp import MCP
from structprune.regularizers.parameterisation import Factors, Parameterisation
from structprune.regularizers.powerpropagation import Powerpropagation
from structprune.regularizers.regularizer import Regularizer, SeparableRegularizer
from structprune.regularizers.scad import SCAD
from structprune.regularizers.softmax_attention import SoftmaxAttention, SquaredGroupL23
from structprune.regularizers.weighted import Weighted

__all__ = [
    "DGating",
    "ExpGate",
    "ExpGatePenalty",
    "Factors",
    "GroupLasso",
    "GroupLq",
    "L1Gate",
    "LogSum",
    "MCP",
    "Parameterisation",
    "Powerpropagation",
    "Regularizer",
    "SCAD",
    "SeparableRegularizer",
    "SoftmaxAttention",
    "SquaredGroupL23",
    "Weighted",
    "axis_groups",
    "group_norms",
    "prox",
]
