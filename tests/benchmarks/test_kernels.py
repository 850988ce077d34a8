"""`python -m benchmarks.kernels`: who is compared, the clock, targets, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_kernels
from benchmarks.kernels import contenders, parts, training
from benchmarks.kernels.__main__ import UNFINISHED, Job, main
from benchmarks.kernels.cuda import CudaGrid
from benchmarks.kernels.numba_product import product_into
from benchmarks.kernels.parts import Cell, Convolution, Linear, Training
from benchmarks.kernels.row import DENSE, MODULE, Row
from benchmarks.kernels.table import page
from benchmarks.kernels.targets import verdicts
from benchmarks.kernels.timing import medians
from structprune.layers import CPU_JIT, ROWLOOP, unpack
from structprune.layers.triton_tiles import forward_tile

TIMES = {"F.linear": 100.0, "oneDNN packed": 80.0, "cpu-jit": 20.0, "rowloop": 10.0, "torch BSR": 40.0}
ROW = Row(
    "linear 1024x1024, 16 tokens, float32, 64x16, d=0.25",
    *("linear 1024x1024, 16 tokens", "float32", 64, 16, 0.25, "linear", (1024, 1024), 16),
    times_us=TIMES,
    samples=dict.fromkeys(TIMES, 9),
)


def job(row: Row = ROW, ran: list[str] | None = None) -> Job:
    """Return a job that gives a row, and counts that it ran."""

    def measure() -> Row:
        if ran is not None:
            ran.append(row.name)
        return row

    return Job(row.name, measure)


def broken() -> Row:
    """Fail as a wrong result does."""
    raise ArithmeticError("Expected the dense result. Got another.")


def test_a_ratio_is_to_the_best_dense_layer() -> None:
    """Ours is the generated kernel, dense the faster of the dense ones, and the library the fastest."""
    assert ROW.ratio == pytest.approx(20 / 80)
    assert ROW.library == "torch BSR"
    assert ROW.ratio_to_library == pytest.approx(20 / 40)
    assert replace(ROW, times_us={"NCHW": 4.0, "rowloop": 2.0}).ratio_to_library is None


def test_rows_survive_a_file() -> None:
    """A row is what its JSON says."""
    assert Row.from_json(json.loads(json.dumps(ROW.to_json()))) == ROW


def test_the_grid_names_every_cell_once() -> None:
    """Rows are found again by name, so names differ; the targets' shapes, types and blocks are in it."""
    cells = list(parts.cells(quick=False))
    assert len({str(cell) for cell in cells}) == len(cells)
    assert Cell(Linear(1024, 1024, 16), "float32", 64, 1, 0.5) in cells
    assert Cell(Linear(3072, 768, 1024), "bfloat16", 64, 16, 0.1) in cells
    assert any(isinstance(cell.layer, Convolution) and cell.layer.channels == 512 for cell in cells)
    assert {str(cell) for cell in parts.cells(quick=True)} <= {str(cell) for cell in cells}


def test_a_slow_call_is_sampled_less_often() -> None:
    """Patience bounds the samples of the one that has it, not of the others."""
    now = count(step=50_000_000)
    found = medians({"a": object, "b": object}, 9, {"b": 100_000_000}, clock=lambda: next(now))
    assert (found["a"].samples, found["b"].samples) == (9, 2)
    assert found["a"].us == found["b"].us == 50_000


@pytest.mark.parametrize("dtype", parts.DTYPES)
@pytest.mark.parametrize("layer", [Linear(96, 64, 5), Convolution(32, 6, 2)], ids=str)
def test_every_contender_gives_the_dense_result(layer: Linear | Convolution, dtype: str) -> None:
    """A measured row holds dense and own times; results were compared before."""
    row = contenders.measured(Cell(layer, dtype, 32, 16, 0.5), rounds=1)
    assert row.times_us["rowloop"] > 0
    assert set(row.times_us) & set(DENSE)
    with_libraries = isinstance(layer, Linear) and dtype == "float32"
    assert ({"torch BSR", "torch CSR", "scipy BSR"} <= set(row.times_us)) == with_libraries


