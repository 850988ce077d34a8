"""One measured cell: the time of each contender, and who is who."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

__all__ = ["DENSE", "LIBRARIES", "MODULE", "NUMBA", "OURS", "Row"]

DENSE = ("F.linear", "oneDNN packed", "NCHW", "NHWC", "cuBLAS")
MODULE = "cpu-jit module"  # the layer as a network calls it: what it takes beside the kernel shows at one token
OURS = ("cpu-jit", "rowloop", "cuda-triton", MODULE)  # a row's own time is that of the first that ran
LIBRARIES = ("torch BSR", "torch CSR", "scipy BSR")
NUMBA = "numba"  # no library has it: our own loop, compiled by numba


@dataclass(frozen=True)
class Row:
    """Times of one cell.

    Attributes
    ----------
    name, layer, dtype, height, width, density
        As of the cell.
    kind, shape, tokens
        'linear', 'conv' or 'training'; (outputs, inputs) of the weight as a matrix; rows of the result.
    times_us
        Microseconds of one call by contender, medians.
    samples
        Of how many samples each is the median.
    facts
        What was measured besides, such as a gradient's time.
    """

    name: str
    layer: str
    dtype: str
    height: int
    width: int
    density: float
    kind: str
    shape: tuple[int, int]
    tokens: int
    times_us: Mapping[str, float]
    samples: Mapping[str, int]
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def dense_us(self) -> float:
        """Time of the best dense layer."""
        return min(self.times_us[name] for name in DENSE if name in self.times_us)

    @property
    def own_us(self) -> float:
        """Time of our kernel: the generated one where it runs."""
        return next(self.times_us[name] for name in OURS if name in self.times_us)

    @property
    def library(self) -> str | None:
        """The fastest library, None where none takes this cell."""
        found = [name for name in LIBRARIES if name in self.times_us]
        return min(found, key=self.times_us.__getitem__) if found else None

    @property
    def ratio(self) -> float:
        """Time of our kernel as a share of the best dense layer's."""
        return self.own_us / self.dense_us

    @property
    def ratio_to_library(self) -> float | None:
        """Time of our kernel as a share of the fastest library's."""
        return None if self.library is None else self.own_us / self.times_us[self.library]

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the row that was saved."""
        return cls(**{**record, "shape": tuple(record["shape"])})

    def __str__(self) -> str:
        """Return the line that is printed while measuring: times as shares of the best dense layer's."""
        shares = [f"{name} {time / self.dense_us:.2f}" for name, time in self.times_us.items() if name not in DENSE]
        return f"{self.name}: dense {self.dense_us:.0f} us; {', '.join(shares)}"
