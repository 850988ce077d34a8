"""structprune keeps the most valuable structures of a network that fit a budget and proves how good the choice is."""

from structprune.arrange import Arrangement, arrange
from structprune.budget import Budget
from structprune.compile import Compiled, compile, masked, packed
from structprune.criteria import BNScale, Fisher, LayerReconstruction, Magnitude, Random, Scores, Taylor
from structprune.errors import CompileError, FileFormatError, InfeasibleBudgetError, TraceError
from structprune.finetune import FineTune
from structprune.io import load
from structprune.limit import Limit, pruning_limit
from structprune.pruned import Pruned
from structprune.report import Report
from structprune.solve import Method, Solver, solve
from structprune.structures import Structures, blocks, channels, kernels, nm

__all__ = [
    "Arrangement",
    "BNScale",
    "Budget",
    "CompileError",
    "Compiled",
    "FileFormatError",
    "FineTune",
    "Fisher",
    "InfeasibleBudgetError",
    "LayerReconstruction",
    "Limit",
    "Magnitude",
    "Method",
    "Pruned",
    "Random",
    "Report",
    "Scores",
    "Solver",
    "Structures",
    "Taylor",
    "TraceError",
    "arrange",
    "blocks",
    "channels",
    "compile",
    "kernels",
    "load",
    "masked",
    "nm",
    "packed",
    "pruning_limit",
    "solve",
]
