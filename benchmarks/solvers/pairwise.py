"""Selections without refit: the hidden units of both layers of a network trained on digits (T9).

Q is the Gauss-Newton matrix of gates on the 1536 units over 1,000 training images: the second-order loss, in nats, of
closing gates. Cross entropy and accuracy are measured on the held-out part with the chosen units set to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.solvers.digits import held_out, trained_network, training_part
from benchmarks.solvers.measure import interleaved
from benchmarks.solvers.row import Row, Verdict
from solvers.pairwise import Pairwise
from solvers.quadratic import BoolArray, FloatArray, PairwiseProblem

__all__ = ["gate_curvature", "held_out_loss", "rows", "verdicts"]

FAMILY = "pairwise"
DIAGONAL, GREEDY, SWAPS, RANDOM = "diagonal", "greedy, all pairs (ours)", "swaps and kicks (ours)", "random"
PRUNED = (460, 768, 1075)
EXAMPLES = 1000


@cache
def gate_curvature(examples: int = EXAMPLES) -> FloatArray:
    """``E[J'(diag p - pp')J]``, ``(1536, 1536)``: J are the derivatives of the logits by gates on the hidden units."""
    inputs = training_part()[0]
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs))[:examples])
    lower, middle, upper = _layers()
    with torch.no_grad():
        first = F.relu(lower(inputs[chosen]))
        second = F.relu(middle(first))
        chances = upper(second).softmax(1)
        last = upper.weight[None]  # (1, 10, 512)
        through = (last * (second > 0)[:, None]) @ middle.weight  # of the logits by the first layer's outputs
        slopes = torch.cat([through * first[:, None], last * second[:, None]], dim=2)
        roots = chances.sqrt()
        # diag p - pp' = S'S with S = diag(sqrt p) - sqrt(p) p'.
        factor = torch.diag_embed(roots) - roots[:, :, None] * chances[:, None, :]
        rows = (factor @ slopes).flatten(0, 1).double().numpy()
    return np.asarray(rows.T @ rows / examples)


def _layers() -> list[nn.Linear]:
    return [module for module in trained_network() if isinstance(module, nn.Linear)]


def held_out_loss(kept: BoolArray) -> tuple[float, float]:
    """Cross entropy in nats and accuracy on the held-out part with the other units set to zero."""
    inputs, labels = held_out()
    mask = torch.from_numpy(kept).float()
    lower, middle, upper = _layers()
    with torch.no_grad():
        first = F.relu(lower(inputs)) * mask[:1024]
        logits = upper(F.relu(middle(first)) * mask[1024:])
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())


def rows(quick: bool) -> list[Row]:
    """Diagonal, greedy, swaps and random at three sizes."""
    quadratic = gate_curvature(100 if quick else EXAMPLES)
    count = len(quadratic)
    base, accuracy = held_out_loss(np.ones(count, dtype=bool))
    found = [
        Row(FAMILY, "all 1536 units", "dense", 0.0, 0.0, facts={"cross_entropy": base, "accuracy": accuracy, "cut": 0})
    ]
    for cut in PRUNED[1:2] if quick else PRUNED:
        problem = PairwiseProblem.keeping(quadratic, np.zeros(count), count - cut)
        methods: dict[str, Callable[[], BoolArray]] = {
            RANDOM: lambda cut=cut: _kept(np.random.default_rng(0).permutation(count), count - cut),  # type: ignore[misc]
            DIAGONAL: lambda cut=cut: _kept(np.argsort(-np.diag(quadratic)), count - cut),  # type: ignore[misc]
            GREEDY: lambda problem=problem: _solved(Pairwise(swaps=False), problem),  # type: ignore[misc]
            SWAPS: lambda problem=problem: _solved(Pairwise(), problem),  # type: ignore[misc]
        }
        measured = interleaved(methods, repeats=1 if quick else 3)
        certified = interleaved(
            {"bound": lambda problem=problem: Pairwise(bound=True).solve(problem)},  # type: ignore[misc]
            repeats=1 if quick else 3,
            memory=False,
        )["bound"]
        assert certified.answer.bound is not None
        bound = certified.answer.bound.value
        for name, one in measured.items():
            loss = problem.loss(one.answer)
            entropy, accuracy = held_out_loss(one.answer)
            facts: dict[str, float | int | str | bool] = {
                "cross_entropy": entropy,
                "accuracy": accuracy,
                "cut": cut,
                "cpu_seconds": one.cpu_seconds,
            }
            if name == SWAPS:
                facts["cpu_seconds_with_bound"] = certified.cpu_seconds
            found.append(
                Row(
                    FAMILY,
                    f"{cut} of {count} units removed",
                    name,
                    loss,
                    one.seconds,
                    bound=bound,
                    gap=1 - bound / loss,
                    peak_mib=one.peak_mib,
                    repeats=one.repeats,
                    facts=facts,
                )
            )
    return found


def _kept(order: np.ndarray, keep: int) -> BoolArray:
    kept = np.zeros(len(order), dtype=bool)
    kept[order[:keep]] = True
    return kept


def _solved(solver: Pairwise, problem: PairwiseProblem) -> BoolArray:
    selection = solver.solve(problem).selection
    assert selection is not None
    return selection


def verdicts(rows: list[Row]) -> list[Verdict]:
    """T9."""
    swaps = [row for row in rows if row.method == SWAPS]
    verdicts = []
    if swaps:
        slowest = max(float(row.facts["cpu_seconds"]) for row in swaps)
        measured = f"at most {slowest:.2f} s"
        verdicts.append(Verdict("T9", "n = 1536 in 0.5 s of processor time", measured, slowest <= 0.5))
        gaps = [float(row.gap or 0.0) for row in swaps]
        whole = max(float(row.facts["cpu_seconds_with_bound"]) for row in swaps)
        verdicts.append(
            Verdict(
                "T9",
                "certified gap at most 10 %, in 3 s of processor time with the bound",
                f"{100 * min(gaps):.2g} to {100 * max(gaps):.2g} %, at most {whole:.2f} s",
                max(gaps) <= 0.1 and whole <= 3.0,
            )
        )
    dense = next((row for row in rows if row.method == "dense"), None)
    half = {row.method: row for row in rows if row.facts["cut"] == 768}
    if dense is not None and {SWAPS, DIAGONAL} <= half.keys():
        base = float(dense.facts["cross_entropy"])
        ours, other = (float(half[name].facts["cross_entropy"]) - base for name in (SWAPS, DIAGONAL))
        verdicts.append(
            Verdict(
                "T9",
                "half removed: cross entropy rises at most half as much as by the diagonal",
                f"{ours:.3f} against {other:.3f} nats",
                ours <= 0.5 * other,
            )
        )
    return verdicts
