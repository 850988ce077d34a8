"""Discrimination-aware channel selection on CIFAR-10 ResNets, against its own controls.

    python -m benchmarks.discrimination            # an hour or two of one core that has nothing else to do
    python -m benchmarks.discrimination --quick    # a minute or two, small samples: tells whether everything works

Discrimination-aware selection, reconstruction alone (lam = 0), magnitudes and random choices keep the same number of
channels on every inner axis of the same network, with the same re-fit and the same fine-tuning. Discrimination is
measured by an expansion of the loss, which is this library's, and by gains, as the paper has it.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import count_macs
from benchmarks.cifar import Images, MissingDataError, data_folder, images, trained_resnet
from benchmarks.discrimination_rows import HELD_OUT, Row, Settings, chosen_lam, read_row, write_row, write_tables
from benchmarks.provenance import ROOT, commit, machine, versions
from structprune.batch_norm import recalibrate
from structprune.budget import Budget
from structprune.compile import compile
from structprune.criteria import Magnitude, Random
from structprune.criteria.discrimination import Discrimination
from structprune.criteria.scores import Criterion
from structprune.data import evaluate
from structprune.finetune import FineTune
from structprune.methods import DiscriminationAware
from structprune.methods.picking import Picking
from structprune.structures import Structures, channels
from structprune.task import checked_task

RESULTS = ROOT / "benchmarks" / "results" / "discrimination"
WORK = ROOT / "out" / "discrimination"
CODE = ("structprune", "solvers", "benchmarks/*.py")
PACKAGES = ("torch", "numpy", "scipy")
BATCH = 100
LAYOUT = torch.channels_last  # trains and evaluates faster on a CPU
LAMS = (0.01, 0.1, 1.0)
STEPS = 3  # fits per axis of the selection in batches
SEARCHED_ON = 2000  # held-out images that lam is chosen on
INTERRUPTED = 130


@dataclass(frozen=True)
class Selection:
    """A way to choose channels.

    Attributes
    ----------
    discriminates
        Whether the discriminative loss counts.
    expand
        Whether the loss is expanded; else gains are followed.
    steps
        Fits per axis where gains are followed; None for one after each pick.
    ranking
        A criterion that decides instead, with the seed where it takes one.
    own_fit
        Whether the weights of the selection's own fits stay.
    """

    name: str
    label: str
    discriminates: bool = False
    expand: bool = False
    steps: int | None = None
    ranking: type[Criterion] | None = None
    own_fit: bool = False

    @property
    def follows_gains(self) -> bool:
        """Whether gains decide, rather than an expansion or a ranking."""
        return not self.expand and self.ranking is None

    def method(self, lam: float, pass_images: int | None, images: int, seed: int, folder: Path) -> DiscriminationAware:
        """The training method that chooses so."""
        ranking = None if self.ranking is None else Random(seed) if self.ranking is Random else self.ranking()
        loss = Discrimination(
            lam=lam if self.discriminates else 0.0, reconstruct_last=not self.own_fit, pass_examples=pass_images
        )
        picking = Picking(steps=self.steps, expand=self.expand)
        return DiscriminationAware(heads=3, loss=loss, picking=picking, examples=images, ranking=ranking, folder=folder)


EXPANDED = Selection("dcp-expansion", "discrimination-aware, by expansion", discriminates=True, expand=True)
BATCHES = Selection("dcp-batches", f"discrimination-aware, gains in {STEPS} batches", discriminates=True, steps=STEPS)
ONE = Selection("dcp-one", "discrimination-aware, gains one at a time", discriminates=True)
TWO = Selection("dcp-two", "discrimination-aware, gains in 2 batches", discriminates=True, steps=2)
OWN = Selection(
    "dcp-own-fit", "discrimination-aware, by expansion, own fit", discriminates=True, expand=True, own_fit=True
)
SHARED = (
    EXPANDED,
    Selection("reconstruction", "reconstruction alone, by expansion", expand=True),
    BATCHES,
    Selection("magnitude", "magnitude", steps=STEPS, ranking=Magnitude),
    Selection("random", "random", steps=STEPS, ranking=Random),
)


@dataclass(frozen=True)
class Cell:
    """One row to make."""

    network: str
    kept: float
    selection: Selection | None
    seed: int
    settings: Settings
    lam: float | None = None  # None: the one that held-out images chose

    @property
    def searches(self) -> bool:
        """Whether this is one of the rows that ``lam`` is chosen by."""
        return self.lam is not None


def cells(options: argparse.Namespace) -> list[Cell]:
    """Every row that is asked for, in order."""
    quick = options.quick
    tuned, epochs, test = (500, 1, 500) if quick else (10_000, 3, 10_000)
    small = Settings(200 if quick else 1000, 0, tuned, epochs, test)
    large = Settings(200 if quick else 5000, 100 if quick else 1000, tuned, epochs, test)
    seeds = range(1) if quick else range(options.seeds)
    found = []
    by_name = {name: small if name == "resnet20" else large for name in options.models}
    if options.lam is None:
        for name, own in by_name.items():
            search = replace(own, tuned_on=0, epochs=0, images=500 if quick else SEARCHED_ON)
            found += [Cell(name, 0.5, way, 0, search, lam) for way in (EXPANDED, BATCHES) for lam in LAMS]
    found += [Cell(name, 1.0, None, 0, replace(own, tuned_on=0, epochs=0)) for name, own in by_name.items()]
    for seed in seeds:  # seeds outermost: a first answer for every network comes early
        for name, own in by_name.items():
            extra = () if name != "resnet20" else (ONE, TWO, OWN) if seed == 0 else (ONE, TWO)
            found += [Cell(name, 0.5, selection, seed, own) for selection in (*SHARED, *extra)]
    if not quick:
        found += [Cell(name, 0.7, selection, 0, own) for name, own in by_name.items() for selection in SHARED]
    return found


class Bench:
    """The data, and the networks with what their selections share."""

    def __init__(self, folder: Path, work: Path) -> None:
        self._folder, self._work = folder, work
        self._models: dict[str, tuple[nn.Module, Structures]] = {}

    @cached_property
    def train(self) -> Images:
        """Images for selections and fine-tuning."""
        return images(self._folder, "train_0")

    @cached_property
    def test(self) -> Images:
        """Images that nothing is chosen on."""
        return images(self._folder, "test")

    @cached_property
    def held_out(self) -> Images:
        """Training images that ``lam`` is chosen on."""
        return images(self._folder, "train_1")

    def model(self, name: str) -> tuple[nn.Module, Structures]:
        """The trained network and its inner channels; the residual stream stays whole."""
        if name not in self._models:
            model = trained_resnet(self._folder, name)
            example = self.train.inputs[:2]
            self._models[name] = (model, channels(model, example, keep_whole=[model.conv1]))
        return self._models[name]

    def judged_on(self, cell: Cell) -> list[tuple[Tensor, Tensor]]:
        """Batches that the row's accuracy is measured on."""
        source = self.held_out if cell.searches else self.test
        return laid_out(source.first(cell.settings.images)).batches(250)

    def row(self, cell: Cell, blank: Row) -> Row:
        """Choose, fit, measure, fine-tune and measure again; ``blank`` is the row without its figures."""
        model, structures = self.model(cell.network)
        judged = self.judged_on(cell)
        if cell.selection is None:
            found = evaluate(copied(model), judged, F.cross_entropy)
            return replace(blank, before=found.accuracy, loss_before=found.loss, macs=1.0, params=1.0)
        data = self.train.sample(cell.settings.chosen_on, cell.seed).batches(BATCH)
        task = checked_task(model, Budget(macs=1.0), structures, data, F.cross_entropy, data[0][0][:2])
        where = self._work / f"{cell.network}_{cell.seed}"
        method = cell.selection.method(
            blank.lam, cell.settings.pass_images or None, cell.settings.chosen_on, cell.seed, where
        )
        chosen = replace(method, widths=cell.kept).choose(model, structures, None, task, cell.seed)
        statistics = recalibrate(chosen.model, structures, chosen.selection, [inputs for inputs, _ in data[:10]])
        pruned = compile(chosen.model, structures, chosen.selection, task.example, refit=statistics)
        small = copied(pruned.model)
        before = evaluate(small, judged, F.cross_entropy)
        axes = list(chosen.chosen.values())
        row = replace(
            blank,
            before=before.accuracy,
            loss_before=before.loss,
            macs=count_macs(small, data[0][0][:1]) / count_macs(model, data[0][0][:1]),
            params=parameters(small) / parameters(model),
            channels=sum(one.width for one in axes),
            choose_seconds=round(sum(one.seconds for one in axes), 2),
            looked_at=sum(one.looked_at for one in axes),
            weakness=min(one.weakness for one in axes) if cell.selection.follows_gains else None,
        )
        if not cell.settings.tuned_on:
            return row
        tuned, seconds = self._tuned(small, cell)
        after = evaluate(tuned, judged, F.cross_entropy)
        return replace(row, after=after.accuracy, loss_after=after.loss, tune_seconds=round(seconds, 1))

    def _tuned(self, model: nn.Module, cell: Cell) -> tuple[nn.Module, float]:
        data = laid_out(self.train.first(cell.settings.tuned_on)).batches(BATCH)
        start = process_time()
        recipe = FineTune(epochs=cell.settings.epochs, lr=0.01, validation=0.05, seed=cell.seed)
        tuned = recipe.run(model, data, F.cross_entropy, progress=sys.stderr.isatty())
        return tuned.model, process_time() - start

    def estimate(self, todo: Sequence[Cell]) -> float:
        """Seconds of one core that the cells take, from one training step of each network."""
        step: dict[str, float] = {}
        total = 0.0
        for cell in todo:
            if cell.network not in step:
                step[cell.network] = self._step(cell.network) / BATCH
            each, used = step[cell.network], cell.settings
            total += each * (0.3 * used.images + cell.kept * used.tuned_on * used.epochs)
            total += 0.3 * each * used.images * cell.kept * bool(used.tuned_on)
            if cell.selection is not None and cell.selection.discriminates:
                fits = cell.selection.steps or 38 * cell.kept  # channels that an inner axis of these networks keeps
                looks = 2.4 if cell.selection.expand else 1 + 2.4 * fits
                # Of each pass an eighth of the network on average: from the axis to the head behind it.
                axes = len(self.model(cell.network)[1].axes)
                total += each / 8 * axes * looks * (used.pass_images or used.chosen_on)
        trained = {(cell.network, cell.seed, cell.settings.chosen_on) for cell in todo if cell.selection is not None}
        return total + sum(3.5 * step[network] * count for network, _, count in trained)

    def _step(self, name: str) -> float:
        model, batch = copied(self.model(name)[0]).train(), laid_out(self.train.first(BATCH))
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        start = perf_counter()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        return perf_counter() - start


