"""Quadrature of a curvature's spectrum: ranks in single precision, and the warning where that does not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.limit import pruning_limit
from structprune.limit.slq import quadrature

RANK, SIZE, LARGEST = 5, 2000, 1e4


def low_rank(kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors U and eigenvalues of U diag(s) U', made of float64 numbers."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.linalg.qr(torch.randn(SIZE, RANK, generator=generator, dtype=torch.float64)).Q
    return factor.to(kind), torch.logspace(-1, 0, RANK, dtype=torch.float64).mul(LARGEST).to(kind)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_rounding_adds_no_directions(kind: torch.dtype) -> None:
    """A matrix of rank 5 has an effective dimension of 5, however small the scale; rounding once gave hundreds."""
    factor, sizes = low_rank(kind)

    def product(vector: Tensor) -> Tensor:
        image = factor @ (sizes * (factor.T @ vector))
        # What many layers of arithmetic add: errors relative to the largest eigenvalue, in every direction.
        return image + torch.finfo(kind).eps * LARGEST * vector

    scale = 1e-3
    found = quadrature(product, torch.zeros(SIZE, dtype=kind), 8, 16, lambda spectrum: scale, 0.95, seed=0)
    dimension = found.spectrum.dimension(scale)
    assert dimension.low <= RANK <= dimension.high
    assert dimension.value <= 3 * RANK
    assert found.floor == pytest.approx(8 * torch.finfo(kind).eps * found.spectrum.largest)


def test_a_scale_that_single_precision_does_not_resolve_is_warned_about() -> None:
    """With what to do; in double precision there is no such warning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [(1e3 * torch.randn(16, 6), torch.randint(0, 3, (16,))) for _ in range(2)]
    settings: dict[str, Any] = {
        "epsilon": 1e-9,
        "curvature": "ggn",
        "estimators": ("paper",),
        "probes": 2,
        "progress": False,
    }
    single = pruning_limit(model, data, F.cross_entropy, **settings)
    double = pruning_limit(model.double(), [(x.double(), y) for x, y in data], F.cross_entropy, **settings)
    assert any("Pass model.double()" in text for text in single.warnings)
    assert not any("model.double()" in text for text in double.warnings)
