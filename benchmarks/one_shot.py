"""One-shot pruning of trained CIFAR-10 ResNets, without fine-tuning: structprune against Torch-Pruning.

    python -m benchmarks.one_shot                                    # everything, all 10,000 test images
    python -m benchmarks.one_shot --models resnet20 --images 1000 --budgets 0.5 --out /tmp/one_shot

Every method gets the same trained network, the same cap on the macs and the same calibration images from the training
set. What it makes is counted by torch's flop counter and measured on the test images.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from benchmarks import torch_pruning_baseline
from benchmarks.case import Case, Method, Outcome, count_macs
from benchmarks.cifar import Images, MissingDataError, data_folder, images, trained_resnet
from benchmarks.one_shot_table import Row, Settings, as_table, read_row, write_row, write_tables
from benchmarks.provenance import ROOT, commit, machine, versions
from structprune.budget import Budget
from structprune.criteria import Fisher, LayerReconstruction, Magnitude, Taylor
from structprune.criteria.scores import Criterion
from structprune.data import evaluate
from structprune.solve import solve
from structprune.structures import channels

RESULTS = ROOT / "benchmarks" / "results" / "one_shot"
CODE = ("structprune", "solvers", "benchmarks/*.py")  # what decides the figures, for git
PACKAGES = ("torch", "numpy", "ortools", "torch-pruning")
BATCH = 256
LAYOUT = torch.channels_last  # of the test images: evaluates about twice as fast on a CPU
INTERRUPTED = 130
WIDTH = 160  # of what is printed into files, in characters


@dataclass(frozen=True)
class Solve:
    """``structprune.solve`` with one criterion.

    Attributes
    ----------
    criterion
        None for the default: layer reconstruction.
    with_data
        Whether `solve` is given the calibration images; without, batch norm stays as trained.
    inner_only
        Whether the residual stream is kept whole, so that the choice is among what Torch-Pruning can prune well here.
    """

    name: str
    label: str
    criterion: Criterion | None
    batch_norm: str = "recalibrated"
    with_data: bool = True
    inner_only: bool = False
    software: str = "structprune"

    def prune(self, case: Case) -> Outcome:
        """Return what `solve` makes of the case."""
        start = perf_counter()
        inner = channels(case.model, case.example, keep_whole=[stem(case.model)]) if self.inner_only else None
        pruned = solve(
            case.model,
            Budget(macs=case.macs),
            structures=inner,
            data=case.calibration if self.with_data else None,
            loss=F.cross_entropy if self.with_data else None,
            example=case.example,
            criterion=self.criterion,
            seed=case.seed,
            progress=sys.stderr.isatty(),
        )
        report = pruned.report
        seconds = perf_counter() - start - report.seconds.get("measuring", 0.0)
        macs = next(row for row in report.costs if row.resource == "macs")
        return Outcome(pruned.model, seconds, macs.predicted / macs.before, report.gap, report.predicted_loss)


@dataclass(frozen=True)
class Dense:
    """The network as it was trained."""

    name: str = "dense"
    label: str = "dense"
    software: str = ""
    batch_norm: str = "as trained"

    def prune(self, case: Case) -> Outcome:
        """Return the network itself."""
        return Outcome(case.model, 0.0, 1.0)


METHODS: tuple[Method, ...] = (
    Solve("reconstruction", "layer reconstruction", None, batch_norm="re-fitted"),
    Solve("reconstruction-choice", "layer reconstruction, weights as trained", LayerReconstruction(refit=False)),
    Solve("fisher", "Fisher", Fisher()),
    Solve("taylor", "Taylor", Taylor()),
    Solve("magnitude", "magnitude", Magnitude(), batch_norm="as trained", with_data=False),
    Solve("magnitude-bn", "magnitude", Magnitude()),
    Solve("taylor-inner", "Taylor, inner channels", Taylor(), inner_only=True),
    Solve("magnitude-inner-bn", "magnitude, inner channels", Magnitude(), inner_only=True),
    *torch_pruning_baseline.METHODS,
)


def stem(model: nn.Module) -> nn.Module:
    """Return the first convolution; the whole residual stream is tied to its channels."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def run_row(method: Method, case: Case, test: Images, row: Row) -> Row:
    """Return `row` with its figures, or with the reason why there are none."""
    try:
        outcome = method.prune(case)
        found = evaluate(outcome.model, test.batches(64), F.cross_entropy)
    except Exception as error:  # one method's failure must not cost the others' rows; it is shown in the table
        return replace(row, failure=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
    return replace(
        row,
        accuracy=found.accuracy,
        loss=found.loss,
        macs=count_macs(outcome.model, case.example),
        macs_dense=count_macs(case.model, case.example),
        own_fraction=outcome.own_fraction,
        params=parameters(outcome.model),
        params_dense=parameters(case.model),
        seconds=round(outcome.seconds, 2),
        gap=outcome.gap,
        predicted_loss=outcome.predicted_loss,
    )


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.one_shot",
        description="One-shot pruning of trained CIFAR-10 ResNets, without fine-tuning, against Torch-Pruning.",
        epilog="methods:\n" + "\n".join(f"  {method.name:<24} {described(method)}" for method in METHODS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], metavar="NAME")
    made.add_argument("--budgets", nargs="+", type=fraction, default=[0.7, 0.5], metavar="F", help="of the macs")
    made.add_argument(
        *("--methods",),
        nargs="+",
        default=[method.name for method in METHODS],
        choices=[method.name for method in METHODS],
        metavar="NAME",
        help="some of those listed below (default: all)",
    )
    made.add_argument("--images", type=int, default=10_000, metavar="N", help="test images, the first N")
    made.add_argument("--calibration", type=int, default=1024, metavar="N", help="training images for every method")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="tables show mean ± std over them")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder of rows and tables (default: {RESULTS})")
    made.add_argument("--resume", action="store_true", help="keep rows that OUT has with these settings")
    return made


