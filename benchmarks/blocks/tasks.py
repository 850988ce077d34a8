"""The tasks: data, network, and how it is trained, the same for every method.

Learning rates and numbers of epochs of the first two were chosen for the dense networks, by the loss on the validation
parts: 0.05 out of 0.02, 0.05 and 0.1; 5e-4 and 3 epochs out of 2e-4, 5e-4 and 1e-3, 3, 4 and 6 epochs. The ResNets'
learning rate is a usual one, chosen on nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.data import Examples, Shuffled, moved_and_mirrored
from benchmarks.cifar import images, read, trained_resnet
from benchmarks.criteo.network import FIRST_LAYER, ClickNetwork, click_loss
from structprune.data import Loss
from structprune.methods import Training
from structprune.structures import Structures, blocks

__all__ = ["TASKS", "Parts", "Task"]

MISSING = np.iinfo(np.int32).min  # a number that is not there, in criteo_10k.npz.xz
RARE = 4  # categories that fewer training rows have share an identity
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530


@dataclass(frozen=True, eq=False)
class Parts:
    """What a task is measured on, and its network.

    Attributes
    ----------
    train, validation, test
        Examples without a common one.
    network
        From a seed to a network, untrained or trained.
    """

    train: Examples
    validation: Examples
    test: Examples
    network: Callable[[int], nn.Module]


@dataclass(frozen=True)
class Task:
    """A network, its data, and how it is trained.

    Attributes
    ----------
    name, about
        In tables.
    prepare
        From the folder of data to the parts.
    training
        Settings of the engine.
    batch_size
        Examples of a step.
    loss
        Mean over a batch, in nats.
    trained
        Whether the network comes trained.
    min_structures
        Layers with fewer blocks stay dense, as in the paper.
    measure
        Figure that tables show: 'accuracy' or 'AUC'.
    change
        Of the images of a batch in training.
    """

    name: str
    about: str
    prepare: Callable[[Path], Parts]
    training: Training
    batch_size: int
    loss: Loss
    measure: str
    trained: bool = False
    min_structures: int = 100
    change: Callable[[Tensor], Tensor] | None = None

    def data(self, examples: Examples) -> Shuffled:
        """The training batches."""
        return Shuffled(examples, self.batch_size, self.change)

    def structures(self, model: nn.Module, block: int) -> Structures:
        """The blocks that may go: of the first dense layer of a click network, as in the paper, else of all layers."""
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        first = [name for name in linear if f"{name}.weight" == FIRST_LAYER]
        return blocks(model, (block, block), keep_whole=[name for name in linear if first and name not in first])


def fashion(folder: Path) -> Parts:
    """9,000 training images, 1,000 for validation, 10,000 for the test; LeNet-300-100."""
    arrays = read(folder, "fashion_mnist_20k.npz.xz")

    def examples(part: str) -> Examples:
        pixels = torch.from_numpy(arrays[f"x_{part}"].reshape(len(arrays[f"x_{part}"]), -1)).float() / 255
        return Examples(
            ((pixels - FASHION_MEAN) / FASHION_STD,), torch.from_numpy(arrays[f"y_{part}"].astype(np.int64))
        )

    given = examples("train")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(given)))
    given = Examples((given.inputs[0][order],), given.targets[order])
    return Parts(given[:9000], given[9000:], examples("test"), _seeded(_lenet))


def _lenet() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def criteo(folder: Path) -> Parts:
    """7,000 rows for training, 1,000 for validation, the last 2,000 for the test, in the order of time."""
    arrays = read(folder, "criteo_10k.npz.xz")
    label = torch.from_numpy(arrays["label"][:10_000].astype(np.float32))
    given = arrays["dense"][:10_000].astype(np.int64)
    numbers = np.where(given == MISSING, 0.0, np.log1p(np.maximum(given, 0)))
    mean, std = numbers[:7000].mean(0), numbers[:7000].std(0) + 1e-6
    dense = torch.from_numpy(((numbers - mean) / std).astype(np.float32))
    columns, sizes = [], []
    for column in arrays["cat"][:10_000].T:
        known, counts = np.unique(column[:7000], return_counts=True)
        known = known[counts >= RARE]
        place = np.searchsorted(known, column).clip(max=max(0, len(known) - 1))
        found = known[place] == column if len(known) else np.zeros(len(column), dtype=bool)
        columns.append(np.where(found, place + 1, 0))
        sizes.append(len(known) + 1)
    identities = torch.from_numpy(np.stack(columns, 1).astype(np.int64))
    rows = Examples((dense, identities), label)
    network = _seeded(lambda: ClickNetwork(dense.shape[1], sizes))
    return Parts(rows[:7000], rows[7000:8000], rows[8000:], network)


def _cifar(name: str, shards: int) -> Callable[[Path], Parts]:
    def prepare(folder: Path) -> Parts:
        found = [images(folder, f"train_{shard}") for shard in range(shards)]
        inputs, targets = torch.cat([one.inputs for one in found]), torch.cat([one.targets for one in found])
        test = images(folder, "test")
        if shards == 5:  # 45,000 and 5,000, as He et al. divide
            order = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)))
            given = Examples((inputs[order],), targets[order])
            train, validation = given[:45_000], given[45_000:]
        else:
            other = images(folder, f"train_{shards}").first(2000)
            train, validation = Examples((inputs,), targets), Examples((other.inputs,), other.targets)
        return Parts(
            train, validation, Examples((test.inputs,), test.targets), lambda seed: trained_resnet(folder, name)
        )

    return prepare


def _seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return network


def _resnet(name: str, shards: int, epochs: int, lr: float) -> Task:
    title = f"ResNet-{name.removeprefix('resnet')}"
    amount = "10,000" if shards == 1 else "45,000"
    return Task(
        name if shards == 5 else f"{name}-10k",
        f"{title} from its trained weights, {epochs} epochs on {amount} CIFAR-10 images",
        _cifar(name, shards),
        Training(epochs=epochs, lr=lr, precision="bfloat16"),
        128,
        F.cross_entropy,
        "accuracy",
        trained=True,
        change=moved_and_mirrored,
    )


TASKS: tuple[Task, ...] = (
    Task(
        "fashion",
        "LeNet-300-100 from scratch, 12 epochs on 9,000 Fashion-MNIST images",
        fashion,
        Training(epochs=12, lr=0.05),
        128,
        F.cross_entropy,
        "accuracy",
    ),
    Task(
        "criteo-10k",
        "first layer of a click-rate network, 3 epochs on 7,000 rows of Criteo",
        criteo,
        Training(epochs=3, lr=5e-4, optimizer="adam", weight_decay=0.0),
        64,
        click_loss,
        "AUC",
    ),
    _resnet("resnet20", 1, 8, 0.05),
    _resnet("resnet20", 5, 40, 0.05),
    _resnet("resnet56", 5, 40, 0.05),
)
