"""A network as one flat list of ATen operators.

The graph comes from ``torch.export`` (non-strict, evaluation mode, static shapes; nothing is computed, so large
networks cost no memory). Where export fails, one real forward pass is recorded operator by operator with
``make_fx``; such a recording is accepted only if a second, different input gives the same operators.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx

from structprune.errors import TraceError

__all__ = ["Example", "Graph", "as_example", "module_of", "run", "trace"]

KEPT_WHOLE = (  # composite operators that have a rule of their own; decomposing them would hide what they do
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
)


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
    with _evaluation(model), torch.no_grad():
        return model(*example.args, **example.kwargs)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
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


def trace(model: nn.Module, example: Any) -> Graph:
    """Record ``model`` as a flat graph of ATen operators.

    Parameters
    ----------
    model
        Any network; it is left untouched.
    example
        A tensor, a tuple of positional arguments or a dict of keyword arguments for one forward call.

    Raises
    ------
    TraceError
        If the model does not run on the example, or if what it does depends on the values of its input.
    """
    example = as_example(example)
    try:
        run(model, example)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in example.flat() if isinstance(leaf, Tensor)]
        raise TraceError(
            f"Expected an example input that {type(model).__name__} can run. Got shapes {shapes}, on which its "
            f"forward raised {type(error).__name__}: {error}. Pass example= with the arguments of one forward call."
        ) from error
    with _evaluation(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _export(model, example)
        except Exception as error:
            return _record(model, example, error)


def _export(model: nn.Module, example: Example) -> Graph:
    program = torch.export.export(model, example.args, dict(example.kwargs), strict=False)
    table = torch.export.default_decompositions()
    for operator in KEPT_WHOLE:
        table.pop(operator, None)
    program = program.run_decompositions(table)
    tensors, constants, inputs = {}, {}, []
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", None)
        if name is None:
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None
            tensors[name] = spec.target
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[spec.target]
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
        else:
            raise TraceError(f"Expected parameters, buffers and tensors as inputs. Got {spec.kind} for {name}.")
    mutated = len(program.graph_signature.buffers_to_mutate) + len(program.graph_signature.user_inputs_to_mutate)
    module = program.graph_module
    output = module.graph.output_node()
    output.args = (tuple(output.args[0])[mutated:],)  # type: ignore[arg-type]
    module.graph.eliminate_dead_code()
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    return _renamed(Graph(module, tensors, constants, tuple(inputs), out_spec, recorded=False))


def _renamed(graph: Graph) -> Graph:
    """The graph with names that a copy keeps: fx renames a placeholder called 'input', which Python knows already."""
    copied = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    output = copied.graph_copy(graph.module.graph, new)
    copied.output(output)
    name = {old.name: node.name for old, node in new.items()}
    return Graph(
        fx.GraphModule(graph.module, copied),
        {name[key]: tensor for key, tensor in graph.tensors.items()},
        {name[key]: tensor for key, tensor in graph.constants.items()},
        tuple(name[key] for key in graph.inputs),
        graph.out_spec,
        graph.recorded,
    )


def _record(model: nn.Module, example: Example, export_error: Exception) -> Graph:
    first, out_spec = _record_once(model, example, export_error)
    second, _ = _record_once(model, _another(example), export_error)
    if _operators(first.module) != _operators(second.module):
        raise TraceError(
            f"Expected a network that runs the same operators whatever its input. Got {type(model).__name__}, whose "
            "operators change with the values of its input (data-dependent control flow). Prune the parts that do "
            f"not branch, one at a time. torch.export said: {_first_line(export_error)}"
        )
    return first


def _record_once(model: nn.Module, example: Example, export_error: Exception) -> tuple[Graph, pytree.TreeSpec]:
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

    pure: Callable[..., Any] = torch.func.functionalize(forward, remove="mutations_and_views")
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    table = torch.export.default_decompositions()
    for operator in KEPT_WHOLE:
        table.pop(operator, None)
    try:
        with torch.no_grad():
            module = make_fx(
                pure, decomposition_table=dict(table.items()), tracing_mode="real", _error_on_data_dependent_ops=False
            )([tensor.detach() for tensor in named.values()], inputs)
    except Exception as error:
        raise TraceError(
            f"Expected a network that torch.export or a recorded forward pass can read. Got {type(model).__name__}: "
            f"torch.export said: {_first_line(export_error)}; recording said: {_first_line(error)}."
        ) from error
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    constants = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":  # tensors that the Python made from numbers
            constants[node.name] = getattr(module, str(node.target))
    tensors = dict(zip(placeholders, named, strict=False))
    for node in module.graph.nodes:
        if "val" not in node.meta and "tensor_meta" in node.meta:
            node.meta["val"] = node.meta["tensor_meta"]
    graph = Graph(module, tensors, constants, tuple(placeholders[len(named) :]), out_specs[0], recorded=True)
    return _renamed(graph), out_specs[0]


def _another(example: Example) -> Example:
    """The same arguments with other values: floats drawn anew, integers shuffled."""
    generator = torch.Generator().manual_seed(1)

    def redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf.flatten()[torch.randperm(leaf.numel(), generator=generator).to(leaf.device)].reshape(leaf.shape)

    return Example(*pytree.tree_map(redraw, (example.args, dict(example.kwargs))))


def _operators(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
