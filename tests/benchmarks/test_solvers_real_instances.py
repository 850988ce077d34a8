"""The committed problems of trained networks, and how they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cifar import MissingDataError, data_folder
from benchmarks.solvers.allocation_baselines import BASELINES
from benchmarks.solvers.real_instances import FOLDER, real_problems
from benchmarks.solvers.real_scores import INSTANCES, resnet
from solvers.problem import SelectionProblem
from structprune.budget import Budget
from structprune.criteria import Fisher

PROBLEMS = real_problems()


def test_every_instance_is_there() -> None:
    """The folder holds what `real_scores` makes, and nothing else."""
    assert set(PROBLEMS) == {one.name for one in INSTANCES}


@pytest.mark.parametrize("given", PROBLEMS.values(), ids=PROBLEMS)
def test_the_page_names_each_file(given: SelectionProblem) -> None:
    """The fingerprint beside the command is that of the file."""
    assert f"| {given.fingerprint[:12]} |" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("given", PROBLEMS.values(), ids=PROBLEMS)
def test_budgets_bind(given: SelectionProblem) -> None:
    """Not everything fits, something does, and every group can keep all of its structures."""
    assert not given.evaluate([len(group) - 1 for group in given.groups]).feasible
    assert BASELINES[0].choose(given) is not None
    assert all(group.levels[-1] == group.order.size for group in given.groups)


def test_the_folder_is_small() -> None:
    """Committed problems stay below 5 MB together."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5 * 10**6


def test_no_files(tmp_path: Path) -> None:
    """An empty folder is named, with the command that fills it."""
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.solvers\.real_scores"):
        real_problems(tmp_path)


def test_making_one() -> None:
    """A trained ResNet-20 gives a problem with its macs and the fraction of them that was asked for."""
    try:
        folder = data_folder()
    except MissingDataError as error:
        pytest.skip(str(error))
    one = replace(
        INSTANCES[0], task=resnet("resnet20", 8), criterion=Fisher(None), budget=Budget(macs=0.25, params=0.5)
    )
    given, _ = one.made(folder)
    macs, params = given.used([len(group) - 1 for group in given.groups])
    assert macs == 40_551_040
    assert given.capacities[0].limit == macs // 4
    assert given.capacities[1].limit == params // 2
    assert given.size == 352
