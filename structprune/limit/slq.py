"""The curvature's spectrum by Lanczos runs from random sign vectors, each long enough for the scale that matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.effective_dimension import Rule, Spectrum, lanczos_rules
from structprune.limit.curvature import Curvature
from structprune.limit.lanczos import SHARE, Lanczos, available_memory, check_memory
from structprune.progress import track

__all__ = ["Quadrature", "quadrature"]

#: Steps are doubled until the quadrature's bracket is this narrow, relative to N, but not beyond so many times.
CLOSED = 0.01
DOUBLINGS = 4
#: Products carry errors of this many machine epsilons of the largest eigenvalue.
ROUNDINGS = 8


@dataclass(frozen=True, eq=False)
class Quadrature:
    """A spectrum with what it took.

    Attributes
    ----------
    steps
        Of the longest run.
    bracket
        The widest relative bracket left at the scale that matters.
    floor
        Curvature below this is rounding of the products, in nats per squared weight.
    """

    spectrum: Spectrum
    steps: int
    bracket: float
    floor: float


def quadrature(
    curvature: Curvature,
    like: Tensor,
    probes: int,
    steps: int,
    scale: Callable[[Spectrum], float],
    confidence: float,
    seed: int,
) -> Quadrature:
    """Run the probes.

    Parameters
    ----------
    like
        A vector ``(D,)`` of the device and type to work in.
    steps
        Of a run at first.
    scale
        The mu that matters, given a spectrum.

    Raises
    ------
    MemoryError
        If the first basis does not fit.
    """
    size = len(like)
    row = size * like.element_size()
    steps = min(steps, size)
    check_memory(steps * row, like.device, steps, size)
    room = max(steps, int(SHARE * available_memory(like.device)) // (2 * row))  # growing holds the old basis too
    longest = min(size, steps * 2**DOUBLINGS, room)
    resolution = ROUNDINGS * torch.finfo(like.dtype).eps
    generator = torch.Generator().manual_seed(seed)
    gauss: list[Rule] = []
    radau: list[Rule] = []
    used, widest = steps, 0.0
    for _ in track(range(probes), "probing the curvature"):
        signs = torch.randint(0, 2, (size,), generator=generator).mul_(2).sub_(1).to(like.device, like.dtype)
        run, length = Lanczos(curvature, signs), steps
        while True:
            run.extend(length)
            above, below = lanczos_rules(run.alpha, run.beta, resolution)
            alone = Spectrum(size, (above,), (below,), confidence)
            width = alone.bracket(scale(alone))
            if width <= CLOSED or length >= longest or run.exhausted:
                break
            length = min(2 * length, longest)
        gauss.append(above)
        radau.append(below)
        used, widest = max(used, length), max(widest, width)
    spectrum = Spectrum(size, tuple(gauss), tuple(radau), confidence)
    return Quadrature(spectrum, used, widest, resolution * spectrum.largest)
