"""Cases of the Triton kernels against float64, on any device.

The reference multiplies by the plain dense weight. Whatever a kernel must not read is nan: around X, and the inputs
that no group lists. Whatever it must write is nan before.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from structprune.layers.activation import Activation
from structprune.layers.triton_launch import (
    grouped_conv2d,
    grouped_conv2d_weight_gradient,
    grouped_linear,
    grouped_linear_features,
    grouped_weight_gradient,
)
from structprune.layers.triton_tiles import GradientTile, Tile

# Rounding of the result and of the interpreter's conversions, relative to the greatest number of the reference.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A layer, its operands and a tile."""

    kind: str
    dtype: str = "float32"
    height: int = 16
    width: int = 1
    inputs: int = 40
    outputs: int = 32
    tokens: int = 19
    density: float = 0.5
    ordered: bool = False
    biased: bool = True
    activation: Activation = "none"
    rows: int = 16
    tile: int = 16
    stride: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """What tells it from the other cases."""
        default = Case(self.kind)
        told = (f"{key}={value}" for key, value in vars(self).items() if value != getattr(default, key))
        return " ".join([self.kind, *told])

    @property
    def tolerance(self) -> float:
        """Greatest error that rounding explains."""
        return TOLERANCES[DTYPES[self.dtype]]


@dataclass(frozen=True)
class Weight:
    """A packed weight and the dense one that it stands for, (outputs, inputs) float64."""

    values: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor | None
    dense: Tensor

    def listed(self, dense: Tensor) -> Tensor:
        """Return the packed form of another dense matrix."""
        height = self.values.shape[1]
        stored = dense if self.order is None else dense[self.order.long()]
        stored = F.pad(stored, (0, 0, 0, -len(stored) % height))
        bounds = self.starts.tolist()
        groups = [
            stored[group * height : (group + 1) * height, self.columns[start:stop].long()].T
            for group, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False))
        ]
        return torch.cat(groups)


