"""Block-sparse layers with the Triton backend against their dense form in float64: outputs and gradients.

`python -m tests.layers.triton_layer_cases` prints the errors of these and of the kernels' cases in Triton's
interpreter. That takes TRITON_INTERPRET=1 before Triton is first imported, so tests run it as a program.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from structprune.layers.conv import BlockSparseConv2d
from structprune.layers.geometry import columns_of_weight
from structprune.layers.linear import BlockSparseLinear
from structprune.layers.pack import unpack
from structprune.layers.triton_backend import CUDA_TRITON
from tests.layers.triton_cases import CASES, error

TOLERANCE = 2e-6  # single precision, relative to the greatest number of the reference


@dataclass(frozen=True)
class LayerCase:
    """A layer of 40 outputs in groups of 16, which is trained for one step and then evaluated."""

    width: int
    tokens: int = 20
    image: bool = False
    features: bool = False
    transposed: bool = False

    @property
    def name(self) -> str:
        """What tells it from the other cases."""
        return " ".join(f"{key}={value}" for key, value in vars(self).items())

    def layer(self) -> BlockSparseConv2d | BlockSparseLinear:
        """Draw the layer."""
        if self.image:
            kept = torch.rand(3, 144 // self.width) < 0.5
            dense = nn.Conv2d(16, 40, 3, padding=1, stride=2)
            return BlockSparseConv2d.from_dense(dense, kept, 16, self.width, backend=CUDA_TRITON)
        return BlockSparseLinear.from_dense(
            nn.Linear(48, 40),
            torch.rand(3, 48 // self.width) < 0.5,
            16,
            self.width,
            torch.randperm(40),
            activation="gelu",
            backend=CUDA_TRITON,
            transposed=self.transposed,
        )


LAYERS = [
    LayerCase(1),
    LayerCase(1, tokens=70),
    LayerCase(8),
    LayerCase(8, features=True),
    LayerCase(16, transposed=True),
    LayerCase(4, image=True),
]


def layer_error(case: LayerCase, device: torch.device) -> float:
    """Return the greatest error of outputs and gradients, relative to the greatest number of the reference."""
    torch.manual_seed(0)
    sparse = case.layer().to(device)
    plain = sparse.to_dense().double().to(device)
    kernel = next(one for one in plain.modules() if isinstance(one, nn.Linear | nn.Conv2d))
    x = (torch.randn(2, 16, 6, 5) if case.image else torch.randn(case.tokens, 48)).to(device)
    known = x.double().requires_grad_()
    given = (x.t().contiguous().t() if case.features else x).detach().requires_grad_()
    found, expected = sparse(given), plain(known)
    slope = torch.randn_like(expected)
    found.backward(slope.float())
    expected.backward(slope)
    packed = sparse.packed
    slopes = gradient(kernel.weight)
    matrix = columns_of_weight(slopes) if case.image else slopes
    pairs = [
        (found, expected),
        (gradient(given), gradient(known)),
        (unpack(replace(packed, values=gradient(sparse.values))), matrix * (unpack(packed) != 0)),
        (sparse.eval()(given), expected),
    ]
    return max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)


def gradient(leaf: Tensor) -> Tensor:
    """Return the gradient that a leaf has."""
    assert leaf.grad is not None
    return leaf.grad


def main() -> None:
    """Print a line of JSON: the error of each case."""
    torch.use_deterministic_algorithms(True)  # fills new tensors with nan, those inside the launches too
    device = torch.device("cpu")
    kernels = {case.name: error(case, device) for case in CASES}
    print(json.dumps(kernels | {case.name: layer_error(case, device) for case in LAYERS}))


if __name__ == "__main__":
    main()
