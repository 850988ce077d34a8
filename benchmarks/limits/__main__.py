"""How far networks can be pruned: every estimate of `structprune.limit` beside what retraining reaches.

    python -m benchmarks.limits --task digits-5e-4 digits-1e-4
    python -m benchmarks.limits --task fc5 --data DIR --device cuda
    python -m benchmarks.limits --quick --out /tmp/limits

Writes rows.json, table.md and a plot for each task.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cifar import MissingDataError
from benchmarks.limits.measure import Settings, measure, structures_of
from benchmarks.limits.plots import theory_against_actual
from benchmarks.limits.row import Row, read_rows, write_rows
from benchmarks.limits.table import as_markdown, as_table
from benchmarks.limits.tasks import TASKS, MissingSettingError, Options, Prepared, Task
from benchmarks.provenance import ROOT, commit, machine, versions
from structprune.files import write_atomically
from structprune.limit.estimating import ESTIMATORS
from structprune.progress import Phases

RESULTS = ROOT / "benchmarks" / "results" / "limits"
WORK = ROOT / "out" / "limits"
CODE = ("structprune", "solvers", "benchmarks/limits", "benchmarks/cifar.py")  # what decides the figures, for git
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")
INTERRUPTED = 130
WIDTH = 160  # of what is printed into files, in characters
QUICK_TASK = "digits-5e-4"
QUICK_GRID = (1.0, 0.5, 0.25, 0.12)
QUICK_RESOLUTION = 0.1
PLOT = "theory_against_actual.png"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.limits",
        description="How far networks can be pruned: every estimate beside what retraining reaches.",
        epilog="tasks:\n" + "\n".join(f"  {task.name:<22} {task.about}" for task in TASKS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [task.name for task in TASKS]
    made.add_argument(
        "--task", nargs="+", choices=names, metavar="NAME", help=f"some of those below (with --quick: {QUICK_TASK})"
    )
    made.add_argument("--quick", action="store_true", help="hardly any training, one row: to see that all works")
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder of results (default: {RESULTS})")
    made.add_argument("--work", type=Path, default=WORK, help=f"trained networks, checkpoints (default: {WORK})")
    made.add_argument("--resume", action="store_true", help="keep rows that OUT has with the same settings")
    limits = made.add_argument_group("limits")
    limits.add_argument(
        *("--structures",), nargs="+", choices=["weights", "blocks", "kernels", "channels"], metavar="KIND", help=KINDS
    )
    limits.add_argument("--block", type=block, metavar="RxC", help="shape of blocks, such as 1x8")
    limits.add_argument("--epsilon", nargs="+", type=epsilon, metavar="E", help="nats, or batch_std (default: by task)")
    limits.add_argument("--curvature", choices=["auto", "ggn", "hessian", "layerwise"], help="default: by task")
    limits.add_argument("--probes", type=int, default=8, metavar="N")
    limits.add_argument("--steps", type=int, default=64, metavar="N", help="Lanczos steps")
    limits.add_argument(
        "--estimators", nargs="+", default=list(ESTIMATORS), choices=ESTIMATORS, metavar="NAME", help="default: all"
    )
    limits.add_argument("--tau", nargs="+", type=float, default=[0.05, 0.1], metavar="T")
    limits.add_argument("--no-truth", action="store_true", help="retrain nothing")
    limits.add_argument("--examples", type=int, metavar="N", help="training examples that the loss is measured on")
    limits.add_argument("--held-out", type=int, metavar="N", help="held-out examples")
    limits.add_argument(
        "--double", action="store_true", help="double precision, for curvatures that single does not resolve"
    )
    limits.add_argument("--seed", type=int, default=0, metavar="N")
    limits.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    training = made.add_argument_group("training")
    training.add_argument("--penalty", type=float, metavar="L", help="lambda of the l1 penalty")
    training.add_argument("--rate", type=float, metavar="R", help="learning rate")
    training.add_argument(
        "--epochs", type=int, metavar="N", help="of the published training; fewer is another experiment"
    )
    training.add_argument("--batches-per-epoch", type=int, metavar="N", help="end epochs early, for trials")
    training.add_argument(
        *("--schedule-clock",),
        choices=["batch", "epoch"],
        default="batch",
        help="of the published training: 'batch' as in the published code, where milestones and period meant in epochs "
        "count batches, so that a cosine swings once per 400 batches; 'epoch' as the settings read",
    )
    return made


KINDS = "what is removed: weights, blocks, kernels, channels (default: by task)"


def block(text: str) -> tuple[int, int]:
    """Return a block's shape from text such as 1x8."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"Expected a shape such as 1x8. Got {text}. Pass outputs x inputs.")
    return int(rows), int(columns)


