"""Block pruning of image classifiers on ImageNet: the paper's table 1 beside ours.

    python -m benchmarks.imagenet --dry-run                             # grid, real sparsities, cost; needs no data
    python -m benchmarks.imagenet --data DIR                            # measure and report; stop and --resume
    python -m benchmarks.imagenet evaluate --data DIR --network resnet50 --weights FILE
    python -m benchmarks.imagenet report --out DIR                      # table.md and report.html from measured rows
    torchrun --nproc-per-node 8 -m benchmarks.imagenet --data DIR       # every cell on eight GPUs
    python -m benchmarks.imagenet --data DIR --processes 8              # eight cells at once

Needs ImageNet as folders, WebDataset shards or parquet files, and `pip install 'structprune[bench,train]'`. There is no
substitute for absent data.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.cifar import MissingDataError
from benchmarks.grid.cell import Cell, cells_of
from benchmarks.grid.options import add_grid, add_running, leftover, run_processes
from benchmarks.grid.pages import as_markdown
from benchmarks.grid.problems import DataFileError, DiskFullError
from benchmarks.grid.queue import Queue
from benchmarks.grid.report import write_page
from benchmarks.grid.row import join_rows, read_rows, take_apart
from benchmarks.grid.run import Origin, rank, ranks, run_queue
from benchmarks.imagenet.augment import available_crops
from benchmarks.imagenet.dry_run import IMAGES, TFLOPS, Costs, dry_run
from benchmarks.imagenet.loading import Images, evaluation_loader
from benchmarks.imagenet.measure import ImageBenchmark
from benchmarks.imagenet.networks.choice import NETWORKS, Network, load_weights
from benchmarks.imagenet.published import BLOCKS, SPARSITIES
from benchmarks.imagenet.quality import quality
from benchmarks.imagenet.report import report
from benchmarks.imagenet.sources.find import IMAGENET_CLASSES, ImageData, open_images
from benchmarks.imagenet.sources.source import LAYOUTS
from benchmarks.imagenet.sparsity import FEWEST
from benchmarks.imagenet.training import CONVOLUTIONAL, TRANSFORMER, Recipe
from benchmarks.provenance import ROOT

MODULE = "benchmarks.imagenet"
RESULTS = ROOT / "benchmarks" / "results" / "imagenet"
CODE = ("structprune", "solvers", "benchmarks/imagenet", "benchmarks/grid")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pyarrow", "accelerate")
SIDE, SEEDS = 224, 1
WRONG, INTERRUPTED, WIDTH = 2, 130, 160


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Block pruning of image classifiers on ImageNet, the paper's table beside ours.",
        epilog=LAYOUTS,
    )
    made.add_argument("action", nargs="?", choices=["run", "evaluate", "report"], default="run")
    images = made.add_argument_group("images and networks")
    images.add_argument("--data", type=Path, help="folder of images; see below")
    images.add_argument("--classes", type=Path, help="file of class names, a line each, in the network's order")
    names = [network.name for network in NETWORKS]
    images.add_argument(
        "--network", nargs="+", choices=names, default=["resnet50"], metavar="NAME", help=", ".join(names)
    )
    images.add_argument("--weights", type=Path, help="trained weights to start from, or to evaluate")
    images.add_argument("--side", type=int, default=SIDE, help=f"of the images, in pixels (default: {SIDE})")
    images.add_argument("--precision", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU")
    images.add_argument(
        *("--fewest-blocks",), type=int, default=FEWEST, help=f"layers of fewer stay dense (default: {FEWEST})"
    )
    images.add_argument(
        *("--throughput",), type=int, default=0, metavar="BATCH", help="compile, and time batches of so many images"
    )
    images.add_argument("--tflops", type=float, default=TFLOPS, help="the dry run's guess of a GPU's speed")
    add_grid(made, BLOCKS, SPARSITIES, SEEDS)
    made.add_argument(
        *("--channels",),
        nargs="+",
        type=float,
        default=[],
        metavar="F",
        help="channels, pruned to fractions of MACs",
    )
    add_running(made, RESULTS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 if a cell diverged, 2 for wrong arguments or data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        return act(options, given, console)
    except (MissingDataError, DataFileError, DiskFullError, FileNotFoundError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print(f"Interrupted. What is done is in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED


def act(options: argparse.Namespace, given: Sequence[str], console: Console) -> int:
    """Do what is asked for."""
    if options.action == "report":
        return written(options.out, console)
    networks = [network for network in NETWORKS if network.name in options.network]
    recipes = {network.name: recipe_of(network, options) for network in networks}
    cells = grid(options)
    if options.dry_run:
        console.print(Markdown(dry_text(options, cells, networks, recipes)))
        return 0
    if options.data is None:
        raise MissingDataError(f"Expected images. Got none. Name their folder with --data. {LAYOUTS}")
    data = open_images(options.data, class_names(options.classes), train=options.action == "run")
    if options.action == "evaluate":
        return evaluated(options, networks, data, console)
    if options.resume and rank() == 0:
        take_apart(options.out)
    elif not options.resume and (rows := read_rows(options.out)):
        raise ValueError(
            f"Expected no rows in {options.out}. Got {len(rows)}. Go on with --resume, or name another --out."
        )
    if options.processes > 1:
        rest = [one for one in given if one != "--resume"]
        where = rest.index("--processes")
        status = run_processes(MODULE, [*rest[:where], *rest[where + 2 :], "--resume"], options.processes)
        return status or written(options.out, console)
    return measured(options, networks, recipes, cells, data, given, console)


def recipe_of(network: Network, options: argparse.Namespace) -> Recipe:
    """Return how a network is trained."""
    precision = options.precision or ("bfloat16" if on_gpu(options) else "float32")
    usual = TRANSFORMER if network.transformer else CONVOLUTIONAL
    return usual.changed(options.epochs, options.batch_size, options.lr, precision)


def on_gpu(options: argparse.Namespace) -> bool:
    """Whether it trains on a GPU."""
    return options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())


def grid(options: argparse.Namespace) -> list[Cell]:
    """Return the cells: those of blocks, then those of channels."""
    seeds = range(options.seeds)
    cells = cells_of(options.network, options.methods, options.blocks, options.sparsity, seeds)
    removed = [1 - fraction for fraction in options.channels]
    return list(dict.fromkeys([*cells, *cells_of(options.network, options.methods, (0,), removed, seeds)]))


def class_names(path: Path | None) -> tuple[str, ...] | None:
    """Read the names of the classes."""
    return None if path is None else tuple(path.read_text(encoding="utf-8").split())


def evaluated(options: argparse.Namespace, networks: Sequence[Network], data: ImageData, console: Console) -> int:
    """Print how good networks are with the user's weights."""
    if options.weights is None:
        raise ValueError("Expected trained weights. Got none. Name their file with --weights.")
    for network in networks:
        model = network.make(len(data.classes), options.side)
        load_weights(model, options.weights, network)
        model.to("cuda" if on_gpu(options) else "cpu").eval()
        images = Images(data.validation, options.side, available_crops(), network.pixels, 0)
        found = quality(model, evaluation_loader(images, options.batch_size or 50, options.workers))
        console.print(
            f"{network.name}: top-1 {100 * found.top1:.1f} %, top-5 {100 * found.top5:.1f} % on {found.images:,} images"
            f"{f' ({data.sample})' if data.sample else ''}",
            highlight=False,
        )
    return 0


