"""Variants of layer reconstruction, compared on training images that neither scores nor fits have seen.

    python -m benchmarks.reconstruction_variants                     # ResNet-20 and ResNet-56, macs 0.7 and 0.5
    python -m benchmarks.reconstruction_variants --models resnet20

This is where the criterion's design was decided, so that `benchmarks.one_shot` may report on test images. The networks
were trained on these images: accuracies are higher than on test images, and only their order counts.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar import MissingDataError, data_folder, images, trained_resnet
from benchmarks.provenance import commit, versions
from structprune.batch_norm import recalibrate
from structprune.budget import Budget
from structprune.criteria import LayerReconstruction, refit
from structprune.criteria.response import Response
from structprune.criteria.scores import Criterion, Data, Scores
from structprune.data import Loss, evaluate
from structprune.files import write_atomically
from structprune.solve import solve
from structprune.structures import Structures

RESULTS = Path(__file__).resolve().parent / "results" / "reconstruction_variants"
CODE = ("structprune", "solvers", "benchmarks/*.py")
CALIBRATION, HELD_OUT, BATCH = 1024, 4000, 256


@dataclass(frozen=True)
class Remeasured:
    """Layer reconstruction, and batch norm measured anew after the re-fit."""

    criterion: LayerReconstruction = LayerReconstruction()

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        """Score as the criterion does; its re-fit ends with new statistics."""
        assert data is not None
        scores = self.criterion(model, structures, data, loss)
        inputs = [batch for batch, _ in data]

        def fitted(selection: np.ndarray) -> dict[str, Tensor]:
            assert scores.refit is not None
            found = scores.refit(selection)
            other = copy.deepcopy(model)
            other.load_state_dict({**other.state_dict(), **found})
            return {**found, **recalibrate(other, structures, selection, inputs)}

        return replace(scores, refit=fitted)


@contextmanager
def plain_targets() -> Iterator[None]:
    """Fits aim at the dense outputs themselves, whatever the network makes of them."""
    with mock.patch.object(refit, "response_behind", lambda one: Response()):
        yield


@contextmanager
def fewer_rows() -> Iterator[None]:
    """A quarter of the sampled rows behind each fitted weight."""
    with mock.patch.object(refit, "ROWS_PER_COLUMN", refit.ROWS_PER_COLUMN // 4):
        yield


@dataclass(frozen=True)
class Variant:
    """A criterion, and what is changed while it runs."""

    label: str
    criterion: Criterion
    changed: Callable[[], Any] = nullcontext


VARIANTS = (
    Variant("as it is", LayerReconstruction()),
    Variant("a quarter of the rows", LayerReconstruction(), fewer_rows),
    Variant("plain targets", LayerReconstruction(), plain_targets),
    Variant("damping 0.001", LayerReconstruction(damping=1e-3)),
    Variant("damping 0.05", LayerReconstruction(damping=5e-2)),
    Variant("batch norm measured anew after the re-fit", Remeasured()),
    Variant("curves not probed", LayerReconstruction(probes=0)),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.reconstruction_variants",
        description="Variants of layer reconstruction on held-out training images.",
    )
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], metavar="NAME")
    made.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5], metavar="F", help="of the macs")
    made.add_argument("--images", type=int, default=HELD_OUT, metavar="N", help="held-out images, the first N")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and write its table; returns the exit status: 0, or 2 without data."""
    options = parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.reconstruction_variants", *given])
    try:
        folder = data_folder(options.data)
        networks = {name: trained_resnet(folder, name) for name in options.models}
        calibration = images(folder, "train_0").sample(CALIBRATION, options.seed).batches(BATCH)
        held_out = images(folder, "train_1").first(options.images).batches(64)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    installed = ", ".join(f"{name} {version}" for name, version in versions(("torch", "numpy")).items())
    lines = [
        "# Variants of layer reconstruction on held-out training images",
        "",
        f"Command: `{command}`, commit {commit(CODE)}, {installed}, seed {options.seed}.  ",
        f"{CALIBRATION:,} images of train_0 for scores and fits; accuracy and loss (nats) on the first "
        f"{options.images:,} of train_1. The networks were trained on both: only the order counts.",
    ]
    for name, model in networks.items():
        for cap in options.budgets:
            lines += [
                "",
                f"## {name}, at most {cap:g} of the macs",
                "",
                "| variant | accuracy | loss |",
                "|---|---:|---:|",
            ]
            for variant in VARIANTS:
                with variant.changed():
                    pruned = solve(
                        model,
                        Budget(macs=cap),
                        data=calibration,
                        loss=F.cross_entropy,
                        criterion=variant.criterion,
                        seed=options.seed,
                        progress=sys.stderr.isatty(),
                    )
                found = evaluate(pruned.model, held_out, F.cross_entropy)
                accuracy = 100 * (found.accuracy or 0.0)
                lines.append(f"| {variant.label} | {accuracy:.2f} % | {found.loss:.4f} |")
                print(f"{name} {cap:g} {variant.label}: {accuracy:.2f} %, {found.loss:.4f}", flush=True)
                write_atomically(options.out / "table.md", ("\n".join(lines) + "\n").encode())
    print(f"Written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
