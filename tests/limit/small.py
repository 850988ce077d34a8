"""Networks small enough for dense matrices, and what a dense matrix says of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.data import Batches
from structprune.limit.curvature import LossAt

Data = list[tuple[Any, Tensor]]


class Attention(nn.Module):
    """One head over three tokens by the fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


class Wrapped(nn.Module):
    """A network whose output is packed into something else."""

    def __init__(self, inner: nn.Module, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.pack = inner, pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.inner(x))


def mlp(inputs: int = 4, hidden: int = 6, bias: bool = True) -> nn.Module:
    """One hidden layer of tanh."""
    return nn.Sequential(nn.Linear(inputs, hidden, bias=bias), nn.Tanh(), nn.Linear(hidden, 3, bias=bias))


def convolutional() -> nn.Module:
    """Convolution, batch norm, ReLU, pooling, classifier."""
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def batches(*shape: int, sizes: tuple[int, ...] = (6, 6, 4), seed: int = 0) -> Data:
    """Random inputs of three classes in float64; the last batch is shorter."""
    generator = torch.Generator().manual_seed(seed)
    found: Data = []
    for size in sizes:
        inputs = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        found.append((inputs, torch.randint(0, 3, (size,), generator=generator)))
    return found


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network in float64 and evaluation mode, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


@cache
def trained(hidden: int = 5, bias: bool = True) -> tuple[nn.Module, Data]:
    """An MLP at rest on three batches whose labels it cannot all learn; for readers only, not to be changed."""
    data = batches(6, sizes=(64,) * 3)
    inputs, noise = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    labels = torch.where(torch.arange(len(noise)) % 4 == 0, noise, inputs[:, :3].argmax(1))
    model = made(lambda: mlp(6, hidden, bias))
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        size = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        value = F.cross_entropy(model(inputs), labels) + 1e-4 * size
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[arg-type, no-untyped-call]
    optimiser.zero_grad()
    return model, list(zip(inputs.split(64), labels.split(64), strict=True))


def at(model: nn.Module, data: Data, loss: Any = F.cross_entropy) -> tuple[LossAt, Tensor]:
    """The loss as a function of the weights, and the weights."""
    found = LossAt.of(model, Batches(data), loss)
    return found, found.layout.weights(model)


def dense(operator: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The matrix of an operator, ``(D, D)``, by its products with unit vectors."""
    return torch.stack([operator(unit) for unit in torch.eye(len(like), dtype=like.dtype)], dim=1)
