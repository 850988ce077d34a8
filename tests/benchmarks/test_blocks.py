"""`benchmarks.blocks`: what is measured, on which examples, and how ours are held against the rest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks import __main__ as command
from benchmarks.blocks.data import PADDING, Examples, Shuffled, moved_and_mirrored
from benchmarks.blocks.measure import BlockBenchmark, quality
from benchmarks.blocks.presets import PRESETS
from benchmarks.blocks.report import OURS, report, standings
from benchmarks.blocks.tasks import TASKS, Parts, Task
from benchmarks.cifar import read
from benchmarks.criteo.network import FIRST_LAYER
from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.methods import METHODS
from benchmarks.grid.row import Row, summary
from structprune.methods import Training

NAMES = [one.name for one in METHODS]
SMALL, CIFAR = PRESETS


def task_named(name: str) -> Task:
    """A task of the benchmark."""
    return next(task for task in TASKS if task.name == name)


def tiny_parts(folder: Path) -> Parts:
    """Three classes that a linear map of twelve numbers tells apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 12, generator=generator)
    examples = Examples((inputs,), (inputs @ torch.randn(12, 3, generator=generator)).argmax(1))

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    return Parts(examples[:256], examples[256:320], examples[320:], network)


TINY = Task(
    "fashion", "a stand-in", tiny_parts, Training(epochs=4, lr=0.1), 8, F.cross_entropy, "accuracy", min_structures=1
)


# ---------------------------------------------------------------- the grid


def test_every_method_is_in_every_table() -> None:
    """The small preset has each method, random mask and ACDC with removals included, in each cell, three times."""
    cells = SMALL.cells([task.name for task in SMALL.tasks], NAMES, SMALL.seeds)
    assert len(cells) == len(set(cells))
    assert {"random", "acdc-sparsify", "sa++", DENSE} <= {cell.method for cell in cells}
    grid = {"fashion": 4, "criteo-10k": 4, "resnet20-10k": 1}
    for name, count in grid.items():
        own = [cell for cell in cells if cell.network == name]
        assert len(own) == 3 * (1 + count * (len(NAMES) - 1))
        assert {cell.seed for cell in own} == {0, 1, 2}
    resnet = {(cell.block, cell.sparsity) for cell in cells if cell.network == "resnet20-10k" and cell.method != DENSE}
    assert resnet == {(8, 0.9)}


def test_the_gpu_begins_with_the_most_telling_cells() -> None:
    """ResNet-20 at 8 x 8, 95 %: SA++, ACDC, ACDC with removals, exchanges, magnitude; then the whole grid, once."""
    cells = CIFAR.cells([task.name for task in CIFAR.tasks], NAMES, CIFAR.seeds)
    assert {cell.method for cell in cells[:6]} == {DENSE, "magnitude", "acdc", "acdc-sparsify", "sa++", "swaps"}
    assert {(cell.network, cell.block, cell.sparsity) for cell in cells[1:6]} == {("resnet20", 8, 0.95)}
    assert len(cells) == len(set(cells)) == 3 * 2 * (1 + 9 * (len(NAMES) - 1))


# ---------------------------------------------------------------- the data


