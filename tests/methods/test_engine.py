"""The training engine: runs that are killed and go on, damaged checkpoints, several processes with one mask."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from structprune.data import check_data
from structprune.methods import ACDC, DenseTraining, Training, Uniform, engine
from structprune.methods.checkpoint import CheckpointError, Checkpoints
from structprune.methods.engine import steps_per_epoch
from structprune.methods.harness import Harness
from structprune.methods.ranks import part_of_batch, same_on_all_ranks
from structprune.structures import blocks
from tests.methods.training_run import BATCHES, batches, network

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_program(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the small training program, on several ranks if wished."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*launch, "-m", "tests.methods.training_run", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def outcome(path: Path) -> dict[str, Any]:
    """What a program wrote."""
    return torch.load(path, weights_only=True)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two outcomes are equal bit for bit."""
    weights = all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    return weights and torch.equal(first["selection"], second["selection"]) and first["losses"] == second["losses"]


@pytest.mark.parametrize("method", ["acdc", "sequential attention"])
def test_killed_and_taken_up_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch, then the same command again: bit for bit the run that nobody stopped."""
    whole, again, folder = tmp_path / "whole", tmp_path / "again", tmp_path / "folder"
    settings = ("--method", method, "--norm")
    assert run_program(whole, *settings).returncode == 0
    killed = run_program(again, *settings, "--folder", folder, "--kill-at", 5 * BATCHES + 3)
    assert killed.returncode == -signal.SIGKILL and not again.exists()
    assert [path.name for path in Checkpoints(folder, {}).paths()] == ["step-000000030.ckpt", "step-000000024.ckpt"]
    finished = run_program(again, *settings, "--folder", folder)
    assert finished.returncode == 0, finished.stderr
    assert same(outcome(whole), outcome(again))


def test_two_ranks_keep_what_one_process_keeps(tmp_path: Path) -> None:
    """Without batch statistics two processes see the losses of one on the whole batch, to 1e-6, and keep the same."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run_program(alone).returncode == 0
    spread = run_program(together, processes=2)
    assert spread.returncode == 0, spread.stderr
    first, second = outcome(alone), outcome(together)
    assert torch.equal(first["selection"], second["selection"])
    np.testing.assert_allclose(first["losses"], second["losses"], rtol=1e-6)


def fitted(folder: Path | None, **changes: Any) -> Any:
    """A short run in this process."""
    model = network(norm=False)
    method = ACDC(training=Training(**{"epochs": 6, "lr": 0.05, **changes}), folder=folder, cycles=1)
    return method.fit(
        model, blocks(model, (4, 4)), batches(), F.cross_entropy, keep=Uniform(0.5, min_structures=1), seed=3
    )


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """The newest is damaged: a warning names it, and the one before leads to the same end."""
    whole = fitted(tmp_path)
    newest = Checkpoints(tmp_path, {}).paths()[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newest.name} .* is damaged; going on from step-000000030"):
        again = fitted(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_damaged_checkpoints_alone_are_refused(tmp_path: Path) -> None:
    """Where none is whole, nothing is trained and nothing lost."""
    fitted(tmp_path)
    for path in Checkpoints(tmp_path, {}).paths():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="Got only damaged ones: step-000000036.ckpt, step-000000030.ckpt"):
        fitted(tmp_path)
    assert len(Checkpoints(tmp_path, {}).paths()) == 2


