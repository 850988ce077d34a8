"""The project's shell: what set-up decides, and that its files agree with each other."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def set_up() -> ModuleType:
    """Load tools/set_up.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "tools" / "set_up.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Make set-up believe in a Linux machine without a GPU, and record pip's arguments instead of running it."""
    calls: list[tuple[str, ...]] = []

    def pip(venv: Path, *arguments: str) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(set_up.sys, "platform", "linux")
    monkeypatch.setattr(set_up, "gpu_present", lambda: False)
    monkeypatch.setattr(set_up, "installed", lambda venv, torch: False)
    monkeypatch.setattr(set_up, "pip", pip)
    return calls


def test_set_up_needs_the_standard_library_only() -> None:
    """Set-up runs before anything is installed, so it imports nothing that must be."""
    tree = ast.parse((ROOT / "tools" / "set_up.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_set_up_can_be_read_by_an_old_python() -> None:
    """The message about a Python that is too old reaches the one who has it: the file is valid Python 3.7."""
    ast.parse((ROOT / "tools" / "set_up.py").read_text(), feature_version=(3, 7))


def test_an_old_python_is_refused_with_the_way_out(set_up: ModuleType) -> None:
    """Python 3.10 is refused, in words that say what to type; 3.11 and later are taken."""
    problem = set_up.version_problem((3, 10))
    assert "Expected Python 3.11 or newer. Got 3.10" in problem
    assert "PYTHON=python3.11" in problem
    assert set_up.version_problem((3, 11)) is None
    assert set_up.version_problem((4, 0)) is None


def test_oldest_python_is_the_projects(set_up: ModuleType) -> None:
    """Set-up and the distribution ask for the same Python."""
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, set_up.OLDEST_PYTHON))


@pytest.mark.parametrize(
    ("requirement", "cuda"),
    [
        ('nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"', True),
        ('cuda-bindings<14,>=13.0.3; platform_system == "Linux"', True),
        ('nvidia-nccl-cu13; extra == "distributed"', False),
        ("filelock", False),
        ('triton==3.7.1; platform_system == "Linux"', False),
    ],
)
def test_cuda_is_recognised_by_what_torch_requires(set_up: ModuleType, requirement: str, cuda: bool) -> None:
    """A build of torch that always requires NVIDIA's packages is a CUDA build."""
    assert set_up.brings_cuda(["sympy>=1.13.3", requirement]) is cuda


def test_without_gpu_a_cpu_build_comes_from_the_configured_index(
    set_up: ModuleType, machine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the configured index already has a build without CUDA, PyTorch's own index is not asked."""
    monkeypatch.setattr(set_up, "requirements_offered", lambda venv, torch: ["filelock"])
    assert set_up.install_cpu_torch(Path("v"), "torch==2.13.0")
    assert machine == [("install", "torch==2.13.0")]


def test_without_gpu_a_cuda_build_gives_way_to_pytorchs_cpu_index(
    set_up: ModuleType,
    machine: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the configured index would bring CUDA, torch comes from the CPU index and the user is told."""
    monkeypatch.setattr(set_up, "requirements_offered", lambda venv, torch: ["nvidia-cudnn-cu13==9.20.0.48"])
    assert set_up.install_cpu_torch(Path("v"), "torch==2.13.0")
    (call,) = machine
    assert call[:3] == ("install", "--index-url", set_up.CPU_INDEX)
    assert set_up.CPU_INDEX in capsys.readouterr().err


def test_with_gpu_torch_comes_from_the_configured_index(
    set_up: ModuleType, machine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a GPU keeps the build that its index offers."""
    monkeypatch.setattr(set_up, "gpu_present", lambda: True)
    set_up.install_torch(Path("v"))
    assert machine == [("install", set_up.torch_requirement((ROOT / "constraints.txt").read_text()))]


def test_a_stamp_holds_for_its_extras_and_its_inputs(set_up: ModuleType, tmp_path: Path) -> None:
    """A finished set-up is recognised; changed inputs, a damaged stamp or a lost interpreter make it void."""
    set_up.interpreter(tmp_path).parent.mkdir()
    set_up.interpreter(tmp_path).touch()
    assert set_up.stamped_extras(tmp_path, "a") is None
    set_up.write_stamp(tmp_path, "a", {"dev"})
    assert set_up.stamped_extras(tmp_path, "a") == {"dev"}
    assert set_up.stamped_extras(tmp_path, "b") is None
    set_up.interpreter(tmp_path).unlink()
    assert set_up.stamped_extras(tmp_path, "a") is None
    set_up.interpreter(tmp_path).touch()
    (tmp_path / set_up.STAMP).write_text("{")
    assert set_up.stamped_extras(tmp_path, "a") is None


def test_a_folder_with_other_files_is_left_alone(set_up: ModuleType, tmp_path: Path) -> None:
    """Set-up clears a broken environment, never a folder that is none."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="Expected a virtual environment or an empty folder"):
        set_up.make_venv(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_constraints_meet_the_requirements(set_up: ModuleType) -> None:
    """The pinned torch is one that the distribution allows."""
    pinned = re.fullmatch(r"torch==(\d+)\.(\d+)\.\d+", set_up.torch_requirement((ROOT / "constraints.txt").read_text()))
    (least,) = [re.fullmatch(r"torch>=(\d+)\.(\d+)", line) for line in PROJECT["dependencies"] if "torch" in line]
    assert pinned is not None and least is not None
    assert tuple(map(int, pinned.groups())) >= tuple(map(int, least.groups()))


def test_readmes_commands_are_make_targets() -> None:
    """Each `make x` that README shows is a target of the Makefile."""
    shown = set(re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= shown & targets


def test_ci_runs_readmes_test_command() -> None:
    """.ci/run can be executed and ends with `make test` in an environment of its own."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1].startswith("make test VENV=")


@pytest.mark.parametrize("first", ["cvxpy", "ortools.sat.python.cp_model"])
def test_cvxpy_and_ortools_load_together(first: str) -> None:
    """Whichever comes first: each brings a HiGHS of its own under the same name, and not all releases get along."""
    program = f"import {first}, cvxpy, ortools.sat.python.cp_model"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "undefined symbol" not in answer.stdout + answer.stderr