def laid_out(some: Images) -> Images:
    """The same images, channels innermost in memory."""
    return Images(some.inputs.contiguous(memory_format=LAYOUT), some.targets)


def copied(model: nn.Module) -> nn.Module:
    """A copy with channels innermost in memory."""
    twin = copy.deepcopy(model)
    return twin.to(memory_format=LAYOUT)  # type: ignore[call-overload, no-any-return]


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.discrimination",
        description="Discrimination-aware channel selection on CIFAR-10 ResNets, against its own controls.",
    )
    made.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    made.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], metavar="NAME")
    made.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds with half of the channels (default: 3)")
    made.add_argument("--lam", type=float, help="weight of discrimination (default: chosen on held-out images)")
    made.add_argument("--quick", action="store_true", help="small samples: whether everything works")
    made.add_argument("--out", type=Path, default=RESULTS, help=f"folder of rows and tables (default: {RESULTS})")
    made.add_argument("--work", type=Path, default=WORK, help=f"folder of unfinished selections (default: {WORK})")
    made.add_argument("--resume", action="store_true", help="keep rows that OUT has with these settings")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status: 0, 2 without data, 130 if interrupted."""
    options = parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.discrimination", *given])
    try:
        run(options, command)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Interrupted. The finished rows are in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED
    print(f"Written to {options.out}")
    return 0


def run(options: argparse.Namespace, command: str) -> list[Row]:
    """Make every row that is asked for, write each as it comes, and the tables after each."""
    bench = Bench(data_folder(options.data), options.work)
    todo = cells(options)
    about: dict[str, object] = {
        "versions": versions(PACKAGES),
        "commit": commit(CODE),
        "command": command,
        "machine": f"{machine()}, torch on {torch.get_num_threads()} of them",
    }
    rows: list[Row] = []
    known = [known_row(options, cell, rows, about) for cell in todo]
    missing = [cell for cell, row in zip(todo, known, strict=True) if row is None]
    seconds = bench.estimate(missing)
    print(f"{len(missing)} of {len(todo)} rows to make, about {seconds / 60:.0f} minutes of one core", flush=True)
    rows = []
    for number, (cell, row) in enumerate(zip(todo, known, strict=True), start=1):
        if row is None:
            start = perf_counter()
            row = bench.row(cell, blank_row(cell, lam_of(options, cell, rows), about))
            write_row(options.out, row)
            print(f"[{number}/{len(todo)}] {said(row)}, {perf_counter() - start:.0f} s", flush=True)
        rows.append(row)
        write_tables(options.out, rows, command)
    return rows


def lam_of(options: argparse.Namespace, cell: Cell, rows: Sequence[Row]) -> float:
    """The weight of discrimination for a cell: its own, the one that was given, or what the rows chose."""
    if cell.lam is not None:
        return cell.lam
    if options.lam is not None or cell.selection is None or not cell.selection.discriminates:
        return float(options.lam or 0.0)
    return chosen_lam(rows, cell.network, (EXPANDED if cell.selection.expand else BATCHES).name)


def known_row(options: argparse.Namespace, cell: Cell, rows: list[Row], about: dict[str, object]) -> Row | None:
    """The row that is there already, which joins ``rows``; None if there is none, or nobody asked to go on."""
    if not options.resume:
        return None
    try:
        blank = blank_row(cell, lam_of(options, cell, rows), about)
    except LookupError:  # lam is not known yet
        return None
    row = read_row(options.out, blank)
    if row is not None:
        row = replace(row, label=blank.label)  # what a selection is called may have changed since
        rows.append(row)
    return row


def blank_row(cell: Cell, lam: float, about: dict[str, object]) -> Row:
    """The row's question without its answer."""
    selection = cell.selection
    label = HELD_OUT if cell.searches else "dense" if selection is None else selection.label
    return Row(
        network=cell.network,
        kept=cell.kept,
        method="dense" if selection is None else selection.name,
        label=label,
        seed=cell.seed,
        settings=cell.settings,
        lam=lam if selection is not None and selection.discriminates else 0.0,
        steps=0 if selection is None else selection.steps or 0,
        **about,  # type: ignore[arg-type]
    )


def said(row: Row) -> str:
    """A row in a line."""
    after = "" if row.after is None else f", after {100 * row.after:.2f} %"
    chosen = "" if row.choose_seconds is None else f", chosen in {row.choose_seconds:.1f} CPU s"
    before = 100 * (row.before or 0.0)
    return f"{row.network} {row.kept:g} {row.method} lam {row.lam:g} seed {row.seed}: {before:.2f} %{after}{chosen}"


if __name__ == "__main__":
    sys.exit(main())
