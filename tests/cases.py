"""What the laws are tried on: small networks and every criterion. A new part joins by one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from structprune.criteria import BNScale, Criterion, Fisher, LayerReconstruction, Magnitude, Random, Taylor
from structprune.regularizers import (
    MCP,
    SCAD,
    DGating,
    ExpGate,
    ExpGatePenalty,
    GroupLasso,
    GroupLq,
    L1Gate,
    LogSum,
    Parameterisation,
    Powerpropagation,
    Regularizer,
    SoftmaxAttention,
    SquaredGroupL23,
)
from tests import networks, transformers


@dataclass(frozen=True)
class Case:
    """A network with an example input (a tensor or a tuple of positional arguments), the same at every call."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]

    def make(self) -> tuple[nn.Module, Any]:
        """The network in evaluation mode, no parameter or statistic at its neutral start, and its example."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = unsettle(self.build()).eval()
            return model, self.inputs()

    def __str__(self) -> str:
        return self.name


@torch.no_grad()
def unsettle(model: nn.Module) -> nn.Module:
    """Draw batch norm statistics and shift constant parameters, so that masking or ignoring any of them shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def image(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    """Two square images."""
    return lambda: torch.randn(2, channels, size, size)


def vectors(*shape: int) -> Callable[[], Tensor]:
    """Two examples of features or sequences of features."""
    return lambda: torch.randn(2, *shape)


def tokens() -> Tensor:
    """Two sequences of six of twenty tokens."""
    return torch.randint(0, 20, (2, 6))


def clicks() -> tuple[Tensor, Tensor]:
    """Two examples of four numbers and three categories."""
    return torch.randn(2, 4), torch.stack([torch.randint(0, rows, (2,)) for rows in (11, 7, 5)], dim=1)


CASES = [
    Case("plain", networks.PlainCNN, image()),
    Case("residual", networks.ResidualCNN, image()),
    Case("residual_padded", lambda: networks.ResidualCNN("pad"), image()),
    Case("concat", networks.DenseCNN, image()),
    Case("depthwise_separable", networks.SeparableCNN, image()),
    Case("grouped", networks.GroupedCNN, image()),
    Case("channel_shuffle", networks.ShuffleCNN, image()),
    Case("squeeze_excite", networks.SqueezeExcite, image()),
    Case("chunk", networks.SplitCNN, image()),
    Case("flatten", networks.FlattenCNN, image(1, 16)),
    Case("unet", networks.UNet, image()),
    Case("pixel_shuffle", networks.PixelShuffle, image()),
    Case("mlp", networks.MLP, vectors(10)),
    Case("attention", transformers.SeparateAttention, vectors(5, 6)),
    Case("fused_attention", transformers.FusedAttention, image()),
    Case("rotary_grouped_query", transformers.RotaryDecoder, tokens),
    Case("tied_embeddings", transformers.TiedDecoder, tokens),
    Case("torch_encoder", transformers.TorchEncoder, vectors(5, 6)),
    Case("torch_attention", transformers.TorchAttention, vectors(5, 6)),
    Case("lstm", networks.LSTMClassifier, vectors(5, 6)),
    Case("gru", networks.GRUClassifier, tokens),
    Case("recommender", networks.Recommender, clicks),
    Case("called_twice", networks.CalledTwice, vectors(10)),
    Case("raw_parameters", networks.RawParameters, image()),
    Case("einsum_attention", transformers.EinsumAttention, vectors(5, 6)),
]

BY_NAME = {case.name: case for case in CASES}

CRITERIA: list[Criterion] = [
    Magnitude(p=1),
    Magnitude(p=2),
    Magnitude(p=2, normalise="none"),
    Magnitude(p=2, normalise="group"),
    Taylor(),
    Taylor(examples=3, absolute=True),
    Fisher(examples=3),
    BNScale(otherwise=Magnitude()),
    Random(seed=3),
    LayerReconstruction(),
]

REGULARIZERS: list[Regularizer] = [
    GroupLasso(0.7),
    GroupLq(0.7, 1 / 2),
    GroupLq(0.7, 2 / 3),
    GroupLq(0.7, 0.3),
    GroupLq(0.7, 0.9),
    LogSum(0.7, epsilon=0.2),
    LogSum(0.7, epsilon=3.0),
    MCP(0.7, gamma=3.0),
    MCP(0.7, gamma=0.5),
    SCAD(0.7, gamma=3.7),
    SCAD(0.7, gamma=1.2),
    ExpGatePenalty(0.7),
    ExpGatePenalty(0.7, logit_decay=0.01),
    SquaredGroupL23(0.7),
]

PARAMETERISATIONS: list[Parameterisation] = [
    DGating(0.7),
    DGating(0.7, depth=3),
    DGating(0.7, depth=5),
    L1Gate(0.7),
    Powerpropagation(0.7),
    Powerpropagation(0.7, alpha=3.0),
    ExpGate(0.7),
    ExpGate(0.7, logit_decay=0.01),
    SoftmaxAttention(0.7),
]
