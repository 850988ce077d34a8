"""Training methods: they train a network while they decide what to keep.

Each is a value with settings: pass it to ``solve`` as ``method=``, or call its ``fit`` with a rule such as
``keep=Uniform(0.9)``.
"""

from structprune.methods.acdc import ACDC
from structprune.methods.block_swaps import BlockSwaps, Swaps
from structprune.methods.dense import DenseTraining
from structprune.methods.discrimination_aware import DiscriminationAware
from structprune.methods.engine import Training
from structprune.methods.fixed_mask import FixedMask, RandomMask
from structprune.methods.gradual import GradualMagnitude
from structprune.methods.group_lasso import GroupLassoProx
from structprune.methods.hooks import Hooks
from structprune.methods.method import Fitted, TrainingMethod
from structprune.methods.one_shot import OneShotMagnitude
from structprune.methods.optimizer_state import Reset
from structprune.methods.phases import Cubic, Exponential, Kind, Linear, Plan, Segment, alternating
from structprune.methods.picking import Picking
from structprune.methods.powerpropagation import GroupPowerpropagation
from structprune.methods.selection import ByValue, Caps, Evenly, Keep, Uniform
from structprune.methods.sequential_attention import SequentialAttentionPP
from structprune.methods.soft_top_k import SoftTopK

__all__ = [
    "ACDC",
    "BlockSwaps",
    "ByValue",
    "Caps",
    "Cubic",
    "DenseTraining",
    "DiscriminationAware",
    "Evenly",
    "Exponential",
    "Fitted",
    "FixedMask",
    "GradualMagnitude",
    "GroupLassoProx",
    "GroupPowerpropagation",
    "Hooks",
    "Keep",
    "Kind",
    "Linear",
    "OneShotMagnitude",
    "Picking",
    "Plan",
    "RandomMask",
    "Reset",
    "Segment",
    "SequentialAttentionPP",
    "SoftTopK",
    "Swaps",
    "Training",
    "TrainingMethod",
    "Uniform",
    "alternating",
]