def epsilon(text: str) -> float | str:
    """Return an allowed rise of the loss."""
    if text == "batch_std":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"Expected nats above 0 or batch_std. Got {text}. Pass for instance 0.01.")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status: 0, 2 without data or a needed setting, 130 if interrupted."""
    made = parser()
    options = made.parse_args(arguments)
    if options.task is None and not options.quick:
        made.error("Expected --task. Got none. Name some of those that --help lists, or pass --quick.")
    command = shlex.join(["python", "-m", "benchmarks.limits", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    asked = [task for task in TASKS if task.name in (options.task or [QUICK_TASK])]
    try:
        for task in asked:
            run(task, options, command, console)
    except (MissingDataError, MissingSettingError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Interrupted. The finished rows are in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED
    console.print(f"Written to {options.out}", soft_wrap=True)
    return 0


def run(task: Task, options: argparse.Namespace, command: str, console: Console) -> None:
    """Measure one task; its files are written after every kind of structures."""
    phases = Phases(visible=True)
    console.print(f"{task.name}: {task.about}", markup=False)
    with phases.phase("training"):
        prepared = task.prepare(options_of(options))
        prepared = in_double(prepared) if options.double else prepared
    shape = options.block or task.block
    allowed = list(options.epsilon or (task.epsilons[:1] if options.quick else task.epsilons))
    settings = settings_of(options, prepared)
    about = {
        **asdict(settings),
        "quick": options.quick,
        "double": options.double,
        "retrainings": [asdict(one) for one in prepared.retrainings],
        "examples": sum(len(targets) for _, targets in prepared.data),
        "training": prepared.notes[0],
    }
    folder = options.out / task.name
    before = read_rows(folder) if options.resume else []
    rows: list[Row] = []
    for kind in options.structures or (task.structures[:1] if options.quick else task.structures):
        name = f"blocks {shape[0]}x{shape[1]}" if kind == "blocks" else kind
        kept = [row for row in before if row.same(task.name, name, about) and row.asked in allowed]
        if len(kept) == len(allowed):
            console.print(f"  {name}: already there", markup=False)
            rows += kept
            continue
        with phases.phase(f"{task.name}, {name}"):
            structures = structures_of(kind, prepared.model, prepared.data[0][0], shape)
            found = measure(prepared, structures, allowed, settings)
        for asked, one in zip(allowed, found, strict=True):
            row = Row(
                *(task.name, task.about, name, asked, about, one.limit, one.truths),
                notes=prepared.notes,
                command=command,
                commit=commit(CODE),
                machine=f"{machine()}, {torch.get_num_threads()} threads, {options.device}",
                versions=versions(PACKAGES),
            )
            rows.append(row)
            console.print(as_table(row))
        write_task(folder, rows)
    write_task(folder, rows)


def write_task(folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a task with the page and the picture made of them."""
    write_rows(folder, rows)
    theory_against_actual(folder / PLOT, rows)
    write_atomically(folder / "table.md", as_markdown(rows, PLOT).encode())


def in_double(prepared: Prepared) -> Prepared:
    """Return the same network and data in double precision."""
    data, held_out = ([(x.double(), y) for x, y in part] for part in (prepared.data, prepared.held_out))
    return replace(prepared, model=prepared.model.double(), data=data, held_out=held_out)


def options_of(options: argparse.Namespace) -> Options:
    """Return what training needs of the command line."""
    return Options(
        data=options.data,
        work=options.work,
        quick=options.quick,
        seed=options.seed,
        device=options.device,
        examples=options.examples,
        held_out=options.held_out,
        penalty=options.penalty,
        rate=options.rate,
        epochs=options.epochs,
        by_batch=options.schedule_clock == "batch",
        batches_per_epoch=options.batches_per_epoch,
    )


def settings_of(options: argparse.Namespace, prepared: Prepared) -> Settings:
    """Return what estimating needs of the command line."""
    made = Settings(
        curvature=options.curvature or prepared.curvature,
        probes=options.probes,
        steps=options.steps,
        estimators=tuple(options.estimators),
        tau=tuple(options.tau),
        seed=options.seed,
        truth=not options.no_truth,
    )
    if options.quick:
        return replace(made, probes=2, steps=32, grid=QUICK_GRID, resolution=QUICK_RESOLUTION)
    return made


if __name__ == "__main__":
    sys.exit(main())
