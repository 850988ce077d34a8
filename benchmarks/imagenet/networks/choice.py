"""The networks that the benchmark knows, and how weights find their way into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.imagenet.augment import Pixels
from benchmarks.imagenet.networks.mobilenet import mobilenet_v1, mobilenet_v2
from benchmarks.imagenet.networks.resnet import resnet18, resnet50
from benchmarks.imagenet.networks.vit import vit_b, vit_s
from benchmarks.mobilenets import MobileNetV1, MobileNetV2, trained_mobilenet

__all__ = ["NETWORKS", "Network", "load_weights"]

IMAGENET_CLASSES = 1000
TF_PIXELS = Pixels((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
VERSIONS = {"mobilenet_v1_tf": 1, "mobilenet_v2_tf": 2}


@dataclass(frozen=True)
class Network:
    """A network by name.

    Attributes
    ----------
    name
        On the command line.
    make
        From the number of classes and the side of the images to the network.
    weights
        Whose parameter names it shares.
    pixels
        What values it takes pixels to.
    transformer
        Whether it is trained as transformers are.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    weights: str
    pixels: Pixels = Pixels()
    transformer: bool = False


class WithoutBackground(nn.Module):
    """A network of TensorFlow's, whose first output is 'background', with the 1,000 classes alone.

    Parameters
    ----------
    inner
        The network of 1,001 outputs.
    """

    def __init__(self, inner: MobileNetV1 | MobileNetV2) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, 1:]


def _mobilenet_v1_tf(classes: int, side: int) -> WithoutBackground:
    return WithoutBackground(_of_imagenet(classes, MobileNetV1()))


def _mobilenet_v2_tf(classes: int, side: int) -> WithoutBackground:
    return WithoutBackground(_of_imagenet(classes, MobileNetV2()))


def _of_imagenet(classes: int, model: MobileNetV1 | MobileNetV2) -> MobileNetV1 | MobileNetV2:
    if classes != IMAGENET_CLASSES:
        raise ValueError(
            f"Expected {IMAGENET_CLASSES} classes for a network of TensorFlow's. Got {classes}. List all of ImageNet's "
            "classes in a file and pass it as --classes."
        )
    return model


NETWORKS = (
    Network("resnet18", resnet18, "torchvision resnet18"),
    Network("resnet50", resnet50, "torchvision resnet50"),
    Network("mobilenet_v1", mobilenet_v1, "this repository"),
    Network("mobilenet_v2", mobilenet_v2, "torchvision mobilenet_v2"),
    Network("vit_s", vit_s, "timm vit_small_patch16_224", transformer=True),
    Network("vit_b", vit_b, "timm vit_base_patch16_224", transformer=True),
    Network("mobilenet_v1_tf", _mobilenet_v1_tf, "mobilenet_v1_1.0_224_imagenet.npz", TF_PIXELS),
    Network("mobilenet_v2_tf", _mobilenet_v2_tf, "mobilenet_v2_1.0_224_imagenet.npz", TF_PIXELS),
)


def load_weights(model: nn.Module, path: Path, network: Network) -> None:
    """Put the weights of a .safetensors, .pt, .pth or (TensorFlow's) .npz file into the network, in place.

    Raises
    ------
    ValueError
        If names or shapes are not the network's.
    FileNotFoundError
        If there is no file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected weights of {network.weights} in {path}. Got no file. Save them there with "
            "torch.save(model.state_dict(), path)."
        )
    state = _state(path) if path.suffix != ".npz" else _converted(path, network)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"Expected the weights of {network.weights} in {path}. Missing: {missing[:3]}; unknown: {unknown[:3]}; "
            f"of other shapes: {shapes[:3]}. Use the file that belongs to {network.name} and its number of classes."
        )
    model.load_state_dict(state, strict=False)


def _converted(path: Path, network: Network) -> Mapping[str, Tensor]:
    version = VERSIONS.get(network.name)
    if version is None:
        raise ValueError(
            f"Expected a .safetensors, .pt or .pth file for {network.name}. Got {path}. Use it with "
            f"{' or '.join(VERSIONS)}."
        )
    return {f"inner.{name}": value for name, value in trained_mobilenet(path.parent, version).state_dict().items()}


def _state(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):  # of training scripts, which keep more than the weights
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return {name.removeprefix("module."): value for name, value in content.items()}