def test_single_columns_leave_torch_bsr_out() -> None:
    """No square block divides a column."""
    row = contenders.measured(Cell(Linear(64, 32, 2), "float32", 64, 1, 0.5), rounds=1)
    assert "torch BSR" not in row.times_us
    assert "scipy BSR" in row.times_us


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that is off by more than rounding raises."""
    monkeypatch.setattr(contenders, "OURS_ON_CPU", (ROWLOOP,))
    monkeypatch.setattr(type(ROWLOOP), "linear", lambda self, x, packed, bias, activation: 2 * x @ unpack(packed).t())
    with pytest.raises(ArithmeticError, match="rowloop"):
        contenders.measured(Cell(Linear(32, 32, 2), "float32", 16, 16, 0.5), rounds=1)


@pytest.mark.parametrize("width", [1, 16])
def test_every_training_step_gives_the_dense_gradients(width: int) -> None:
    """A measured step holds dense and own times; outputs and both gradients were compared before."""
    row = training.measured(Cell(Training(96, 64, 5), "float32", 32, width, 0.5), rounds=1)
    assert row.kind == "training"
    assert {"F.linear", "rowloop"} <= set(row.times_us)


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose gradient of the weight is off raises, though its output is right."""
    monkeypatch.setattr(contenders, "OURS_ON_CPU", (ROWLOOP,))
    monkeypatch.setattr(type(ROWLOOP), "linear_weight_gradient", lambda self, g, x, packed: packed.values + 1)
    with pytest.raises(ArithmeticError, match="rowloop"):
        training.measured(Cell(Training(32, 32, 2), "float32", 16, 16, 0.5), rounds=1)


def test_the_module_is_timed_at_one_token() -> None:
    """Where a call costs as much as the product, the layer's own call stands beside the kernel's."""
    if CPU_JIT.available():
        pytest.skip(CPU_JIT.available())
    one, two = (contenders.measured(Cell(Linear(64, 32, n), "float32", 64, 8, 0.5), rounds=1) for n in (1, 2))
    assert MODULE in one.times_us and MODULE not in two.times_us
    assert one.own_us == one.times_us["cpu-jit"]


def test_the_numba_product_multiplies() -> None:
    """Its loops give the product of the unpacked weight."""
    cell = Cell(Linear(48, 32, 3), "float32", 16, 8, 0.5)
    packed = contenders.weight_of(cell, 48, 32, torch.float32)
    x = np.random.default_rng(0).standard_normal((3, 32), dtype=np.float32)
    result = np.full((3, 48), np.nan, np.float32)
    product_into(x, packed.values.numpy(), packed.columns.numpy(), packed.starts.numpy(), result)
    np.testing.assert_allclose(result, x @ unpack(packed).numpy().T, rtol=1e-4, atol=1e-5)


def test_verdicts_name_the_worst_cell() -> None:
    """A target holds if every measured cell keeps its limit, and is open where none was measured."""
    slow = replace(ROW, name="slow", width=1, times_us={**TIMES, "cpu-jit": 60.0})
    by_name = {one.name: one for one in verdicts([ROW, slow], "cpu")}
    tall = by_name["float32, 64 tall, d=0.25"]
    assert (tall.holds, tall.where, tall.worst, tall.holding, tall.measured) == (False, "slow", 0.75, 1, 2)
    assert by_name["float32, 64 tall, d=0.5"].holds is None
    assert by_name["torch BSR and CSR, scipy BSR, 16 tokens and more"].holds is False
    assert {one.name: one for one in verdicts([ROW], "cpu")}["float32, 64 tall, d=0.25"].holds is True


def test_one_token_may_be_a_tenth_behind() -> None:
    """At one token a library may be a little faster."""
    single = replace(ROW, tokens=1, times_us={**TIMES, "cpu-jit": 43.0})
    found = {one.name: one for one in verdicts([single], "cpu")}
    assert found["torch BSR and CSR, scipy BSR, 1 token"].holds is True
    assert found["torch BSR and CSR, scipy BSR, 16 tokens and more"].holds is None


def test_numba_has_a_verdict_of_its_own() -> None:
    """It is no library: losing to our own loop does not count as losing to one."""
    row = replace(ROW, times_us={**TIMES, "numba": 10.0})
    found = {one.name: one for one in verdicts([row], "cpu")}
    assert found["torch BSR and CSR, scipy BSR, 16 tokens and more"].holds is True
    assert found["loop in numba, 16 tokens and more"].holds is False


def test_a_cuda_device_has_targets_of_its_own() -> None:
    """They are about its tokens and torch's kernel there."""
    row = replace(
        *(ROW,), dtype="bfloat16", height=32, width=32, density=0.05, shape=(4096, 4096), tokens=8192,
        times_us={"cuBLAS": 10.0, "cuda-triton": 3.0, "torch BSR": 5.0},
    )  # fmt: skip
    found = {one.name: one for one in verdicts([row], "cuda")}
    assert found["4096x4096, 32x32, d=0.05"].holds is True
    assert found["torch BSR, 32x32"].holds is False