def weight_of(case: Case, inputs: int, device: torch.device) -> Weight:
    """Draw a weight whose second group is empty and whose first input no group lists."""
    groups, pieces = -(-case.outputs // case.height), -(-inputs // case.width)
    kept = torch.rand(groups, pieces) < case.density
    kept[0, :2] = torch.tensor([False, True])
    kept[:, 0] = case.density >= 1
    if groups > 1:
        kept[1] = False
    if case.density == 0:
        kept[:] = False
    mask = kept.repeat_interleave(case.width, 1)[:, :inputs]
    columns = torch.cat([row.nonzero().flatten() for row in mask]).int()
    starts = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    stored = torch.randn(groups * case.height, inputs).to(DTYPES[case.dtype])
    stored[case.outputs :] = 0
    values = torch.cat(
        [stored[group * case.height : (group + 1) * case.height, row].T for group, row in enumerate(mask)]
    )
    stored = torch.where(mask.repeat_interleave(case.height, 0), stored.double(), 0.0)[: case.outputs]
    order = torch.randperm(case.outputs) if case.ordered else torch.arange(case.outputs)
    dense = torch.empty_like(stored)
    dense[order] = stored
    told = order.int().to(device) if case.ordered else None
    return Weight(values.contiguous().to(device), columns.to(device), starts.to(device), told, dense.to(device))


def inside_nans(matrix: Tensor) -> Tensor:
    """Return the matrix as a part of a larger one that is nan elsewhere."""
    rows, columns = matrix.shape
    larger = matrix.new_full((rows + 2, -(-columns // 16) * 16 + 32), torch.nan)
    larger[1 : rows + 1, 16 : columns + 16] = matrix
    return larger[1 : rows + 1, 16 : columns + 16]


def activated(y: Tensor, activation: Activation) -> Tensor:
    """Return what the epilogue should do."""
    return {"none": y, "relu": F.relu(y), "gelu": F.gelu(y)}[activation]


def error(case: Case, device: torch.device) -> float:
    """Return the greatest error relative to the greatest number of the reference; inf where a result is nan."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    found, expected = (convolution if case.kind.startswith("conv") else linear)(case, device)
    difference = float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return difference if torch.isfinite(found).all() else float("inf")


def linear(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the kernel gives and what it should give for a linear layer."""
    dtype = DTYPES[case.dtype]
    weight = weight_of(case, case.inputs, device)
    x = torch.randn(case.tokens, case.inputs).to(dtype).to(device)
    poisoned = torch.where((weight.dense != 0).any(0), x, torch.nan)
    features = "features" in case.kind
    given = inside_nans(poisoned.T if features else poisoned)
    packed = (weight.values, weight.columns, weight.starts, weight.order)
    if "gradient" in case.kind:
        slope = torch.randn(case.tokens, case.outputs).to(dtype).to(device)
        found = grouped_weight_gradient(
            given,
            inside_nans(slope.T if features else slope),
            *packed[1:],
            height=case.height,
            features=features,
            tile=GradientTile(case.rows, case.tile, 16, 4, 3),
        )
        return found, weight.listed(slope.double().T @ x.double())
    bias = torch.randn(case.outputs).to(dtype).to(device) if case.biased else None
    tile = Tile(case.rows, case.tile, 16, 4, 3)
    expected = activated(F.linear(x.double(), weight.dense, None if bias is None else bias.double()), case.activation)
    out = torch.full((case.tokens, case.outputs), torch.nan, dtype=dtype, device=device)
    if features:
        out = out if case.kind.endswith("to rows") else out.T.contiguous().T
        grouped_linear_features(given, *packed, bias, case.activation, outputs=case.outputs, out=out.T, tile=tile)
    else:
        grouped_linear(given, *packed, bias, case.activation, outputs=case.outputs, out=out, tile=tile)
    return out, expected


def convolution(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the kernel gives and what it should give for a 3 x 2 convolution of two 6 x 5 images."""
    dtype, kernel, channels = DTYPES[case.dtype], (3, 2), case.inputs
    weight = weight_of(case, 6 * channels, device)
    image = torch.randn(2, 6, 5, channels).to(dtype).to(device)
    dense = weight.dense.view(case.outputs, *kernel, channels).permute(0, 3, 1, 2)
    bias = torch.randn(case.outputs).to(dtype).to(device)
    nchw = image.permute(0, 3, 1, 2).double()
    whole = F.conv2d(nchw, dense, bias.double(), case.stride).permute(0, 2, 3, 1)
    packed = (weight.values, weight.columns, weight.starts, weight.order)
    if "gradient" in case.kind:
        slope = torch.randn(whole.shape).to(dtype).to(device)
        found = grouped_conv2d_weight_gradient(
            image,
            slope,
            *packed[1:],
            height=case.height,
            kernel=kernel,
            stride=case.stride,
            tile=GradientTile(case.rows, case.tile, 16, 4, 3),
        )
        dense = conv2d_weight(nchw, dense.shape, slope.double().permute(0, 3, 1, 2), case.stride)
        return found, weight.listed(dense.permute(0, 2, 3, 1).reshape(case.outputs, -1))
    out = torch.full(whole.shape, torch.nan, dtype=dtype, device=device)
    grouped_conv2d(
        image,
        *packed,
        bias,
        case.activation,
        outputs=case.outputs,
        kernel=kernel,
        stride=case.stride,
        out=out,
        tile=Tile(case.rows, case.tile, 16, 4, 3),
    )
    return out, activated(whole, case.activation)


FORWARD = ("rows", "features", "features to rows")
GRADIENT = ("gradient rows", "gradient features")

CASES = [
    *(Case(kind, dtype) for kind in (*FORWARD, *GRADIENT) for dtype in DTYPES),
    *(Case(kind, height=height, outputs=height + 5, rows=min(height, 64)) for kind in FORWARD for height in (64, 256)),
    *(Case(kind, height=32, outputs=70, rows=16, ordered=True) for kind in (*FORWARD, *GRADIENT)),
    *(Case(kind, inputs=36, width=8, outputs=40) for kind in (*FORWARD, *GRADIENT)),
    *(Case("rows", dtype="bfloat16", width=16, activation=activation) for activation in ("relu", "gelu")),
    *(Case("features", activation=activation) for activation in ("relu", "gelu")),
    *(Case(kind, tokens=1) for kind in (*FORWARD, *GRADIENT)),
    *(Case(kind, biased=False, density=0.0) for kind in FORWARD),
    *(Case(kind, density=1.0, tokens=40, tile=32) for kind in FORWARD),
    *(Case(kind, tokens=150, inputs=24) for kind in GRADIENT),
    *(Case("convolution", width=width, inputs=12, outputs=24, stride=stride)
      for width, stride in ((1, (1, 1)), (4, (2, 1)), (8, (1, 2)))),
    *(Case("convolution gradient", width=4, inputs=8, outputs=24, stride=stride) for stride in ((1, 1), (2, 1))),
    Case("convolution", dtype="float16", width=8, inputs=8, outputs=20, ordered=True, activation="relu"),
]  # fmt: skip
