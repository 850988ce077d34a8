"""The committed allocation problems of trained networks; see ``benchmarks/instances/README.md`` for what they are."""

from __future__ import annotations

from pathlib import Path

from solvers.problem import SelectionProblem

__all__ = ["FOLDER", "real_problems"]

FOLDER = Path(__file__).resolve().parent.parent / "instances"


def real_problems(folder: Path = FOLDER) -> dict[str, SelectionProblem]:
    """Read every problem of the folder, by name in alphabetical order.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    found = {path.stem: SelectionProblem.load(path) for path in sorted(folder.glob("*.npz"))}
    if not found:
        raise FileNotFoundError(
            f"Expected problems in {folder}. Got no .npz file. Make them: python -m benchmarks.solvers.real_scores"
        )
    return found