def test_it_writes_rows_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rows.json repeats the measurement, table.md shows verdicts and shares."""
    assert main(["--out", str(tmp_path)], [job()]) == 0
    record = json.loads((tmp_path / "rows.json").read_text())
    assert {"command", "commit", "device", "versions", "rounds"} <= set(record)
    assert record["rows"][0]["times_us"]["cpu-jit"] == 20.0
    text = (tmp_path / "table.md").read_text()
    assert "| float32, 64 tall, d=0.25 | <= 0.3 of the best dense | 0.250 |" in text
    assert "| 64x16 | 0.25 | 80 | 1.25 | 1.00 | 0.25 | 0.12 | 0.50 |" in text
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    assert "cpu-jit 0.25" in capsys.readouterr().out


def test_it_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Rows with the same settings are kept, others measured; with other rounds all are measured anew."""
    ran: list[str] = []
    jobs = [job(ran=ran), job(replace(ROW, name="second"), ran)]
    assert main(["--out", str(tmp_path), "--only", "linear"], jobs) == 0
    assert main(["--out", str(tmp_path), "--resume"], jobs) == 0
    assert ran == [ROW.name, "second"]
    assert main(["--out", str(tmp_path), "--resume", "--rounds", "3"], jobs) == 0
    assert ran == [ROW.name, "second", ROW.name, "second"]


def test_chosen_cells_are_measured_again(tmp_path: Path) -> None:
    """--again replaces the chosen rows and leaves the others; the page names the commands of both."""
    old, other = job(), job(replace(ROW, name="second"))
    assert main(["--out", str(tmp_path)], [old, other]) == 0
    new = job(replace(ROW, times_us={**TIMES, "cpu-jit": 1.0}))
    assert main(["--out", str(tmp_path), "--resume", "--again", "--only", ROW.name], [new, other]) == 0
    saved = json.loads((tmp_path / "rows.json").read_text())
    times = {row["name"]: row["times_us"]["cpu-jit"] for row in saved["rows"]}
    assert times == {ROW.name: 1.0, "second": 20.0}
    first, second = saved["command"].split(" && ")
    assert "--again" not in first and "--again" in second


def test_resuming_with_nothing_to_do_changes_no_row(tmp_path: Path) -> None:
    """The command and the commit stay those of the measurement."""
    assert main(["--out", str(tmp_path)], [job()]) == 0
    before = (tmp_path / "rows.json").read_text()
    assert main(["--out", str(tmp_path), "--resume", "--minutes", "5"], [job()]) == 0
    assert (tmp_path / "rows.json").read_text() == before


def test_it_stops_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the minutes are over, the status says that more is to be done."""
    assert main(["--out", str(tmp_path), "--minutes", "-1"], [job()]) == UNFINISHED
    assert "1 cells are left" in capsys.readouterr().err


def test_a_failed_cell_is_told_and_tried_last(tmp_path: Path) -> None:
    """The others are measured all the same; on resuming the failed one comes after the new ones."""
    bad = Job("bad", broken)
    ran: list[str] = []
    assert main(["--out", str(tmp_path)], [bad, job(ran=ran)]) == 1
    assert "bad: Expected the dense result" in (tmp_path / "table.md").read_text()
    again = [job(replace(ROW, name="bad"), ran), job(replace(ROW, name="new"), ran)]
    assert main(["--out", str(tmp_path), "--resume"], again) == 0
    assert ran == [ROW.name, "new", "bad"]


def test_cells_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """--only takes what holds one of its texts, --without takes away; --list measures nothing."""
    assert main(["--list", "--only", "1024x1024, 16 tokens", "--without", "bfloat16", "64x1,"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 3 * len(parts.DENSITIES)
    assert all("float32" in name for name in names)


def test_without_a_cuda_device_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA device, no measurement."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_a_cuda_cell_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gpu_kernels measures is told by contender."""
    cell = next(CudaGrid.cells(quick=True))
    tile = forward_tile(64, 1024, 1024, torch.bfloat16, 100_000)
    found = gpu_kernels.Row(cell, tile, 10.0, 4.0, 8.0, 3.0, 5.0, 1e-3)
    monkeypatch.setattr(gpu_kernels, "tile_of", lambda *_: tile)
    monkeypatch.setattr(gpu_kernels, "measured", lambda *_: found)
    row = CudaGrid(tune=False).measured(cell)
    assert row.times_us == {"cuBLAS": 10.0, "cuda-triton": 4.0, "torch BSR": 8.0}
    assert row.ratio == pytest.approx(0.4)
    assert row.name == CudaGrid.name(cell)


def test_the_cuda_grid_names_every_cell_once() -> None:
    """Names differ there too, 8192 tokens included."""
    names = [CudaGrid.name(cell) for cell in CudaGrid.cells(quick=False)]
    assert len(set(names)) == len(names)
    assert any("1024x1024, 8192 tokens" in name for name in names)


def test_the_page_shows_failures() -> None:
    """What could not be measured is on the page."""
    head = {"command": "c", "commit": "0", "rounds": 1, "device": "d", "kind": "cpu", "threads": 1, "versions": {}}
    assert "- bad: reason" in page(head, [ROW], {"bad": "reason"})
