"""What a selection costs: exact integer polynomials of the axes' widths, read off the traced graph.

Every cost is a tuple of terms (:class:`solvers.problem.Product`, :class:`solvers.problem.Table`) over the axes'
indices. There is no formula per module: a matrix product or convolution contributes the product of the kept sizes of
its dimensions, a tensor the product of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn

from solvers.problem import Product, Term
from structprune.axes.discovery import axis_table, size_polynomial
from structprune.axes.linear_maps import linear_maps
from structprune.axes.polynomial import Polynomial
from structprune.structures import EntryAxis, Structures

__all__ = ["RESOURCES", "bytes_", "costs", "macs", "params"]

RESOURCES = ("macs", "params", "bytes", "latency_ns")


def costs(structures: Structures, model: nn.Module, resource: str) -> tuple[Term, ...]:
    """Terms of one resource that needs no measurement: 'macs', 'params' or 'bytes'."""
    counters = {"macs": macs, "params": params, "bytes": bytes_}
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


def _weighted_sizes(structures: Structures, named: dict[str, Tensor], weight: object) -> Polynomial:
    assert callable(weight)
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
        per_structure = int((axis.index >= 0).sum()) // axis.size
        total = total + Polynomial({(number,): per_structure * weight(named[axis.tensor])})
        inside[axis.tensor] = inside.get(axis.tensor, 0) + per_structure * axis.size
    for name, tensor in named.items():
        total = total + Polynomial.constant((tensor.numel() - inside.get(name, 0)) * weight(tensor))
    return total


def macs(structures: Structures, model: nn.Module) -> tuple[Term, ...]:
    """Multiplications of one example in every convolution and matrix product, attention included."""
    labelled = structures.labelled
    if labelled is None:
        raise ValueError(
            f"Expected {structures.kind} that know the network's graph. Got {structures.kind} made without an example. "
            "Pass example= when making them."
        )
    total = Polynomial.constant(0)
    if structures.kind == "channels":
        axis_of = axis_table(list(structures.found))
        for contraction in labelled.contractions:
            product = Polynomial.constant(contraction.factor)
            for label in contraction.dims:
                product = product * size_polynomial(labelled, axis_of, label)
            total = total + product
        return _terms(total)
    weight_of: dict[fx.Node, str] = {found.node: found.weight for found in linear_maps(labelled)}
    batch = max(len(labelled.batch), 1)
    reuse: dict[str, int] = {}
    for contraction in labelled.contractions:
        multiplications = contraction.factor
        for label in contraction.dims:
            multiplications *= len(label)
        multiplications //= batch if any(labelled.has_batch(label) for label in contraction.dims) else 1
        name = weight_of.get(contraction.node)
        if name in structures.shapes:
            reuse[name] = reuse.get(name, 0) + multiplications
        else:
            total = total + Polynomial.constant(multiplications)
    tensors = dict(model.named_parameters())
    for number, axis in enumerate(structures.axes):
        assert isinstance(axis, EntryAxis)
        per_structure = int((axis.index >= 0).sum()) // axis.size
        share = reuse.get(axis.tensor, 0) // tensors[axis.tensor].numel() * per_structure
        total = total + Polynomial({(number,): share})
    covered = {axis.tensor for axis in structures.axes if isinstance(axis, EntryAxis)}
    for name, multiplications in reuse.items():
        if name not in covered:
            total = total + Polynomial.constant(multiplications)
    return _terms(total)


def _terms(polynomial: Polynomial) -> tuple[Term, ...]:
    return tuple(Product(axes, coefficient) for axes, coefficient in polynomial.terms.items() if coefficient)


def evaluate(terms: Iterable[Term], widths: list[int]) -> int:
    """Exact amount used at ``widths`` by product terms."""
    total = 0
    for term in terms:
        assert isinstance(term, Product)
        amount = term.coefficient
        for axis in term.groups:
            amount *= widths[axis]
        total += amount
    return total


