"""A network as one flat list of ATen operators, and the arguments of one call of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

__all__ = ["Example", "Graph", "as_example", "evaluation", "module_of", "run"]


@dataclass(frozen=True)
class Example:
    """The arguments of one forward call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def flat(self) -> list[Any]:
        """All leaves in the order in which the graph takes them."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))


@dataclass(frozen=True)
class Graph:
    """A recorded network: ``module(*parameters, *buffers, *constants, *inputs)``.

    Attributes
    ----------
    module
        Flat graph of ATen operators without side effects.
    tensors
        Placeholder name -> name of the parameter or buffer that it stands for.
    constants
        Placeholder name -> tensor that the network's Python made and that is no parameter or buffer.
    inputs
        Placeholder names of the flattened example input, in order.
    out_spec
        How the flat outputs are put together again.
    recorded
        False when ``torch.export`` gave the graph, True when a forward pass was recorded.
    """

    module: fx.GraphModule
    tensors: dict[str, str]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec
    recorded: bool

    @property
    def outputs(self) -> list[Any]:
        """The flat output nodes."""
        return list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]

    def settled(self) -> Graph:
        """The graph with names that a copy keeps: fx renames a placeholder 'input', a word that Python has taken."""
        copied = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        copied.output(copied.graph_copy(self.module.graph, new))
        name = {old.name: node.name for old, node in new.items()}
        return replace(
            self,
            module=fx.GraphModule(self.module, copied),
            tensors={name[key]: tensor for key, tensor in self.tensors.items()},
            constants={name[key]: tensor for key, tensor in self.constants.items()},
            inputs=tuple(name[key] for key in self.inputs),
        )


def as_example(example: Any) -> Example:
    """Read what the caller gave: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(example, Example):
        return example
    if isinstance(example, Mapping):
        return Example((), dict(example))
    if isinstance(example, (tuple, list)):
        return Example(tuple(example), {})
    return Example((example,), {})


def module_of(node: fx.Node) -> str:
    """Dotted name of the innermost module that the operator ran in ('' for the network itself)."""
    stack = node.meta.get("nn_module_stack")
    return list(stack.values())[-1][0].removeprefix("L['self'].") if stack else ""


def run(model: nn.Module, example: Example) -> Any:
    """Forward pass in evaluation mode without gradients; the model's mode is put back."""
    with evaluation(model), torch.no_grad():
        return model(*example.args, **example.kwargs)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without the fused attention that hides what it does; everything is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator hides the attention's structure
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode
