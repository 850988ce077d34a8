"""The whole line on real data in under a minute: a small network learns scikit-learn's digits and is cut to a budget.

:func:`network`, :func:`training` and :func:`test` are also what the command line is pointed at when the demo is done:
``structprune solve --model structprune.demo:network --data structprune.demo:training ...``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from structprune.budget import Budget
from structprune.files import write_atomically
from structprune.finetune import FineTune
from structprune.pruned import Pruned
from structprune.report import CostRow, LatencyRow, QualityRow, Report
from structprune.solve import solve
from structprune.units import accuracy_text, fraction_text, quantity, used_text

__all__ = ["DigitsNet", "Fact", "demo", "facts", "network", "test", "training"]

DENSE = "dense.safetensors"
BATCH = 256  # the batch that latency is measured on
STEP = 64  # examples per training step
TEST_SHARE = 0.25
SPLIT_SEED = 0  # the split is the same in every run, whatever the seed of the run
LEARN = {"epochs": 8, "lr": 0.1}
TUNE = {"epochs": 3, "lr": 0.02}
LEAST_USED = 0.98  # of the allowed amount: a budget that is left unused is quality given away
MOST_LOST = 0.01  # of accuracy
MOST_DIFFERENT = 1e-5  # between the compiled and the masked network, relative


class DigitsNet(nn.Module):
    """Four convolutions with batch norm, for grey images ``(N, 1, 8, 8)`` of ten digits."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.conv1, self.bn1 = convolution(1, first), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = convolution(first, second), nn.BatchNorm2d(second)
        self.conv3, self.bn3 = convolution(second, third), nn.BatchNorm2d(third)
        self.conv4, self.bn4 = convolution(third, fourth), nn.BatchNorm2d(fourth)
        self.fc = nn.Linear(fourth, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean(dim=(2, 3)))


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; its bias would be the batch norm's."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def network() -> DigitsNet:
    """Return the network before training."""
    return DigitsNet()


def training() -> DataLoader:
    """Return the digits to train and prune on: 1,347 images in batches of 256."""
    return loader(*digits()[0])


def test() -> DataLoader:
    """Return the 450 digits that neither training nor pruning ever sees."""
    return loader(*digits()[1])


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and test images ``(N, 1, 8, 8)`` in [0, 1] with their classes, in equal shares of classes."""
    images, targets = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    classes = torch.from_numpy(targets).long()
    train, held_out = train_test_split(
        range(len(classes)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=targets
    )
    return (inputs[train], classes[train]), (inputs[held_out], classes[held_out])


def loader(inputs: Tensor, classes: Tensor) -> DataLoader:
    """Return batches in a fixed order; fine-tuning shuffles for itself."""
    return DataLoader(TensorDataset(inputs, classes), batch_size=BATCH)


def trained(seed: int, progress: bool = True) -> nn.Module:
    """Return the network after a few seconds of training; a tenth of the training data chooses the best epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    learn = FineTune(epochs=int(LEARN["epochs"]), lr=LEARN["lr"], batch_size=STEP, seed=seed)
    return learn.run(model, training(), F.cross_entropy, progress=progress).model


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: threads that wait for each other over small operators would time the busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Fact:
    """Something the demo promises, and whether it came true."""

    sentence: str
    holds: bool


def facts(report: Report) -> tuple[Fact, ...]:
    """Check a run against what it promises: budget met and used up, quality kept, faster, the same function."""
    capped = [(row, row.allowed) for row in report.costs if row.allowed is not None]
    used = max(amount(row) / allowed for row, allowed in capped)  # of several caps one may hold the others back
    found = [cost_fact(row, allowed, used) for row, allowed in capped]
    found.append(accuracy_fact(report.quality[0], report.quality[-1]))
    if report.latency is not None:
        found.append(latency_fact(report.latency))
    same = f"the compiled network equals the masked one to {report.max_error:.0e}"
    return (*found, Fact(same, report.max_error <= MOST_DIFFERENT))


def amount(row: CostRow) -> int:
    """What the compiled network takes: as counted on it, else as predicted."""
    return row.predicted if row.counted is None else row.counted


