"""Let a block-sparse layer apply the activation behind it, while its outputs are still in registers.

Only an ``nn.ReLU`` or exact ``nn.GELU`` is taken, and only where the recorded network calls it once, on the output of
that layer, which nobody else reads. Functional activations are the user's own Python and stay where they are. The
fused layer is timed beside the layer and its activation; what is slower is not fused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn

from structprune.axes import Example, Graph, trace
from structprune.axes.graph import module_of
from structprune.compile.sparse import SparsePlan, recorded_inputs, replaced, sparse_layers
from structprune.errors import TraceError
from structprune.layers.activation import Activation, activation_of
from structprune.layers.tune import time_fused

__all__ = ["Applied", "Fusion", "applied", "followed_by", "fused", "fusion_notes", "plan_fusions"]

aten = torch.ops.aten
LAYERS = (aten.linear.default, aten.convolution.default)
ACTIVATIONS = (aten.relu.default, aten.gelu.default)


class Applied(nn.Identity):
    """Where an activation was that the layer before it applies now; it gives its input.

    Parameters
    ----------
    by
        Name of that layer.
    """

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by

    def extra_repr(self) -> str:
        """Return who applies it, for printing."""
        return f"by {self.by}"


@dataclass(frozen=True)
class Fusion:
    """An activation that its layer takes over.

    Attributes
    ----------
    layer, module
        Names of the block-sparse layer and of the activation's module.
    activation
        Which it is.
    ratio
        Time of the fused layer as a share of that of the layer and its activation; 1.0 where nobody measured.
    """

    layer: str
    module: str
    activation: Activation
    ratio: float = 1.0


def plan_fusions(
    model: nn.Module,
    plan: SparsePlan,
    graph: Graph | None,
    example: Example,
    timing: Example,
    *,
    cache: str | Path | Literal[False] | None = None,
) -> tuple[Fusion, ...]:
    """Return the activations that planned block-sparse layers should apply themselves, each measured not to be slower.

    Parameters
    ----------
    model
        The masked network, dense.
    plan
        Its block-sparse layers.
    graph
        The recorded network; None to record it on ``example``. Without a graph there are no fusions.
    example, timing
        Arguments of forward calls: one that can be traced, and the one to make faster.
    cache
        Folder of measurements; None for the user's cache folder, False for no cache.
    """
    if not any(isinstance(module, nn.ReLU | nn.GELU) for module in model.modules()):
        return ()
    try:
        graph = graph or trace(model, example)
    except TraceError:
        return ()
    backends = {candidate.name: (candidate, backend) for candidate, backend in plan.layers}
    found = [one for one in followed_by(model, graph) if one.layer in backends]
    inputs = recorded_inputs(model, [one.layer for one in found], timing)
    measured = []
    for one in found:
        candidate, backend = backends[one.layer]
        dense = model.get_submodule(one.layer)
        layer, behind = candidate.build(dense, backend).eval(), model.get_submodule(one.module)
        ratio = time_fused(layer, behind, one.activation, inputs[one.layer], cache=cache)
        if ratio <= 1.0:
            measured.append(Fusion(one.layer, one.module, one.activation, ratio))
    return tuple(measured)


def followed_by(model: nn.Module, graph: Graph) -> tuple[Fusion, ...]:
    """Return every linear layer or convolution whose output is read by one activation module, called once."""
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    calls: dict[str, list[fx.Node]] = {}
    for node in nodes:
        # A second call of one module carries a number behind an @ in some releases of torch.
        calls.setdefault(module_of(node).partition("@")[0], []).append(node)
    names = names_of_modules(model)
    found = []
    for name, own in calls.items():
        users = list(own[0].users)
        if not name or len(own) != 1 or own[0].target not in LAYERS or len(users) != 1:
            continue
        behind = module_of(users[0]).partition("@")[0]
        if users[0].target not in ACTIVATIONS or len(calls.get(behind, ())) != 1 or behind not in names:
            continue
        module = model.get_submodule(behind)
        activation = activation_of(module)
        if activation != "none" and names[behind] == 1 and not has_hooks(module):
            found.append(Fusion(name, behind, activation))
    return tuple(found)


def names_of_modules(model: nn.Module) -> dict[str, int]:
    """Return, for every name of a module, how many names that module has."""
    named = dict(model.named_modules(remove_duplicate=False))
    times = Counter(map(id, named.values()))
    return {name: times[id(module)] for name, module in named.items()}


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or behind the module."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def fused(model: nn.Module, fusions: Iterable[Fusion]) -> nn.Module:
    """Let the block-sparse layers of a network apply their activations, in place; return the network.

    Raises
    ------
    ValueError
        There is no such block-sparse layer, or no such activation behind it.
    """
    layers = sparse_layers(model)
    modules = dict(model.named_modules())
    for fusion in fusions:
        behind = modules.get(fusion.module)
        if fusion.layer not in layers or behind is None or activation_of(behind) != fusion.activation:
            got = f"{type(modules.get(fusion.layer)).__name__} and {type(behind).__name__}"
            raise ValueError(
                f"Expected a block-sparse layer {fusion.layer!r} and the {fusion.activation} {fusion.module!r}. "
                f"Got {got}. Make the model as it was made for solve."
            )
        layers[fusion.layer].activation = fusion.activation
        replaced(model, fusion.module, Applied(fusion.layer))
    return model


def applied(model: nn.Module) -> tuple[Fusion, ...]:
    """Return the fusions of a network, from the network itself."""
    layers = sparse_layers(model)
    return tuple(
        Fusion(module.by, name, layers[module.by].activation)
        for name, module in model.named_modules()
        if isinstance(module, Applied)
    )


def fusion_notes(fusions: Iterable[Fusion]) -> tuple[str, ...]:
    """Return what a reader of the result must know."""
    listed = ", ".join(f"{one.module} by {one.layer} {one.ratio:.2f}" for one in fusions)
    return (f"activations that the layer before applies, with the pair's time as a share: {listed}",) if listed else ()