def described(method: Method) -> str:
    """Return a method in words."""
    return f"{method.software} {method.label}, batch norm {method.batch_norm}"


def fraction(text: str) -> float:
    """Return a fraction between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"Expected a fraction between 0 and 1. Got {text}. Use for instance 0.5.")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status: 0, 1 if a method failed, 2 without data, 130 if interrupted."""
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.one_shot", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        rows = run(options, command, console)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Interrupted. The finished rows are in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED
    for network in options.models:
        for cap in options.budgets:
            console.print(as_table(rows, network, cap))
    console.print(f"Written to {options.out}")
    return 1 if any(row.failure for row in rows) else 0


def run(options: argparse.Namespace, command: str, console: Console) -> list[Row]:
    """Make every row that is asked for, write each as it comes and the tables at the end."""
    folder = data_folder(options.data)
    networks = {name: trained_resnet(folder, name) for name in options.models}
    test = images(folder, "test").first(options.images)
    test = Images(test.inputs.contiguous(memory_format=LAYOUT), test.targets)
    about = Row(
        "",
        1.0,
        "",
        "",
        "",
        "",
        Settings(len(test), options.calibration, options.seeds[0]),
        versions=versions(PACKAGES),
        commit=commit(CODE),
        command=command,
        machine=f"{machine()}, torch on {torch.get_num_threads()} of them",
    )
    methods = [method for method in METHODS if method.name in options.methods]
    todo: list[tuple[str, float, Method, int]] = []
    for name in networks:
        todo.append((name, 1.0, Dense(), options.seeds[0]))
        todo += [(name, cap, method, seed) for cap in options.budgets for method in methods for seed in options.seeds]
    train = images(folder, "train_0")
    rows = []
    for number, (name, cap, method, seed) in enumerate(todo, start=1):
        drawn = f", seed {seed}" if len(options.seeds) > 1 else ""
        console.print(f"[{number}/{len(todo)}] {name} at {cap:g}: {method.name}{drawn} ... ", end="", markup=False)
        used = replace(about.settings, seed=seed)
        row = read_row(options.out, name, cap, method.name, seed) if options.resume else None
        if row is None or row.settings != used or row.failure:
            calibration = train.sample(options.calibration, seed).batches(BATCH)
            blank = replace(
                about,
                settings=used,
                network=name,
                macs_cap=cap,
                method=method.name,
                label=method.label,
                software=method.software,
                batch_norm=method.batch_norm,
            )
            row = run_row(method, Case(networks[name], cap, calibration, seed), test, blank)
            write_row(options.out, row)
        # What a method is called may have changed since a row was written.
        row = replace(row, label=method.label, software=method.software, batch_norm=method.batch_norm)
        rows.append(row)
        said = row.failure or f"{100 * (row.accuracy or 0):.2f} %, {row.seconds} s"
        console.print(said, markup=False, soft_wrap=True)
    write_tables(options.out, rows, command)
    return rows


if __name__ == "__main__":
    sys.exit(main())