def measured(
    options: argparse.Namespace,
    networks: Sequence[Network],
    recipes: dict[str, Recipe],
    cells: Sequence[Cell],
    data: ImageData,
    given: Sequence[str],
    console: Console,
) -> int:
    """Measure what is left of the grid, and write the report."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu(options) else torch.device("cpu")
    benchmark = ImageBenchmark(
        data=data,
        networks={network.name: network for network in networks},
        recipes=recipes,
        weights=options.weights,
        side=options.side,
        crops=available_crops(),
        min_phase_steps=options.min_phase_steps,
        device=device,
        workers=options.workers,
        fewest=options.fewest_blocks,
        batch=options.throughput,
        progress=console.is_terminal,
    )

    def settings(cell: Cell) -> dict[str, object]:
        recipe = recipes[cell.network]
        return {
            "training": {**asdict(recipe.training), "batch_size": recipe.batch_size, "smoothing": recipe.smoothing},
            "images": [0 if data.train is None else len(data.train.labels), len(data.validation.labels)],
            "classes": len(data.classes),
            "side": options.side,
            "crops": benchmark.crops.name,
            "fewest blocks": options.fewest_blocks,
            "weights": None if options.weights is None else options.weights.name,
            "device": device.type,
            "processes per cell": ranks(),
        }

    sample = sample_of(data, options, recipes)
    if sample and rank() == 0:
        console.print(f"These are {sample}: no figure will be one of ImageNet.", style="yellow")
    command = shlex.join(["python", "-m", MODULE, *given])
    queue = Queue(options.out, settings)
    diverged = run_queue(queue, cells, benchmark.measure, Origin(command, CODE, PACKAGES, sample), console)
    status = written(options.out, console) if rank() == 0 else 0
    return status or int(bool(diverged))


def sample_of(data: ImageData, options: argparse.Namespace, recipes: dict[str, Recipe]) -> str:
    """Return what must be said beside every figure: other images than ImageNet's, and short runs."""
    usual = {name: TRANSFORMER if NETWORKS_BY_NAME[name].transformer else CONVOLUTIONAL for name in recipes}
    short = [name for name, recipe in recipes.items() if 2 * recipe.training.epochs < usual[name].training.epochs]
    said = [data.sample] if data.sample else []
    if short and options.weights is None:
        epochs = ", ".join(str(recipes[name].training.epochs) for name in short)
        said.append(f"a smoke test, {epochs} epochs at {options.side} pixels")
    return "; ".join(said)


NETWORKS_BY_NAME = {network.name: network for network in NETWORKS}


def written(out: Path, console: Console) -> int:
    """Write the report of all rows, and print its table."""
    rows = read_rows(out)
    page = report(rows)
    paths = [*write_page(out, page), join_rows(out, rows)]
    console.print(Markdown(as_markdown(page, "curves")[0]))
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)
    return 0


def dry_text(
    options: argparse.Namespace, cells: Sequence[Cell], networks: Sequence[Network], recipes: dict[str, Recipe]
) -> str:
    """Return what --dry-run prints; rates that rows in OUT have take the place of guesses."""
    rates: dict[str, list[float]] = {}
    for row in read_rows(options.out):
        rate = row.values.get("images per second")
        if rate is not None:
            rates.setdefault(row.cell.network, []).append(rate)
    measured_rates = {name: statistics.median(values) for name, values in rates.items()}
    names = class_names(options.classes)
    classes = IMAGENET_CLASSES if names is None else len(names)
    costs = Costs(IMAGES, options.side, classes, measured_rates, options.tflops, options.processes)
    page = dry_run(cells, leftover(cells, options.out), networks, recipes, costs, options.fewest_blocks)
    return as_markdown(page, "")[0]


if __name__ == "__main__":
    sys.exit(main())
