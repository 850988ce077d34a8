"""The law of every compiled network: it computes what the masked one computes and costs what was predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.axes import as_example
from structprune.axes.graph import run
from structprune.compile import Compiled, compile, masked
from structprune.compile.proof import tensors
from structprune.costs import costs, evaluate
from structprune.counting import count_macs, count_memory
from structprune.structures import Structures, channels
from tests.laws import double

NOISE = {torch.float64: 1e-10, torch.float32: 1e-5}


def compiled_equals_masked(
    model: nn.Module, example: Any, structures: Structures, selection: np.ndarray, *, effective: bool = True
) -> Compiled:
    """Same shapes, values within noise of the masked network's; and, if ``effective``, masking changed something."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = compile(model, structures, selection, example)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    arguments = as_example(example)
    dense = tensors(run(model, arguments))
    wanted = tensors(run(masked(model, structures, selection), arguments))
    got = tensors(run(compiled.model, arguments))
    assert [t.shape for t in got] == [t.shape for t in dense]
    floats = [(a, b) for a, b in zip(got, wanted, strict=True) if b.is_floating_point()]
    assert floats
    for a, b in floats:
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= NOISE[b.dtype] * b.abs().max()
    if effective:
        assert compiled.effect > 1e-4
    return compiled


def counted_equals_predicted(
    model: nn.Module, example: Any, structures: Structures, selection: np.ndarray, compiled: Compiled
) -> None:
    """Multiplications, parameters and bytes of the compiled network are those that the polynomials predict."""
    widths = structures.widths(selection)
    assert evaluate(costs(structures, model, "macs"), widths) == count_macs(compiled.model, example)
    memory = count_memory(compiled.model)
    assert evaluate(costs(structures, model, "params"), widths) == memory["params"]


def in_double(model: nn.Module, example: Any, structures: Structures) -> tuple[nn.Module, Any, Structures]:
    """The network, its example and its channels in float64; traced again only if a type is written in its graph."""
    model, example = model.double(), double(example)
    assert structures.labelled is not None
    typed = any(
        isinstance(node.kwargs.get("dtype"), torch.dtype) for node in structures.labelled.graph.module.graph.nodes
    )
    return model, example, channels(model, example) if typed else structures
