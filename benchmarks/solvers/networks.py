"""The shapes of well-known networks: which widths multiply in which operator. No weights, no torch.

Every residual stream is one width; what a block has inside are widths of their own. Biases, norms and position
embeddings are left out: they count in neither macs nor params.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from solvers.problem import Product

__all__ = [
    "NETWORKS",
    "Network",
    "Operator",
    "Width",
    "llama_7b",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "resnet152",
    "unet",
    "vit_b",
]


@dataclass(frozen=True)
class Width:
    """A number of channels that can be chosen; ``unit`` of them live or die together (a head's dimensions)."""

    name: str
    size: int
    unit: int = 1


@dataclass(frozen=True)
class Operator:
    """A convolution or matrix product: ``work * sum(entering) * leaving`` macs, ``weights`` likewise.

    Attributes
    ----------
    entering
        Widths whose channels it reads, by index; several are concatenated, none is a fixed input.
    leaving
        The width that it writes; None for a fixed output, or for one output channel per input channel (depthwise).
    work, weights
        Macs and parameters per channel in and channel out; fixed numbers of channels are multiplied into both.
    """

    name: str
    entering: tuple[int, ...]
    leaving: int | None
    work: int
    weights: int

    def products(self, coefficient: int) -> list[Product]:
        """Return `coefficient` times the channels in and out, as terms over the widths."""
        out = () if self.leaving is None else (self.leaving,)
        if not self.entering:
            return [Product(out, coefficient)]
        return [Product((width, *out), coefficient) for width in self.entering]


@dataclass(frozen=True)
class Network:
    """Widths and operators.

    Attributes
    ----------
    blocks
        Widths inside each residual branch, by index: the branch can be left out whole.
    """

    name: str
    widths: tuple[Width, ...]
    operators: tuple[Operator, ...]
    blocks: tuple[tuple[int, ...], ...] = ()

    def terms(self, resource: str) -> list[Product]:
        """Return the terms of 'macs' or 'params', over indices of widths."""
        if resource not in ("macs", "params"):
            raise ValueError(f"Expected 'macs' or 'params'. Got {resource!r}. Latency comes from a LatencyModel.")
        found = []
        for one in self.operators:
            coefficient = one.work if resource == "macs" else one.weights
            if coefficient:
                found += one.products(coefficient)
        return found

    def dense(self, resource: str) -> int:
        """Return the macs or params of the whole network."""
        total = 0
        for term in self.terms(resource):
            amount = term.coefficient
            for width in term.groups:
                amount *= self.widths[width].size
            total += amount
        return total

    def degrees(self) -> list[int]:
        """Return how many operators touch each width."""
        touched = [0] * len(self.widths)
        for one in self.operators:
            for width in {*one.entering, *(() if one.leaving is None else (one.leaving,))}:
                touched[width] += 1
        return touched


@dataclass
class _Maker:
    """Collects a network while it is written down from input to output."""

    widths: list[Width] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)

    def width(self, name: str, size: int, unit: int = 1) -> int:
        self.widths.append(Width(name, size, unit))
        return len(self.widths) - 1

    def conv(
        self,
        name: str,
        entering: int | Sequence[int] | None,
        leaving: int | None,
        taps: int,
        places: int,
        fixed: int = 1,
    ) -> None:
        """Add a convolution (1 tap: a linear layer); ``fixed`` is the number of channels that no width stands for."""
        read = () if entering is None else (entering,) if isinstance(entering, int) else tuple(entering)
        self.operators.append(Operator(name, read, leaving, taps * places * fixed, taps * fixed))

    def made(self, name: str) -> Network:
        return Network(name, tuple(self.widths), tuple(self.operators), tuple(self.blocks))


def _stem(net: _Maker) -> int:
    """The ImageNet ResNets' first convolution, 7 x 7 at stride 2."""
    stem = net.width("stem", 64)
    net.conv("stem", None, stem, 49, 112**2, fixed=3)
    return stem


_STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and side of the feature map


def resnet18() -> Network:
    """ResNet-18 on 224 x 224 images: 5 residual streams (the stem's is the first stage's), 8 inner widths."""
    net = _Maker()
    hub = _stem(net)
    for stage, (size, side) in enumerate(_STAGES):
        entering = hub
        if stage:
            hub = net.width(f"stage{stage + 1}", size)
            net.conv(f"stage{stage + 1}.shortcut", entering, hub, 1, side**2)
        for block in range(2):
            inner = net.width(f"stage{stage + 1}.{block}", size)
            net.conv(f"stage{stage + 1}.{block}.conv1", entering, inner, 9, side**2)
            net.conv(f"stage{stage + 1}.{block}.conv2", inner, hub, 9, side**2)
            if entering == hub:
                net.blocks.append((inner,))
            entering = hub
    net.conv("classifier", hub, None, 1, 1, fixed=1000)
    return net.made("ResNet-18")


def _bottlenecks(name: str, counts: Sequence[int]) -> Network:
    net = _Maker()
    entering = _stem(net)
    for stage, ((size, side), count) in enumerate(zip(_STAGES, counts, strict=True)):
        hub = net.width(f"stage{stage + 1}", 4 * size)
        for block in range(count):
            label = f"stage{stage + 1}.{block}"
            first, second = net.width(f"{label}.a", size), net.width(f"{label}.b", size)
            # The 3 x 3 convolution carries the stride, as in torchvision.
            before = side * (2 if block == 0 and stage > 0 else 1)
            net.conv(f"{label}.conv1", entering, first, 1, before**2)
            net.conv(f"{label}.conv2", first, second, 9, side**2)
            net.conv(f"{label}.conv3", second, hub, 1, side**2)
            if block == 0:
                net.conv(f"{label}.shortcut", entering, hub, 1, side**2)
            else:
                net.blocks.append((first, second))
            entering = hub
    net.conv("classifier", entering, None, 1, 1, fixed=1000)
    return net.made(name)


