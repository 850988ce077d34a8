"""Who computes a block-sparse layer: one object per way, chosen by the caller, with gradients that need no kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from structprune.layers.activation import Activation
from structprune.layers.geometry import Geometry
from structprune.layers.gradients import (
    conv2d_input_gradient,
    conv2d_weight_gradient,
    linear_input_gradient,
    linear_weight_gradient,
)
from structprune.layers.pack import Packed

__all__ = ["Backend", "backend_named", "remember", "require"]


class Backend(ABC):
    """A way to compute ``Y = X W' + bias`` and the convolution with the same packed weight.

    Laws: the result equals that of the unpacked weight up to rounding, for every pattern, size and activation, ragged
    edges and empty groups included; what a backend cannot do it refuses, it never hands it to another in silence. The
    gradients have a pure torch form here, which a backend with a kernel of its own replaces.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique name; exported programs hold it, since they can hold no object."""

    def available(self) -> str:
        """Return why this backend cannot run on this machine, '' where it can."""
        return ""

    @abstractmethod
    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Return the contiguous ``(B, outputs)`` product of ``x (B, inputs)``.

        ``bias`` is ``(outputs,)`` or None, in the order of the outputs.
        """

    @abstractmethod
    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Return the ``(B, outputs, Ho, Wo)`` convolution of ``x (B, C, H, W)``, channels innermost in memory."""

    def linear_input_gradient(self, grad: Tensor, packed: Packed) -> Tensor:
        """Return ``dX (B, inputs)`` for ``dY (B, outputs)``."""
        return linear_input_gradient(grad, packed)

    def linear_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed) -> Tensor:
        """Return the gradient of ``packed.values``, ``(C, G)``, for ``dY (B, outputs)`` and ``X (B, inputs)``."""
        return linear_weight_gradient(grad, x, packed)

    def conv2d_input_gradient(self, grad: Tensor, packed: Packed, geometry: Geometry, size: tuple[int, int]) -> Tensor:
        """Return ``dX (B, C, *size)`` for ``dY (B, outputs, Ho, Wo)``."""
        return conv2d_input_gradient(grad, packed, geometry, size)

    def conv2d_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed, geometry: Geometry) -> Tensor:
        """Return the gradient of ``packed.values``, ``(C, G)``, for ``dY`` and ``X (B, channels, H, W)``."""
        return conv2d_weight_gradient(grad, x, packed, geometry)


# Operators in a compiled or saved graph carry a backend's name; this is where the name becomes the object again.
_remembered: dict[str, Backend] = {}


def remember(backend: Backend) -> str:
    """Return the backend's name and let operators find the backend by it.

    Raises
    ------
    ValueError
        An unequal backend has that name: make backends frozen dataclasses, which compare by value.
    """
    known = _remembered.setdefault(backend.name, backend)
    if known != backend:
        raise ValueError(f"Expected one backend named {backend.name!r}. Got a second. Give it a name of its own.")
    return backend.name


def require(backend: Backend) -> Backend:
    """Return the backend if it runs on this machine; raise a ValueError that says why it does not."""
    reason = backend.available()
    if reason:
        raise ValueError(f"Expected a backend that runs here. Got {backend.name}: {reason}")
    return backend


def backend_named(name: str) -> Backend:
    """Return the backend that was remembered under this name."""
    if name not in _remembered:
        raise ValueError(
            f"Expected a backend among {sorted(_remembered)}. Got {name!r}. "
            "Import its module and call structprune.layers.remember(backend) before running the program."
        )
    return _remembered[name]
