"""What a selection costs: exact integer polynomials of the axes' widths, read off the traced graph.

Every cost is a tuple of terms (:class:`solvers.problem.Product`, :class:`solvers.problem.Table`) over the axes'
indices. There is no formula per module: a matrix product or convolution contributes the product of the kept sizes of
its dimensions, a tensor the product of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, fx, nn

from solvers.problem import Product, Term
from structprune.axes.discovery import axis_table, size_polynomial
from structprune.axes.linear_maps import linear_maps
from structprune.axes.polynomial import Polynomial
from structprune.structures import EntryAxis, Structures

__all__ = ["RESOURCES", "bytes_", "costs", "density", "evaluate", "macs", "params"]

RESOURCES = ("macs", "params", "bytes", "latency_ns", "density")


def costs(structures: Structures, model: nn.Module, resource: str) -> tuple[Term, ...]:
    """Terms of one resource that needs no measurement: 'macs', 'params', 'bytes' or 'density'."""
    counters = {"macs": macs, "params": params, "bytes": bytes_, "density": density}
    if resource not in counters:
        raise ValueError(f"Expected one of {sorted(counters)}. Got {resource!r}. Latency is measured: use latency_ns.")
    return counters[resource](structures, model)


def params(structures: Structures, model: nn.Module) -> tuple[Term, ...]:
    """Number of kept parameters; tied weights count once."""
    return _terms(_weighted_sizes(structures, dict(model.named_parameters()), lambda tensor: 1))


def bytes_(structures: Structures, model: nn.Module) -> tuple[Term, ...]:
    """Bytes of the kept parameters and buffers."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return _terms(_weighted_sizes(structures, named, lambda tensor: tensor.element_size()))


def density(structures: Structures, model: nn.Module) -> tuple[Term, ...]:
    """Number of kept weights inside the structures; with all of them kept it is what a density is a fraction of.

    Raises
    ------
    ValueError
        If the structures are channels, which take weights of several layers at once.
    """
    if structures.kind == "channels":
        raise ValueError(
            "Expected structures inside weights for a density: blocks, kernels or nm. Got channels. "
            "Cap params or macs instead, or pass structures=blocks(model, (64, 1))."
        )
    axes = enumerate(_entry_axes(structures))
    return _terms(Polynomial({(number,): axis.weights_each for number, axis in axes}))


def macs(structures: Structures, model: nn.Module) -> tuple[Term, ...]:
    """Multiplications of one example in every convolution and matrix product, attention included.

    Where the examples of the batch could not be told apart (sequence first, a network for a fixed batch), one example
    is the whole input.

    Raises
    ------
    ValueError
        If the structures were made without an example, so that the network's graph is not known.
    """
    if structures.labelled is None:
        raise ValueError(
            f"Expected {structures.kind} that know the network's graph. Got {structures.kind} made without an example. "
            "Pass example= when making them."
        )
    return _terms(_channel_macs(structures) if structures.kind == "channels" else _entry_macs(structures, model))


def evaluate(terms: Iterable[Term], widths: Sequence[int]) -> int:
    """Exact amount used at ``widths`` (one per axis) by product terms."""
    total = 0
    for term in terms:
        assert isinstance(term, Product)
        amount = int(term.coefficient)
        for axis in term.groups:
            amount *= int(widths[axis])
        total += amount
    return total


def _weighted_sizes(structures: Structures, named: Mapping[str, Tensor], weight: Callable[[Tensor], int]) -> Polynomial:
    """Sum over tensors of ``weight(tensor)`` times its kept entries."""
    total = Polynomial.constant(0)
    if structures.kind == "channels":
        assert structures.labelled is not None
        axis_of = axis_table(list(structures.found))
        labels = structures.tensor_labels
        for name, tensor in named.items():
            size = Polynomial.constant(weight(tensor))
            for dim in range(tensor.ndim):
                if name in labels:
                    size = size * size_polynomial(structures.labelled, axis_of, labels[name][dim])
                else:
                    size = size * tensor.shape[dim]
            total = total + size
        return total
    inside: dict[str, int] = {}
    for number, axis in enumerate(structures.axes):
        assert isinstance(axis, EntryAxis)
        total = total + Polynomial({(number,): axis.weights_each * weight(named[axis.tensor])})
        inside[axis.tensor] = inside.get(axis.tensor, 0) + axis.weights_each * axis.size
    for name, tensor in named.items():
        total = total + Polynomial.constant((tensor.numel() - inside.get(name, 0)) * weight(tensor))
    return total


def _channel_macs(structures: Structures) -> Polynomial:
    labelled = structures.labelled
    assert labelled is not None
    axis_of = axis_table(list(structures.found))
    total = Polynomial.constant(0)
    for contraction in labelled.contractions:
        product = Polynomial.constant(contraction.factor)
        for label in contraction.dims:
            product = product * size_polynomial(labelled, axis_of, label)
        total = total + product
    return total


def _entry_macs(structures: Structures, model: nn.Module) -> Polynomial:
    """Every weight entry of a linear map is used equally often, so a structure's share is its number of entries."""
    labelled = structures.labelled
    assert labelled is not None
    weight_of: dict[fx.Node, str] = {found.node: found.weight for found in linear_maps(labelled)}
    sizes = {axis.tensor: model.get_parameter(axis.tensor).numel() for axis in _entry_axes(structures)}
    total = Polynomial.constant(0)
    uses: dict[str, int] = {}
    for contraction in labelled.contractions:
        multiplications = contraction.factor
        for label in contraction.dims:
            multiplications *= len(label) // (len(labelled.batch) if labelled.has_batch(label) else 1)
        name = weight_of.get(contraction.node, "")
        if name in sizes:
            uses[name] = uses.get(name, 0) + multiplications // sizes[name]
        else:
            total = total + Polynomial.constant(multiplications)
    inside: dict[str, int] = {}
    for number, axis in enumerate(_entry_axes(structures)):
        total = total + Polynomial({(number,): axis.weights_each * uses.get(axis.tensor, 0)})
        inside[axis.tensor] = inside.get(axis.tensor, 0) + axis.weights_each * axis.size
    for name, used in uses.items():
        total = total + Polynomial.constant(used * (sizes[name] - inside[name]))
    return total


def _entry_axes(structures: Structures) -> list[EntryAxis]:
    return [axis for axis in structures.axes if isinstance(axis, EntryAxis)]


def _terms(polynomial: Polynomial) -> tuple[Term, ...]:
    return tuple(Product(axes, coefficient) for axes, coefficient in polynomial.terms.items() if coefficient)