def cost_fact(row: CostRow, allowed: int, used: float) -> Fact:
    """The budget is met, and nearly all of it, or of another one, is used."""
    now = amount(row)
    amounts = f"{quantity(row.resource, row.before)} -> {quantity(row.resource, now)}"
    saved = f"{row.resource} {amounts}: {fraction_text(1 - now / row.before)} saved"
    return Fact(f"{saved}, {used_text(now, allowed)} of what is allowed", now <= allowed and used >= LEAST_USED)


def accuracy_fact(dense: QualityRow, final: QualityRow) -> Fact:
    """At most a point of accuracy is lost."""
    before, after = dense.accuracy or 0.0, final.accuracy or 0.0
    amounts = f"{accuracy_text(before)} -> {accuracy_text(after)}: {100 * (after - before):+.2f} points"
    return Fact(f"accuracy on {final.examples} unseen images {amounts}", after >= before - MOST_LOST)


def latency_fact(row: LatencyRow) -> Fact:
    """The network is faster."""
    amounts = f"{quantity('latency_ns', row.before_ns)} -> {quantity('latency_ns', row.after_ns)}"
    where = f"latency of a batch of {row.batch} on one {row.device} thread"
    return Fact(f"{where} {amounts}: {row.verdict}", row.after_ns < row.before_ns)


def demo(out: Path, *, seed: int, budget: Budget, console: Console, progress: bool = True) -> bool:
    """Train, prune, fine-tune, report and save.

    Parameters
    ----------
    out
        Folder for the network and its report; what an earlier demo left there is replaced.
    console
        Where the report and the facts are printed.

    Returns
    -------
    bool
        Whether every fact holds.

    Raises
    ------
    FileExistsError
        If ``out`` is there and no earlier demo wrote it.
    """
    if out.exists() and not (out / DENSE).is_file():
        raise FileExistsError(
            f"Expected a new folder for the demo. Got {str(out)!r}, which exists. Pass another --out."
        )
    told = f"Training a small network on scikit-learn's digits, then cutting it to {budget} ..."
    console.print(told, highlight=False, soft_wrap=True)
    with one_thread():
        model = trained(seed, progress)
        pruned = solve(
            model,
            budget,
            data=training(),
            loss=F.cross_entropy,
            finetune=FineTune(epochs=int(TUNE["epochs"]), lr=TUNE["lr"], batch_size=STEP, seed=seed),
            validation=test(),
            seed=seed,
            progress=progress,
        )
    pruned.report.print(console)
    checked = facts(pruned.report)
    console.print("\n[bold]Promised and checked[/bold]")
    for fact in checked:
        answer = "[green]yes[/green]" if fact.holds else "[red]NO [/red]"
        console.print(f"  {answer}  {fact.sentence}", highlight=False, soft_wrap=True)
    save(pruned, model, out)
    console.print(next_steps(out), highlight=False, soft_wrap=True)
    return all(fact.holds for fact in checked)


def save(pruned: Pruned, dense: nn.Module, out: Path) -> None:
    """Write the pruned network's folder and the dense weights beside it."""
    pruned.save(out, overwrite=True)
    tensors = {name: tensor.contiguous() for name, tensor in dense.state_dict().items()}
    write_atomically(out / DENSE, lambda path: save_file(tensors, path)).chmod(0o644)


def next_steps(out: Path) -> str:
    """Return where everything is and what to type next."""
    return f"""
Saved in {out}: weights.safetensors, structure.json, report.json, report.html, {DENSE}
The page with the plots: {(out / "report.html").resolve()}
In Python: structprune.load({str(out)!r}, structprune.demo.network()) gives the pruned network back.

Next, cut the same network to a third of its macs and a fifth of its parameters at once:
  structprune solve --model structprune.demo:network --weights {out / DENSE} \\
    --data structprune.demo:training --validation structprune.demo:test \\
    --budget macs=0.33,params=0.2 --finetune 3 --out {out}-third
or look at what can be removed from it:
  structprune inspect --model structprune.demo:network --data structprune.demo:training"""
