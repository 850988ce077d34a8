"""Read a network into a graph.

The graph comes from ``torch.export`` (non-strict, evaluation mode, static shapes; nothing is computed, so large
networks cost no memory). Where export fails, a real forward pass is recorded; see :mod:`structprune.axes.record`.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from structprune.axes.graph import Example, Graph, as_example, evaluation, run
from structprune.axes.record import record
from structprune.errors import TraceError

__all__ = ["trace"]

KEPT_WHOLE = (  # composite operators that have a rule of their own; decomposing them would hide what they do
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
)


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
    with evaluation(model), _quiet():
        try:
            return _export(model, example)
        except Exception as error:
            refusal = str(error).strip().split("\n")[0][:300]
        return record(model, example, _decompositions(), refusal)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence for what export prints about networks that it refuses: they are recorded instead."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = dict(torch.export.default_decompositions().items())
    for operator in KEPT_WHOLE:
        table.pop(operator, None)
    return table


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
    _check_shapes(module)
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    return Graph(module, tensors, constants, tuple(inputs), out_spec, recorded=False).settled()


def _check_shapes(module: torch.fx.GraphModule) -> None:
    """Shapes that depend on values are unknown to export; a recording knows those of the example."""
    for node in module.graph.nodes:
        for value in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            shape = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(size, torch.SymInt) for size in shape):
                raise TraceError(f"the shape of {node.name} depends on the values of the input")
