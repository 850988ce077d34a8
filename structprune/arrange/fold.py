"""Permute an axis of a network in every tensor that it runs through: another network that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from structprune.axes import Example
from structprune.axes.graph import run
from structprune.compile.proof import Proof, tensors
from structprune.errors import CompileError
from structprune.structures import ChannelAxis, Structures
from structprune.tensors import named_tensors

__all__ = ["folded", "proved"]

Fold = tuple[ChannelAxis, np.ndarray]


@torch.no_grad()
def folded(model: nn.Module, folds: Sequence[Fold]) -> nn.Module:
    """Return a copy whose axes are permuted: entry ``order[i]`` of an axis comes to the place of entry ``i``."""
    clone = copy.deepcopy(model)
    named = named_tensors(clone)
    for axis, order in folds:
        for member in axis.members:
            tensor = named[member.tensor]
            rows = np.arange(tensor.shape[member.dim])
            rows[member.positions.ravel()] = member.positions[order].ravel()
            tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(rows).to(tensor.device)))
    return clone


def proved(
    model: nn.Module, structures: Structures, folds: Sequence[Fold], example: Example
) -> tuple[nn.Module, float]:
    """Return the reordered network and its largest relative difference, with all weights shaken and as they are.

    Raises
    ------
    CompileError
        If it computes something else.
    """
    everything = np.ones(structures.n, dtype=bool)
    proof = Proof(model, structures, everything, example, tensors(run(model, example)))
    try:
        reordered, in_trial, on_example = proof.accept(partial(folded, folds=folds))
    except ValueError as problem:
        raise CompileError(
            f"Expected a reordered {type(model).__name__} that computes what it did. Got one whose {problem}. "
            "Name in layers only some of the layers; the order of others is left alone."
        ) from problem
    return reordered, max(in_trial, on_example)
