"""Permuted blocks: digits' second layer as trained, planted blocks, and one turn of each kind from equal states.

*Efficacy* is the part of the way from the given order to unstructured pruning: ``(kept - given) / (best entries -
given)``. Planted matrices (synthetic: half-normal values in random blocks, 1 % of that elsewhere, rows and columns
shuffled) have orders at which it is nearly 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.solvers.digits import trained_network
from benchmarks.solvers.measure import interleaved
from benchmarks.solvers.permutation_baselines import given_order, random_orders, sorted_orders, unstructured_value
from benchmarks.solvers.row import Row, Verdict
from solvers.permutation import BlockMatrix, PermutedBlocks, PermutedResult, assignment_step, swap_step

__all__ = ["digits_matrix", "planted_matrix", "rows", "verdicts"]

FAMILY = "permutation"
#: Runs that take a few seconds on 1024 x 512.
RESTARTS, KICKS = 5, 5

#: Verdicts: least efficacy of assignments on planted blocks, most of random orders there.
_PLANTED, _RANDOM = 0.95, 0.20

#: Instance of verdict T10, of which the time counts.
JUDGED = "digits 16x16, 50% kept"

#: Verdict T10: least rise of the kept fraction of energy at 16 x 16, half kept, and its time in seconds.
_RISE, _SECONDS = 0.15, 5.0


def digits_matrix(block: int, fraction: float, balanced: bool) -> BlockMatrix:
    """Squared weights 1024 x 512 of the trained network's second layer, of which ``fraction`` of the blocks stays."""
    weight = trained_network()[2].weight.detach().double().numpy().T  # type: ignore[union-attr,operator]
    return BlockMatrix(weight**2, (block, block), int(1024 * 512 // block**2 * fraction), balanced=balanced)


def planted_matrix(seed: int, block: int, size: int = 64) -> BlockMatrix:
    """A shuffled matrix ``(size, size)`` whose value is in half of its blocks."""
    rng = np.random.default_rng(seed)
    grid = size // block
    planted = np.zeros(grid * grid, dtype=bool)
    planted[rng.permutation(grid * grid)[: grid * grid // 2]] = True
    whole = np.kron(planted.reshape(grid, grid), np.ones((block, block)))
    values = np.abs(rng.normal(size=(size, size))) * np.maximum(whole, 0.01)
    return BlockMatrix(values[rng.permutation(size)][:, rng.permutation(size)], (block, block), grid * grid // 2)


def rows(quick: bool) -> list[Row]:
    """Every method on every instance; ``quick`` takes planted matrices only."""
    found = []
    for block in (4, 8):
        for seed in range(3 if quick else 10):
            found += _compared(f"planted {block}x{block}, seed {seed}", planted_matrix(seed, block), 20, 1)
    found += [_turns(seed) for seed in range(5 if quick else 100)]
    for block in () if quick else (16, 32):
        for fraction in (0.5, 0.25):
            for balanced in (False, True):
                name = f"digits {block}x{block}, {fraction:.0%} kept{', balanced' if balanced else ''}"
                found += _compared(name, digits_matrix(block, fraction, balanced), RESTARTS, 3 if name == JUDGED else 1)
    return found


def _compared(name: str, matrix: BlockMatrix, restarts: int, repeats: int) -> list[Row]:
    methods: dict[str, Callable[[], PermutedResult]] = {
        "given order": lambda: given_order(matrix),
        "random, best of 200": lambda: random_orders(matrix, 20 if matrix.values.size > 1 << 16 else 200),
        "sorted": lambda: sorted_orders(matrix),
        "swaps (TETRIS)": lambda: PermutedBlocks(step=swap_step).solve(matrix),
        "assignments": lambda: PermutedBlocks().solve(matrix),
        f"assignments, {restarts} restarts": lambda: PermutedBlocks(restarts=restarts).solve(matrix),
        f"assignments, {KICKS} kicks": lambda: PermutedBlocks(kicks=KICKS).solve(matrix),
    }
    if matrix.values.size > 1 << 16:
        methods["random, best of 20"] = methods.pop("random, best of 200")
    measured = interleaved(methods, repeats, memory=matrix.values.size > 1 << 16)
    given = measured["given order"].answer.objective
    entries = int(measured["given order"].answer.selections[0].sum())
    best = unstructured_value(matrix, entries)
    total = float(matrix.values.sum())
    return [
        Row(
            FAMILY,
            name,
            method,
            one.answer.objective,
            one.seconds,
            one.answer.bound,
            one.answer.gap,
            one.peak_mib,
            one.repeats,
            {
                "kept": one.answer.objective / total,
                "efficacy": (one.answer.objective - given) / (best - given),
                "unstructured": best / total,
                "cpu_seconds": one.cpu_seconds,
            },
        )
        for method, one in measured.items()
    ]


def _turns(seed: int) -> Row:
    """One axis ordered once, by assignment and by swaps, from the same orders and blocks."""
    rng = np.random.default_rng(seed)
    earnings = rng.lognormal(sigma=float(rng.uniform(0.1, 2.0)), size=(48, 6))
    segments = np.repeat(np.arange(6), 8)
    earned = [float(earnings[step(earnings, segments), segments].sum()) for step in (assignment_step, swap_step)]
    facts = {"assignment": earned[0], "swaps": earned[1]}
    return Row(FAMILY, f"one turn, seed {seed}", "assignment", earned[0], 0.0, facts=facts)


def verdicts(rows: list[Row]) -> list[Verdict]:
    """T10 and the targets of planted blocks; those without rows are left out."""
    return [*_digits_verdict(rows), *_planted_verdict(rows), *_turn_verdict(rows)]


def _digits_verdict(rows: list[Row]) -> list[Verdict]:
    kept = {row.method: row for row in rows if row.instance == JUDGED}
    if not kept:
        return []
    row = kept["assignments"]
    rise = float(row.facts["kept"]) - float(kept["given order"].facts["kept"])
    measured = f"{rise:+.3f} of the energy in {row.seconds:.2f} s ({float(row.facts['cpu_seconds']):.2f} CPU s)"
    asked = f"at least {_RISE:+.2f} kept energy on the trained 1024 x 512 at 50 %, 16 x 16, in {_SECONDS:g} s"
    return [Verdict("T10", asked, measured, rise >= _RISE and row.seconds <= _SECONDS)]


def _planted_verdict(rows: list[Row]) -> list[Verdict]:
    planted = [row for row in rows if row.instance.startswith("planted")]
    if not planted:
        return []
    least = min(float(row.facts["efficacy"]) for row in planted if row.method == "assignments, 20 restarts")
    most = max(float(row.facts["efficacy"]) for row in planted if row.method.startswith("random"))
    asked = f"planted blocks recovered with efficacy {_PLANTED:.0%} at least, where random orders reach {_RANDOM:.0%}"
    measured = f"least {least:.1%} with 20 restarts, random {most:.1%} at most"
    return [Verdict("TETRIS", asked, measured, least >= _PLANTED and most <= _RANDOM)]


def _turn_verdict(rows: list[Row]) -> list[Verdict]:
    turns = [row for row in rows if row.instance.startswith("one turn")]
    if not turns:
        return []
    leads = [float(row.facts["assignment"]) / float(row.facts["swaps"]) - 1.0 for row in turns]
    measured = f"{round(min(leads), 9) + 0.0:+.2%} to {max(leads):+.2%} over {len(turns)} turns"
    return [Verdict("TETRIS turn", "one assignment never below one turn of swaps", measured, min(leads) >= -1e-12)]