def test_the_order_is_that_of_torchs_generator() -> None:
    """Equal seeds give equal batches, another seed others; no example comes twice in an epoch."""
    examples = Examples((torch.arange(50).float(),), torch.arange(50))

    def epoch(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([targets for _, targets in Shuffled(examples, 8)]).tolist()

    assert epoch(0) == epoch(0) != epoch(1)
    assert len(epoch(0)) == len(set(epoch(0))) == 48 == 8 * len(Shuffled(examples, 8))


def test_inputs_stay_with_their_targets() -> None:
    """Several inputs of one example and its target are drawn together."""
    examples = Examples((torch.arange(20).float(), 10 * torch.arange(20)), torch.arange(20))
    for (first, second), targets in Shuffled(examples, 5):
        assert torch.equal(first, targets.float()) and torch.equal(second, 10 * targets)


def test_images_are_moved_and_mirrored() -> None:
    """Each is the original, mirrored or not, at an offset of at most 4 pixels over zeros; both kinds occur."""
    images = torch.randn(40, 2, 6, 5)
    found = moved_and_mirrored(images)
    mirrored = []
    for before, after in zip(images, found, strict=True):
        hits = {flip for flip in (False, True) if any(torch.equal(after, one) for one in shifts(before, flip))}
        assert hits
        mirrored.append(True in hits)
    assert 0 < sum(mirrored) < len(mirrored)


def shifts(image: Tensor, flip: bool) -> list[Tensor]:
    """All windows of the padded image, mirrored if asked."""
    _, height, width = image.shape
    padded = F.pad(image, (PADDING,) * 4)
    windows = [padded[:, y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return [window.flip(2) if flip else window for window in windows]


def test_fashion_is_divided_within_the_training_images(data_folder: Path) -> None:
    """Validation and training images are those of the training file, each once; the test is the test file."""
    parts = task_named("fashion").prepare(data_folder)
    arrays = read(data_folder, "fashion_mnist_20k.npz.xz")
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (9000, 1000, 10_000)
    given = np.sort(arrays["x_train"].reshape(10_000, -1).astype(np.float64).sum(1))
    ours = torch.cat([parts.train.inputs[0], parts.validation.inputs[0]]).double()
    sums = ((ours * 0.3530 + 0.2860) * 255).sum(1).sort().values.numpy()
    np.testing.assert_allclose(sums, given, rtol=1e-4)
    assert np.array_equal(parts.test.targets.numpy(), arrays["y_test"])


def test_criteo_is_divided_in_the_order_of_time(data_folder: Path) -> None:
    """The last 2,000 rows are the test, and neither scales nor categories are taken from them."""
    parts = task_named("criteo-10k").prepare(data_folder)
    labels = read(data_folder, "criteo_10k.npz.xz")["label"][:10_000]
    assert np.array_equal(parts.train.targets.numpy(), labels[:7000])
    assert np.array_equal(parts.validation.targets.numpy(), labels[7000:8000])
    assert np.array_equal(parts.test.targets.numpy(), labels[8000:])
    numbers, identities = parts.train.inputs
    assert abs(float(numbers.mean())) < 1e-4 and abs(float(numbers.std(0).mean()) - 1) < 1e-3
    known = [set(column.unique().tolist()) for column in identities.T]
    for column, seen in zip(parts.test.inputs[1].T, known, strict=True):
        assert set(column.unique().tolist()) <= seen | {0}


def test_only_the_first_layer_of_a_click_network_loses_blocks(data_folder: Path) -> None:
    """As in the paper: 390 inputs, 39 fields of 10."""
    task = task_named("criteo-10k")
    structures = task.structures(task.prepare(data_folder).network(0), 10)
    assert {name for axis in structures.axes for name in axis.tensors()} == {FIRST_LAYER}
    assert structures.n == 39 * 40


# ---------------------------------------------------------------- one cell


@pytest.mark.parametrize("method", NAMES)
def test_every_method_is_measured(method: str, tmp_path: Path) -> None:
    """A small stand-in through each: half the blocks stay, and figures are those of validation and test."""
    benchmark = BlockBenchmark({"fashion": TINY}, tmp_path, torch.device("cpu"))
    found = benchmark.measure(Cell("fashion", method, 4, 0.5, 0), tmp_path / "state")
    assert {"validation accuracy", "test accuracy", "test loss"} <= set(found.values)
    assert len(found.recalls["test"]) == 3
    if method == DENSE:
        assert (found.values["test accuracy"] or 0.0) > 0.75
    else:
        # 4 x 3, 4 x 4 and (ragged) 1 x 4 blocks of 4 x 4.
        assert found.values["kept blocks"] == 6 + 8 + 2
        assert 0.3 < (found.values["real sparsity of the model"] or 0.0) < 0.5


def test_one_cell_gives_one_answer(tmp_path: Path) -> None:
    """The same cell, measured again: the same figures."""
    benchmark = BlockBenchmark({"fashion": TINY}, tmp_path, torch.device("cpu"))
    cell = Cell("fashion", "sa++", 4, 0.5, 1)
    first, second = (benchmark.measure(cell, tmp_path / name).values for name in ("a", "b"))
    assert first == second


def test_quality_of_classes() -> None:
    """Accuracy, loss and each class's recall, against counting."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    figures, recalls = quality(nn.Identity(), TINY, Examples((logits,), torch.tensor([0, 1, 1, 1])))
    assert figures["accuracy"] == 0.75
    assert recalls == (1.0, pytest.approx(2 / 3))
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 1, 1]))))


def test_quality_of_clicks() -> None:
    """The area under the curve is the fraction of (click, no click) pairs in order."""
    logits, labels = torch.tensor([0.1, 0.9, 0.4, -1.0, 0.3]), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    task = replace(TINY, measure="AUC", loss=F.binary_cross_entropy_with_logits)
    figures, _ = quality(nn.Identity(), task, Examples((logits,), labels))
    pairs = [float(a > b) for a in logits[labels == 1] for b in logits[labels == 0]]
    assert figures["AUC"] == pytest.approx(sum(pairs) / len(pairs))


# ---------------------------------------------------------------- the page


def row(method: str, seed: int, validation: float, test: float) -> Row:
    """A measured cell."""
    at = (0, 0.0) if method == DENSE else (4, 0.9)
    values = {"validation accuracy": validation, "test accuracy": test, "test loss": 1 - test}
    return Row(Cell("fashion", method, *at, seed), values, {}, recalls={"test": (test, test)})


def rows(figures: dict[str, tuple[float, float]], spread: float = 0.0) -> list[Row]:
    """Three seeds of each method, whose test figures differ by ``spread``."""
    return [
        row(method, seed, validation, test + (seed - 1) * spread)
        for method, (validation, test) in figures.items()
        for seed in range(3)
    ]


def test_ours_is_chosen_on_validation_examples() -> None:
    """The one with the best validation figure stands for ours, though another of ours is better in the test."""
    figures = dict.fromkeys(OURS, (0.5, 0.9)) | {OURS[0]: (0.6, 0.7), "acdc": (0.9, 0.8)}
    (found,) = standings(TINY, rows(figures))
    assert found[1] == OURS[0]
    assert found[2].mean == pytest.approx(0.7)
    assert found[4].mean == pytest.approx(0.9)
    assert not found[5]


@pytest.mark.parametrize(("spread", "within"), [(0.01, True), (0.001, False)])
def test_within_one_standard_deviation_of_the_best(spread: float, within: bool) -> None:
    """Half a point below the best, whose seeds differ by a point, or by a tenth."""
    figures = dict.fromkeys(OURS, (0.5, 0.8)) | {"acdc": (0.9, 0.805)}
    (found,) = standings(TINY, rows(figures, spread))
    assert found[5] is within


def test_a_cell_without_all_of_ours_is_not_judged() -> None:
    """An unfinished grid makes no claims."""
    assert not standings(TINY, rows({OURS[0]: (0.5, 0.8), "acdc": (0.5, 0.8)}))


def test_a_page_without_rows_is_refused() -> None:
    """With what to do."""
    with pytest.raises(ValueError, match="Run the benchmark first"):
        report([])


# ---------------------------------------------------------------- the command


def test_a_dry_run_tells_the_time_and_trains_nothing(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of cells, about how long, and the cells; no file is written."""
    out = tmp_path / "out"
    given = ["--dry-run", "--tasks", "criteo-10k", "--methods", DENSE, "sa++", "--data", str(data_folder)]
    assert command.main([*given, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "15 cells, 15 of them to be measured: about" in said
    assert "criteo-10k, sa++, 5 x 5 blocks, 97%, seed 2" in said
    assert not out.exists()


def test_absent_data_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing takes their place."""
    assert command.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "Expected" in capsys.readouterr().err


def test_a_run_goes_on_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are kept by --resume and refused without; what is done is not done again; the page is written."""
    asked: list[Cell] = []

    def measured(self: BlockBenchmark, cell: Cell, folder: Path) -> object:
        asked.append(cell)
        return original(replace_tasks(self), cell, folder)

    def replace_tasks(benchmark: BlockBenchmark) -> BlockBenchmark:
        return replace(benchmark, tasks={"fashion": TINY})

    original = BlockBenchmark.measure
    monkeypatch.setattr(BlockBenchmark, "measure", measured)
    monkeypatch.setattr(BlockBenchmark, "seconds", lambda self, cells: 1.0 * len(cells))
    given = ["--tasks", "fashion", "--methods", DENSE, "random", "--seeds", "1", "--data", str(tmp_path)]
    given += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert command.main(given) == 0
    assert len(asked) == 5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"rows", "rows.json", "table.md", "report.html"}
    assert command.main(given) == 2
    assert "--resume" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "rows")  # a checkout has the file of all rows alone
    assert command.main(given) == 2
    assert command.main([*given, "--resume"]) == 0
    assert len(asked) == 5
    more = [name if name != "random" else "gmp" for name in given]
    assert command.main([*more, "--resume", "--minutes", "0.0000001"]) == command.UNFINISHED
    assert len(asked) == 5


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    """Its row says so, and the mean of the others leaves it out."""
    found = [*rows({"acdc": (0.5, 0.8)}), replace(row("acdc", 3, 0.0, 0.0), values={"diverged": 1.0})]
    assert (summary(found, "test accuracy").count, summary(found, "test accuracy").diverged) == (3, 1)