@pytest.mark.parametrize(("change", "told"), [({"lr": 0.1}, "with lr 0.1"), ({"epochs": 7}, "with epochs 7")])
def test_checkpoints_of_other_settings_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    """A folder belongs to one run."""
    fitted(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        fitted(tmp_path, **change)


def test_checkpoints_of_another_method_are_refused(tmp_path: Path) -> None:
    """The method's own settings count, too."""
    fitted(tmp_path)
    model = network(norm=False)
    method = ACDC(training=Training(epochs=6, lr=0.05), folder=tmp_path, cycles=1)
    with pytest.raises(CheckpointError, match="keep"):
        method.fit(
            model, blocks(model, (4, 4)), batches(), F.cross_entropy, keep=Uniform(0.75, min_structures=1), seed=3
        )


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    """The last checkpoint is the end: the loss is not called any more."""
    first = fitted(tmp_path)
    model = network(norm=False)
    method = ACDC(training=Training(epochs=6, lr=0.05), folder=tmp_path, cycles=1)

    def never(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise AssertionError("trained again")

    found = method.fit(model, blocks(model, (4, 4)), batches(), never, keep=Uniform(0.5, min_structures=1), seed=3)
    assert found.history == first.history


def test_divergence_ends_the_run() -> None:
    """A loss that is not a number is refused with the step, the phase and what to do."""
    with pytest.raises(FloatingPointError, match=r"Got (nan|inf) up to step \d+ of 36 \(.*\)\. Lower"):
        fitted(None, lr=1e6, warm_up=0.0, momentum=0.0)


def test_bfloat16_trains_close_to_float32() -> None:
    """The forward pass in bfloat16 changes losses by less than its rounding allows, and not by nothing."""
    exact, rounded = fitted(None), fitted(None, precision="bfloat16")
    assert next(rounded.model.parameters()).dtype == torch.float32
    assert exact.history[-1].loss != rounded.history[-1].loss
    assert rounded.history[-1].loss == pytest.approx(exact.history[-1].loss, rel=0.1)


def test_a_loader_draws_the_same_each_time(tmp_path: Path) -> None:
    """A shuffling DataLoader, interrupted between epochs, goes on in the order that it would have had."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))

    def run(folder: Path, epochs_before_stop: int | None) -> list[float]:
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True, generator=torch.Generator())
        model, calls = network(norm=False), 0

        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if epochs_before_stop is not None and calls > epochs_before_stop * BATCHES:
                raise KeyboardInterrupt
            return F.cross_entropy(output, target)

        method = DenseTraining(training=Training(epochs=4, lr=0.05), folder=folder)
        found = method.fit(model, blocks(model, (4, 4)), loader, loss, keep=Uniform(0.0), seed=1)
        return [row.loss for row in found.history]

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", 2)
    assert run(tmp_path / "again", None) == whole


def test_the_callers_generators_stay_where_they_were() -> None:
    """Training draws from its own seed."""
    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    fitted(None)
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002


def test_what_was_drawn_before_changes_nothing() -> None:
    """A loader without a generator of its own draws from torch's: weights and batch norm statistics stay the same."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    found = []
    for drawn in (0, 7):
        torch.manual_seed(drawn)
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=40, shuffle=True, drop_last=True)
        model = network(norm=True)
        method = DenseTraining(training=Training(epochs=3, lr=0.05), min_phase_steps=1)
        found.append(method.fit(model, blocks(model, (4, 4)), loader, F.cross_entropy, keep=Uniform(0.0), seed=1))
    first, second = (one.model.state_dict() for one in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_large_batches_are_cut() -> None:
    """16 examples in pieces of at most 6 are 3 steps; every example is seen once in an epoch."""
    settings = Training(epochs=1, batch_size=6)
    data = check_data(batches())
    assert steps_per_epoch(data, settings) == 3 * BATCHES
    seen: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append(input.clone())
            return super().forward(input)

    model = nn.Sequential(nn.Identity(), Watching(20, 4))
    method = DenseTraining(training=settings, min_phase_steps=1)
    method.fit(model, blocks(model, (4, 4)), batches(), F.cross_entropy, keep=Uniform(0.0))
    rows = torch.cat(seen)
    assert sorted(rows[:, 0].tolist()) == sorted(torch.cat([inputs for inputs, _ in batches()])[:, 0].tolist())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"lr": -1.0}, "lr > 0"),
        ({"schedule": "linear"}, "a schedule out of"),
        ({"optimizer": "lbfgs"}, "an optimizer out of"),
        ({"precision": "float16"}, "a precision out of"),
        ({"clip": 0.0}, "clip at > 0"),
    ],
)
def test_mistaken_settings_are_refused(change: dict[str, Any], told: str) -> None:
    """Each with what is expected."""
    with pytest.raises(ValueError, match=told):
        Training(**change)


def test_rates() -> None:
    """Up over the warm-up, down a cosine, or constant."""
    cosine, constant = Training(warm_up=0.2), Training(warm_up=0.0, schedule="constant")
    assert [round(cosine.rate(step, 10), 4) for step in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert {constant.rate(step, 10) for step in range(10)} == {1.0}


def test_one_rank_takes_the_whole_batch() -> None:
    """Outside of a distributed launch nothing is divided and nothing compared."""
    batch = batches()[0]
    assert part_of_batch(batch) == (batch, 1.0)
    decided = torch.tensor([True, False])
    assert same_on_all_ranks(decided) is decided


def test_a_bar_that_nobody_sees_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method's status, which a GPU would have to stop for, is asked once an epoch and not at every step."""
    asked: list[int] = []
    status = Harness.status

    def counted(self: Harness) -> Any:
        asked.append(1)
        return status(self)

    monkeypatch.setattr(Harness, "status", counted)
    found = fitted(None)
    assert len(asked) == len(found.history) == 6


def test_the_bar_tells_loss_phase_and_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: the mean loss of the epoch so far, and the method's status."""
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr(engine, "Console", lambda **given: terminal)
    monkeypatch.setattr(engine, "BETWEEN_TEXTS", 0.0)
    model = network(norm=False)
    method = ACDC(training=Training(epochs=6, lr=0.05), cycles=1)
    method.fit(
        *(model, blocks(model, (4, 4)), batches(), F.cross_entropy),
        keep=Uniform(0.5, min_structures=1),
        seed=3,
        progress=True,
    )
    assert re.search(r"loss \d[.\d]* · sparse · kept 0\.5", stream.getvalue())


def test_accelerate_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the error names the extra that brings it."""
    monkeypatch.setattr("structprune.methods.engine.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Install structprune\[train\]"):
        fitted(None)
