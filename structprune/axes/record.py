"""Read a network by recording one real forward pass, operator by operator.

For networks that ``torch.export`` refuses. What is recorded is what happened on one input, so it is accepted only if
other inputs give the same operators with the same numbers: a network that branches on values is refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback as notes
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from structprune.axes.graph import Example, Graph
from structprune.errors import TraceError

__all__ = ["record"]

DRAWS = (1.0, -1.0, 3.0, -0.3)  # scales of the other inputs; both signs, so that a branch shows


def record(model: nn.Module, example: Example, table: Mapping[Any, Callable[..., Any]], refusal: str) -> Graph:
    """Record ``model`` on ``example``; ``refusal`` is what export said, for the message.

    Raises
    ------
    TraceError
        If the model cannot be recorded, or records something else on another input.
    """
    first = _record_once(model, example, table, refusal)
    for seed, scale in enumerate(DRAWS):
        try:
            other = _record_once(model, _another(example, seed // 2, scale), table, refusal)
        except TraceError:  # an input that the network does not take
            continue
        if _program(other.module) != _program(first.module):
            raise TraceError(
                f"Expected a network that does the same whatever its input. Got {type(model).__name__}, whose "
                "operators, or numbers in them, change with the values of its input (data-dependent control flow). "
                f"Prune the parts that do not branch, one at a time. torch.export said: {refusal}"
            )
    return first


def _record_once(model: nn.Module, example: Example, table: Mapping[Any, Callable[..., Any]], refusal: str) -> Graph:
    model = copy.deepcopy(model)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, in_spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
    out_specs: list[pytree.TreeSpec] = []

    def forward(weights: list[Tensor], inputs: list[Tensor]) -> list[Any]:
        values = iter(inputs)
        whole = [next(values) if tensor else leaf for tensor, leaf in zip(is_tensor, leaves, strict=True)]
        args, kwargs = pytree.tree_unflatten(whole, in_spec)
        out = torch.func.functional_call(model, dict(zip(named, weights, strict=True)), args, kwargs)
        flat, spec = pytree.tree_flatten(out)
        out_specs.append(spec)
        return flat

    weights = [tensor.detach() for tensor in named.values()]
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    try:
        with torch.no_grad(), notes.preserve_node_meta(), _noting_modules(model):
            raw = make_fx(forward, tracing_mode="real", _error_on_data_dependent_ops=False)(weights, inputs)
        # The recording has no Python in it, so mutations can be removed and operators decomposed without its tricks.
        pure: Callable[..., Any] = torch.func.functionalize(fx.Interpreter(raw).run, remove="mutations")
        flat = [*weights, *inputs]
        with torch.no_grad(), notes.preserve_node_meta():
            module = make_fx(
                pure, decomposition_table=dict(table), tracing_mode="real", _error_on_data_dependent_ops=False
            )(*flat)
    except Exception as error:
        raise TraceError(
            f"Expected a network that torch.export or a recorded forward pass can read. Got {type(model).__name__}: "
            f"torch.export said: {refusal}; recording said: {str(error).strip().splitlines()[0][:300]}."
        ) from error
    module.graph.eliminate_dead_code()
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    constants = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":  # tensors that the Python made from numbers
            constants[node.name] = getattr(module, str(node.target))
        if "val" not in node.meta and "tensor_meta" in node.meta:
            node.meta["val"] = node.meta["tensor_meta"]
    tensors = dict(zip(placeholders, named, strict=False))
    return Graph(module, tensors, constants, tuple(placeholders[len(named) :]), out_specs[0], recorded=True).settled()


@contextmanager
def _noting_modules(model: nn.Module) -> Iterator[None]:
    """Every operator that is recorded meanwhile notes the module that runs it."""
    stack: list[tuple[str, type]] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        stack.append((names[module], type(module)))
        notes.current_meta["nn_module_stack"] = {name or "root": (name, kind) for name, kind in stack}

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()
        notes.current_meta["nn_module_stack"] = {name or "root": (name, kind) for name, kind in stack}

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _another(example: Example, seed: int, scale: float) -> Example:
    """The same arguments with other values: floats drawn anew, integers shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            return scale * torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf.flatten()[torch.randperm(leaf.numel(), generator=generator).to(leaf.device)].reshape(leaf.shape)

    return Example(*pytree.tree_map(redraw, (example.args, dict(example.kwargs))))


def _program(module: fx.GraphModule) -> list[Any]:
    """Operators with everything in their arguments that is not computed."""
    calls = []
    for node in module.graph.nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: source.name)
        held = getattr(module, str(node.target)).tolist() if node.op == "get_attr" else None
        calls.append((str(node.target), repr(arguments), held))
    return calls