def resnet50() -> Network:
    """ResNet-50 on 224 x 224 images: the stem, 4 residual streams, 32 inner widths."""
    return _bottlenecks("ResNet-50", (3, 4, 6, 3))


def resnet152() -> Network:
    """ResNet-152 on 224 x 224 images: the stem, 4 residual streams, 100 inner widths."""
    return _bottlenecks("ResNet-152", (3, 8, 36, 3))


def mobilenet_v2() -> Network:
    """MobileNetV2 on 224 x 224 images; a depthwise convolution reads and writes the same width."""
    net = _Maker()
    entering = net.width("stem", 32)
    net.conv("stem", None, entering, 9, 112**2, fixed=3)
    side = 112
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expand, channels, count, stride) in enumerate(table):
        hub = net.width(f"stage{stage}", channels)
        for block in range(count):
            label = f"stage{stage}.{block}"
            before, side = side, side // (stride if block == 0 else 1)
            inner = entering
            if expand > 1:
                inner = net.width(label, expand * net.widths[entering].size)
                net.conv(f"{label}.expand", entering, inner, 1, before**2)
            net.conv(f"{label}.depthwise", inner, None, 9, side**2)
            net.conv(f"{label}.project", inner, hub, 1, side**2)
            if block:
                net.blocks.append((inner,))
            entering = hub
    head = net.width("head", 1280)
    net.conv("head", entering, head, 1, side**2)
    net.conv("classifier", head, None, 1, 1, fixed=1000)
    return net.made("MobileNetV2")


def vit_b() -> Network:
    """ViT-B/16 on 224 x 224 images: 197 tokens, one stream of 768, 12 heads and 3,072 hidden units per layer."""
    net = _Maker()
    tokens, patches = 197, 196
    hub = net.width("stream", 768)
    net.conv("patches", None, hub, 256, patches, fixed=3)
    for layer in range(12):
        _attention(net, f"layer{layer}", hub, heads=12, dimension=64, tokens=tokens)
        hidden = net.width(f"layer{layer}.hidden", 3072)
        net.conv(f"layer{layer}.up", hub, hidden, 1, tokens)
        net.conv(f"layer{layer}.down", hidden, hub, 1, tokens)
        net.blocks.append((hidden,))
    net.conv("classifier", hub, None, 1, 1, fixed=1000)
    return net.made("ViT-B")


def _attention(net: _Maker, label: str, hub: int, heads: int, dimension: int, tokens: int) -> None:
    """Queries, keys, values and output of one width, heads times dimension; scores and mixing have no weights."""
    inner = net.width(f"{label}.heads", heads * dimension, dimension)
    for part in ("query", "key", "value"):
        net.conv(f"{label}.{part}", hub, inner, 1, tokens)
    net.operators.append(Operator(f"{label}.attend", (inner,), None, 2 * tokens**2, 0))
    net.conv(f"{label}.output", inner, hub, 1, tokens)
    net.blocks.append((inner,))


def llama_7b() -> Network:
    """The shape of LLaMA-7B on 2,048 tokens: one stream of 4,096, 32 heads and 11,008 hidden units per layer."""
    net = _Maker()
    tokens, words = 2048, 32_000
    hub = net.width("stream", 4096)
    net.operators.append(Operator("embedding", (), hub, 0, words))
    for layer in range(32):
        _attention(net, f"layer{layer}", hub, heads=32, dimension=128, tokens=tokens)
        hidden = net.width(f"layer{layer}.hidden", 11_008)
        net.conv(f"layer{layer}.gate", hub, hidden, 1, tokens)
        net.conv(f"layer{layer}.up", hub, hidden, 1, tokens)
        net.conv(f"layer{layer}.down", hidden, hub, 1, tokens)
        net.blocks.append((hidden,))
    net.conv("words", hub, None, 1, tokens, fixed=words)
    return net.made("LLaMA-7B shape")


def unet() -> Network:
    """U-Net on 256 x 256 images with padding: 5 scales of 64 to 1,024 channels; the way up reads the way down too."""
    net = _Maker()
    sizes = (64, 128, 256, 512, 1024)
    across: list[int] = []
    entering: int | None = None
    for scale, size in enumerate(sizes):
        places = (256 >> scale) ** 2
        first, second = net.width(f"down{scale}.a", size), net.width(f"down{scale}.b", size)
        net.conv(f"down{scale}.a", entering, first, 9, places, fixed=3 if entering is None else 1)
        net.conv(f"down{scale}.b", first, second, 9, places)
        across.append(second)
        entering = second
    for scale in range(3, -1, -1):
        places = (256 >> scale) ** 2
        names = ("up", "a", "b")
        up, first, second = (net.width(f"up{scale}.{name}", sizes[scale]) for name in names)
        # As in the paper: the map is enlarged, then convolved with 2 x 2 taps.
        net.conv(f"up{scale}.up", entering, up, 4, places)
        net.conv(f"up{scale}.a", (across[scale], up), first, 9, places)
        net.conv(f"up{scale}.b", first, second, 9, places)
        entering = second
    net.conv("classes", entering, None, 1, 256**2, fixed=2)
    return net.made("U-Net")


#: Every network here.
NETWORKS: tuple[Callable[[], Network], ...] = (resnet18, resnet50, resnet152, mobilenet_v2, vit_b, llama_7b, unet)
