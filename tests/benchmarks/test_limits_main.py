"""Facts of the pruning-limit benchmark as a whole: command line, rows, page, resumption, missing settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.limits import __main__ as limits
from benchmarks.limits.measure import Falling, structures_of
from benchmarks.limits.networks import Perceptron, initialise
from benchmarks.limits.row import read_rows
from benchmarks.limits.table import as_markdown
from benchmarks.limits.tasks import TASKS, MissingSettingError, Options, Published
from structprune.limit import removal_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return where a quick run wrote its results, and its network."""
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from a second thread, and wait for it on a busy machine
    assert limits.main(["--quick", "--out", str(out), "--work", str(work), "--probes", "2"]) == 0
    torch.set_num_threads(threads)
    return out, work


def test_a_quick_run_writes_rows_page_and_picture(folders: tuple[Path, Path]) -> None:
    """One row with every estimator, a truth between two measured sizes, and files that show them."""
    folder = folders[0] / "digits-5e-4"
    (row,) = read_rows(folder)
    assert [one.name for one in row.limit.estimates] == ["paper", "generic", "trust 0.05", "trust 0.1", "constructive"]
    (truth,) = row.truths
    most, failed = row.limit.loss + row.limit.epsilon.value, truth.at(truth.failed)
    assert truth.size.loss <= most
    assert failed is None or failed.loss > most and failed.kept < truth.size.kept
    assert (folder / limits.PLOT).stat().st_size > 5000
    page = (folder / "table.md").read_text()
    assert "no figure means anything" in page and "Not an experiment of Zhang et al." in page
    assert row.command in page and row.commit and row.versions["torch"] == torch.__version__


def test_the_truth_never_exceeds_the_constructive_bound(folders: tuple[Path, Path]) -> None:
    """Retraining is measured at the size that the constructive estimate built."""
    (row,) = read_rows(folders[0] / "digits-5e-4")
    sizes = [round(point.keep_fraction, 9) for point in row.truths[0].points]
    assert round(row.limit["constructive"].keep_fraction.value, 9) in sizes


def test_resume_keeps_rows_of_the_same_settings(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run with --resume measures nothing; with another seed of estimates it does."""
    calls: list[object] = []

    def counted(*arguments: object) -> list[object]:
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "measure", counted)
    out, work = map(str, folders)
    common = ["--quick", "--out", out, "--work", work, "--resume", "--probes"]
    assert limits.main([*common, "2"]) == 0 and not calls
    assert "already there" in capsys.readouterr().out
    assert limits.main([*common, "2", "--tau", "0.2"]) == limits.INTERRUPTED and len(calls) == 1
    assert "--resume" in capsys.readouterr().err


def test_rows_survive_their_file(folders: tuple[Path, Path]) -> None:
    """What is read back makes the same page."""
    folder = folders[0] / "digits-5e-4"
    assert as_markdown(read_rows(folder), limits.PLOT) == (folder / "table.md").read_text()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "rows.json").write_text('[{"task": "fc5"}]')
    with pytest.raises(ValueError, match="Expected rows of limits"):
        read_rows(tmp_path)


def test_help_lists_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    """All eight experiments of the paper and the small ones are named."""
    with pytest.raises(SystemExit):
        limits.main(["--help"])
    text = capsys.readouterr().out
    assert all(task.name in text for task in TASKS) and len([t for t in TASKS if isinstance(t, Published)]) == 8


def test_without_a_task_the_way_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs unasked."""
    with pytest.raises(SystemExit):
        limits.main([])
    assert "Expected --task" in capsys.readouterr().err


def test_missing_data_end_with_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and the layout that is expected."""
    status = limits.main(["--task", "resnet18-cifar100", "--data", str(tmp_path), "--work", str(tmp_path / "work")])
    assert status == 2 and "cifar-100-python" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet18-tinyimagenet", "resnet50-tinyimagenet"])
def test_settings_that_nobody_published_must_be_given(tmp_path: Path, name: str) -> None:
    """TinyImageNet's penalties are in no published file, and none is made up."""
    task = next(task for task in TASKS if task.name == name)
    with pytest.raises(MissingSettingError, match="--penalty and --rate"):
        task.prepare(Options(data=tmp_path, work=tmp_path))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_an_epsilon_is_a_positive_number(text: str) -> None:
    """Or batch_std; anything else ends with a usage message."""
    with pytest.raises(SystemExit):
        limits.main(["--task", "fc5", "--epsilon", text])


@pytest.mark.parametrize("kind", ["weights", "blocks", "channels"])
def test_supports_fall_and_are_nested(kind: str) -> None:
    """From everything down; counted parameters are those of the masks; later supports lie within earlier ones."""
    model = initialise(Perceptron((6, 5, 4, 3)), 0).eval()
    supports = Falling(removal_path(model, structures_of(kind, model, torch.randn(2, 6), (1, 2))))
    kept = supports.kept
    assert kept[0] == supports.total == sum(p.numel() for p in model.parameters()) and (np.diff(kept) <= 0).all()
    before = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for position in range(len(kept)):
        masks = {**{name: torch.ones_like(mask) for name, mask in before.items()}, **supports.kept_mask(position)}
        assert sum(int(mask.sum()) for mask in masks.values()) == kept[position]
        assert all(bool((before[name] | ~mask).all()) for name, mask in masks.items())
        before = masks


def test_a_shortened_experiment_is_not_called_the_papers(tmp_path: Path) -> None:
    """With fewer epochs the notes say so; the untouched settings say whose they are."""
    fc5 = next(task for task in TASKS if task.name == "fc5")
    assert isinstance(fc5, Published)
    short = fc5._notes(fc5.recipe, Options(None, tmp_path, batches_per_epoch=3))
    whole = fc5._notes(fc5.recipe, Options(None, tmp_path))
    assert "not the paper's experiment" in short[-1] and "as published" in whole[-1]


def test_a_short_published_training_runs_end_to_end(tmp_path: Path, data_folder: Path) -> None:
    """FC5 with two batches of one epoch: trained, evaluated without augmentation, checkpointed."""
    fc5 = next(task for task in TASKS if task.name == "fc5")
    options = Options(data_folder, tmp_path, epochs=1, batches_per_epoch=2, examples=256, held_out=128)
    prepared = fc5.prepare(options)
    assert isinstance(prepared.model, nn.Module) and not prepared.model.training
    assert sum(len(targets) for _, targets in prepared.data) == 256
    assert (tmp_path / "fc5" / "checkpoint.pt").is_file()
