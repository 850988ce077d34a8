"""Lanczos tridiagonalisation that can be taken up again, with full orthogonalisation in two passes.

Without it, at small scales, the effective dimension comes out tens of per cent too large, because converged
eigenvalues are found again and again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from structprune.limit.curvature import Curvature

__all__ = ["Lanczos", "available_memory", "check_memory"]

#: Of the memory that is free, so much may be taken.
SHARE = 0.7


class Lanczos:
    """A run from one start vector.

    Attributes
    ----------
    alpha, beta
        Diagonal of T, ``(m,)``, and what lies beside it, ``(m,)``: the last beta leads out of the space.
    norm
        Length of the start vector.

    Parameters
    ----------
    product
        The operator.
    start
        ``(D,)``.
    """

    def __init__(self, product: Curvature, start: Tensor) -> None:
        self._product = product
        self.norm = float(start.double().norm())
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self._basis = start.new_zeros((0, len(start)))
        self._rows = 0
        self._next = start / self.norm if self.norm > 0 else start

    @property
    def exhausted(self) -> bool:
        """Whether the space is invariant: there is nothing to add."""
        return self.norm == 0 or bool(self.beta) and self.beta[-1] == 0.0

    def extend(self, steps: int) -> None:
        """Go on until the space has ``steps`` dimensions, or is invariant."""
        steps = min(steps, len(self._next))
        if len(self._basis) < steps:
            grown = self._next.new_empty((steps, len(self._next)))
            grown[: self._rows] = self._basis[: self._rows]
            self._basis = grown
        while self._rows < steps and not self.exhausted:
            self._basis[self._rows] = self._next
            self._rows += 1
            self._step()

    def _step(self) -> None:
        current = self._next
        image = self._product(current)
        size = float(image.double().norm())
        self.alpha.append(float(current.double() @ image.double()))
        basis = self._basis[: self._rows]
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        beta = float(image.double().norm())
        # What is left of the image at rounding level is no direction.
        noise = 10 * torch.finfo(image.dtype).eps * max(size, max(self.alpha), 1e-30)
        if beta <= noise or self._rows == len(image):
            self.beta.append(0.0)
            return
        self.beta.append(beta)
        self._next = image / beta

    def combine(self, coefficients: Any) -> Tensor:
        """The vector with these coordinates in the basis, ``(D,)``."""
        chosen = torch.as_tensor(coefficients, dtype=self._basis.dtype, device=self._basis.device)
        return self._basis[: self._rows].T @ chosen


def available_memory(device: torch.device) -> int:
    """Bytes that can be had on a device without pushing anything out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    told = Path("/proc/meminfo")
    if told.is_file():
        for line in told.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30  # a cautious guess where the system does not tell


def check_memory(needed: int, device: torch.device, steps: int, weights: int) -> None:
    """Refuse a Lanczos basis that does not fit, before it is made.

    Raises
    ------
    MemoryError
        With what fits.
    """
    free = int(SHARE * available_memory(device))
    if needed > free:
        fits = free // (needed // steps)
        raise MemoryError(
            f"Expected room for a Lanczos basis of {steps} x {weights:,} numbers, {needed / 2**30:.2f} GiB on "
            f"{device}. Got {free / 2**30:.2f} GiB that may be used. Pass steps={max(fits, 1)} or fewer, or "
            "curvature='layerwise' and estimators=('paper', 'generic'), which need none."
        )
