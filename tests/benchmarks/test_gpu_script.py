"""`benchmarks/gpu.sh`: its parts, their order, what is done once, and what is told of what is not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_latency, gpu_record

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"

# Stands for Python on a machine with a GPU: the script's own records are real, the device and all commands are not.
# A command whose name is in $HAS_MORE has more to do the first time; one in $FAILING fails.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
    "-m benchmarks.gpu_record environment"*) exit 0 ;;
    "-m benchmarks.gpu_record packages"*) echo -n "$LACKING"; exit 0 ;;
    "-m benchmarks.gpu_record part"*) exec {python} "$@" ;;
esac
echo "ran $2" | tee -a "$TRACE"
[ "$2" = "$FAILING" ] && exit 3
[ "$2" = "$HAS_MORE" ] && [ "$(grep -c "ran $2" "$TRACE")" -eq 1 ] && exit 75
exit 0
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Return the stand-in."""
    file = tmp_path / "python"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def run(*arguments: str, python: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    given = {"LACKING": "", "FAILING": "", "HAS_MORE": "", **settings}
    environment = {**os.environ, "PYTHON": str(python or sys.executable), **given}
    return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False)


def test_bash_reads_it() -> None:
    """The script has no syntax error."""
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_a_dry_run_lists_the_parts(tmp_path: Path) -> None:
    """Environment, tests in pieces, rates before the grid, demo, latency and limits; nothing is written."""
    done = run("--dry-run", "--out", str(tmp_path / "none"))
    names = [line.split(" [")[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert names[0] == "environment"
    assert "tests-layers-test_triton_kernels" in names
    after = ["kernels-roofs", "kernels-grid", "kernels-tuned", "demo", "latency", "limits-digits"]
    assert [name for name in names if name in after] == after
    assert not (tmp_path / "none").exists()


def test_every_file_with_a_gpu_test_is_a_part() -> None:
    """No test that is marked `gpu` is left out."""
    listed = run("--dry-run").stdout
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark" + ".gpu" in file.read_text()]
    assert marked
    assert all(str(file.relative_to(ROOT)) in listed for file in marked)


def test_parts_are_done_once(python: Path, tmp_path: Path) -> None:
    """A finished part has a record with commit and versions, and is not run again unless asked."""
    out, trace = tmp_path / "out", tmp_path / "trace"
    first = run("--only", "demo", "--out", str(out), python=python, TRACE=str(trace))
    assert first.returncode == 0, first.stderr
    record = json.loads((out / "parts" / "demo.json").read_text())
    assert (record["status"], record["part"]) == ("done", "demo")
    assert {"commit", "versions", "device", "command", "seconds"} <= set(record)
    assert record["end_of_log"] == ["ran structprune"]
    assert "demo: done before" in run("--only", "demo", "--out", str(out), python=python, TRACE=str(trace)).stdout
    run("--only", "demo", "--again", "--out", str(out), python=python, TRACE=str(trace))
    assert trace.read_text().splitlines() == ["ran structprune"] * 2


def test_an_unfinished_part_goes_on(python: Path, tmp_path: Path) -> None:
    """Status 75 says that more is to be done, and the part is run again at once."""
    out, trace = tmp_path / "out", tmp_path / "trace"
    settings = {"TRACE": str(trace), "HAS_MORE": "benchmarks.kernels"}
    assert run("--only", "kernels-grid", "--out", str(out), python=python, **settings).returncode == 0
    assert trace.read_text().splitlines() == ["ran benchmarks.kernels"] * 2
    assert json.loads((out / "parts" / "kernels-grid.json").read_text())["status"] == "done"


def test_a_failure_stops_no_other_part(python: Path, tmp_path: Path) -> None:
    """The next part is run; the script's status and the record tell the failure."""
    out, trace = tmp_path / "out", tmp_path / "trace"
    settings = {"TRACE": str(trace), "FAILING": "structprune"}
    done = run("--only", "demo", "--only", "latency.", "--only", "limits-digits", "--out", str(out), python=python,
               **settings)  # fmt: skip
    assert done.returncode == 1
    assert json.loads((out / "parts" / "demo.json").read_text())["reason"] == "exit status 3"
    assert json.loads((out / "parts" / "limits-digits.json").read_text())["status"] == "done"


def test_what_is_missing_is_the_reason_of_a_skip(python: Path, tmp_path: Path) -> None:
    """A part without its packages, or without its data, is skipped and says which."""
    out, trace = tmp_path / "out", str(tmp_path / "trace")
    assert run("--only", "demo", "--out", str(out), python=python, TRACE=trace, LACKING="cvxpy").returncode == 0
    record = json.loads((out / "parts" / "demo.json").read_text())
    assert (record["status"], record["reason"]) == ("skipped", "missing Python packages: cvxpy")
    run("--only", "resnet20", "--out", str(out), python=python, TRACE=trace, STRUCTPRUNE_DATA="/nowhere")
    assert json.loads((out / "parts" / "limits-resnet20.json").read_text())["reason"] == "missing data: /nowhere"


@pytest.mark.parametrize("arguments", [["--minutes", "soon"], ["--minutes", "2"], ["--minutes"], ["--fast"]])
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    """Status 2 and what was expected."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "Expected" in done.stderr


def test_missing_packages_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Only those that are not there."""
    assert gpu_record.main(["packages", "numpy", "no_such_module"]) == 0
    assert capsys.readouterr().out == "no_such_module\n"


def test_no_device_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """environment.json is written all the same, and says why."""
    monkeypatch.setattr(gpu_record, "cuda", lambda: {"missing": "torch sees none"})
    assert gpu_record.main(["environment", "--out", str(tmp_path)]) == 2
    assert "Expected a CUDA device" in capsys.readouterr().err
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == {"missing": "torch sees none"}


def test_torch_is_never_installed() -> None:
    """A build for the device is the machine's; pip would exchange it."""
    assert not set(gpu_record.NEVER_INSTALLED) & set(gpu_record.PACKAGES)


def test_latency_is_cut_on_the_device(tmp_path: Path) -> None:
    """The record holds the budget, the prediction and the measured times."""
    file = tmp_path / "latency.json"
    # Nine tenths of a small network's time leave room for what other work on the machine adds to single layers.
    options = ["--device", "cpu", "--widths", "16", "32", "32", "32", "--keep", "0.9", "--epochs", "1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        status = gpu_latency.main([*options, "--out", str(file)])
    finally:
        torch.set_num_threads(threads)
    record = json.loads(file.read_text())
    assert record["predicted_ns"] <= record["allowed_ns"]
    assert status == int(record["after_ns"] > record["allowed_ns"])
    assert set(record["accuracy"]) == {"dense", "pruned"}
