"""Calls go past torch's dispatcher exactly where nobody there would see or change them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.layers import Backend, BlockSparseLinear
from structprune.layers.watching import watched
from tests.layers.layer_cases import BACKENDS, ConvCase, LinearCase, close

LINEAR = LinearCase(40, 20, 16, 4, ordered=True, kept=0.2)
CONV = ConvCase((3, 3), (2, 2), (1, 1), 16, 4, (6, 7), ordered=True)


class Names(TorchDispatchMode):
    """Writes down the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operator and run it."""
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Through(TorchFunctionMode):
    """Runs every function as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function."""
        return func(*args, **(kwargs or {}))


class Special(Tensor):
    """A tensor of a class of its own."""


def layer_of(backend: Backend) -> BlockSparseLinear:
    """Return a layer of 20 inputs and 40 outputs."""
    return LINEAR.pair(backend).sparse.eval()


def operands() -> tuple[Tensor, nn.Parameter, nn.Parameter]:
    """Return an input, values and a bias."""
    return torch.randn(3, 20), nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.randn(40))


def test_inference_is_not_watched() -> None:
    """Without gradients, modes and transformations nobody watches; nor if only what is frozen takes part."""
    x, values, bias = operands()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not watched(x, values, bias)
            assert not watched(x, values, None)
    assert not watched(x, values.requires_grad_(False), bias.requires_grad_(False))


@pytest.mark.parametrize("which", range(3))
def test_a_wanted_gradient_is_watched(which: int) -> None:
    """One operand that wants a gradient is enough."""
    given = operands()
    for index, tensor in enumerate(given):
        tensor.requires_grad_(index == which)
    assert watched(*given)


@pytest.mark.parametrize("mode", [Names, Through, torch.autograd.profiler.profile])
def test_modes_and_profilers_watch(mode: Callable[[], AbstractContextManager[object]]) -> None:
    """Under a mode or a profiler calls stay visible."""
    with torch.no_grad(), mode():
        assert watched(*operands())


@pytest.mark.parametrize("which", range(3))
def test_other_classes_and_lazy_tensors_are_watched(which: int) -> None:
    """An operand of another class, or one whose memory holds other numbers than itself, takes the dispatcher."""
    negated = torch.complex(torch.zeros(40), torch.randn(40)).conj().imag
    assert negated.is_neg()
    with torch.no_grad():
        for odd in (torch.randn(40).as_subclass(Special), negated, torch._efficientzerotensor(40)):
            given: list[Tensor] = list(operands())
            given[which] = odd
            assert watched(given[0], given[1], given[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mode_sees_the_operator(backend: Backend) -> None:
    """A dispatch mode, such as one that counts, sees one operator, and the result is the same."""
    layer, x = layer_of(backend), torch.randn(3, 20)
    with torch.no_grad():
        expected = layer(x)
        with Names() as mode:
            y = layer(x)
    assert "structprune.grouped_linear.default" in mode.seen
    assert torch.equal(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [LINEAR, CONV], ids=["linear", "conv"])
def test_both_ways_give_the_same(backend: Backend, case: LinearCase | ConvCase) -> None:
    """The direct way, the operator and autograd's way give equal numbers, in shape and layout too."""
    layer = case.pair(backend, "relu").sparse.eval()
    x = torch.randn((4, 3, 20) if case is LINEAR else (2, 8, 6, 7))
    tracked = layer(x)
    with torch.no_grad():
        direct = layer(x)
        with Names():
            through = layer(x)
    assert tracked.requires_grad and not direct.requires_grad
    for other in (tracked, through):
        assert torch.equal(direct, other) and direct.stride() == other.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negated_view_is_its_own_number(backend: Backend) -> None:
    """A lazily negated input, whose memory holds the opposite, is computed as what it is."""
    layer = layer_of(backend)
    lazy = torch.complex(torch.zeros(3, 20), torch.randn(3, 20)).conj().imag
    with torch.no_grad():
        assert close(layer(lazy), layer(lazy.resolve_neg()))


@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_the_operator() -> None:
    """torch.jit.trace records the operator, not the numbers of its example."""
    layer, x = layer_of(BACKENDS[0].values[0]), torch.randn(3, 20)  # type: ignore[arg-type]
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.zeros(3, 20))
        assert close(traced(x), layer(x))


def test_transformations_are_watched() -> None:
    """Under vmap the operands are not what they seem, so the call is the dispatcher's."""
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(watched(x, values, None))
        return x

    with torch.no_grad():
        _, values, _ = operands()
        torch.vmap(function)(torch.randn(2, 3, 20))
    assert seen == [True]
