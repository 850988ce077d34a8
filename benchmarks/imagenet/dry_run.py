"""What the grid is and what it costs, known before there is any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.options import duration
from benchmarks.grid.pages import Page, Part, Table
from benchmarks.imagenet.networks.choice import Network
from benchmarks.imagenet.published import ERRATA, REAL_SPARSITY, TABLE_1
from benchmarks.imagenet.sparsity import FEWEST, removal
from benchmarks.imagenet.training import Recipe
from structprune.counting import count_macs

__all__ = ["IMAGES", "TFLOPS", "Costs", "dry_run", "sparsity_table"]

IMAGES = 1_281_167
"""Training images of ImageNet."""
TFLOPS = 60.0
"""10^12 operations per second that the estimate of time assumes of a GPU where nothing was measured; a guess."""


@dataclass(frozen=True)
class Costs:
    """What the estimate of cost rests on.

    Attributes
    ----------
    images
        Training images.
    side
        Of an image, in pixels.
    classes
        Of the classifier.
    rates
        Training images per second of a network, as measured; empty where nothing was.
    tflops
        Assumed otherwise.
    processes
        Cells at once.
    """

    images: int
    side: int
    classes: int
    rates: Mapping[str, float]
    tflops: float
    processes: int


def dry_run(
    cells: Sequence[Cell],
    left: Sequence[Cell],
    networks: Sequence[Network],
    recipes: Mapping[str, Recipe],
    costs: Costs,
    fewest: int = FEWEST,
) -> Page:
    """Return the page that ``--dry-run`` prints.

    Parameters
    ----------
    cells, left
        The grid, and its cells that have no row yet.
    networks
        Of the grid.
    recipes
        How each is trained, by name.
    costs
        What the estimate rests on.
    fewest
        Fewest blocks of a layer that is pruned.
    """
    parts, lines, total = [], [], 0.0
    for network in networks:
        model = network.make(costs.classes, costs.side).eval()
        own = sorted({(c.block, c.sparsity) for c in cells if c.network == network.name and c.method != DENSE})
        if own:
            parts.append(
                Part(f"Real sparsity of {network.name}", (WORDS, sparsity_table(model, network.name, own, fewest)))
            )
        macs = count_macs(model, torch.zeros(2, 3, costs.side, costs.side))
        epochs = recipes[network.name].training.epochs
        rate = costs.rates.get(network.name, costs.tflops * 1e12 / (6 * macs))
        count = sum(cell.network == network.name for cell in cells)
        waiting = sum(cell.network == network.name for cell in left)
        seconds = costs.images * epochs / rate
        total += waiting * seconds
        lines.append(
            (
                network.name,
                f"{sum(p.numel() for p in model.parameters()):,}",
                f"{macs / 1e9:.2f}",
                f"{6 * macs * costs.images * epochs / 1e18:.2f}",
                f"{rate:,.0f}{'' if network.name in costs.rates else ' (guess)'}",
                duration(seconds),
                f"{waiting} of {count}",
            )
        )
    headings = ("network", "parameters", "GMACs", "EFLOP per cell", "images/s", "time per cell", "cells left")
    words = (
        f"{costs.images:,} training images of {costs.side} pixels. What is left takes about "
        f"{duration(total / costs.processes)} with {costs.processes} at once. Rates are those of rows in OUT where "
        f"there are any, else a guess of {costs.tflops:g} TFLOP/s: three times a forward pass, two operations for each "
        "multiplication."
    )
    abouts = dict.fromkeys(recipe.about for recipe in recipes.values())
    parts.append(Part("Cost", (words, Table(headings, tuple(lines)), *(f"{about}." for about in abouts))))
    parts.append(Part("Errata of the paper", ERRATA))
    return Page("ImageNet: what will be measured", "", tuple(parts))


WORDS = (
    "Layers of fewer blocks than --fewest-blocks stay dense, the others keep k = round((1 - s) n) of n. Real sparsity "
    "is that of all convolution and linear weights, 'mine' as counted here and 'paper' as printed."
)


def sparsity_table(model: nn.Module, network: str, at: Sequence[tuple[int, float]], fewest: int = FEWEST) -> Table:
    """Return nominal and real sparsities, the paper's beside ours where it has them."""
    lines = []
    for block, sparsity in at:
        if not block:
            continue
        found = removal(model, block, sparsity, fewest)
        published = REAL_SPARSITY.get((block, round(sparsity, 4))) if network == "resnet50" else None
        accuracy = TABLE_1.get(("sa++", block, round(sparsity, 4))) if network == "resnet50" else None
        lines.append(
            (
                str(block),
                f"{100 * sparsity:g}",
                f"{100 * found.real:.1f}",
                "" if published is None else str(published),
                f"{found.dense_layers} of {found.layers}",
                f"{found.kept:,} of {found.blocks:,}",
                "" if accuracy is None else f"{accuracy:.2f}",
            )
        )
    headings = ("block", "nominal %", "real %, mine", "real %, paper", "layers left dense", "blocks kept")
    return Table((*headings, "paper, SA++ top-1"), tuple(lines))
