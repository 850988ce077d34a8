"""Numerics of the Triton kernels and of layers that use them: in Triton's interpreter, and on a CUDA device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.layers.triton_cases import CASES, Case, error
from tests.layers.triton_layer_cases import LAYERS, TOLERANCE, LayerCase, layer_error

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Return the error of each case in the interpreter, which a process chooses before it first imports Triton."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if major_minor(triton.__version__) < (3, 7) and major_minor(np.__version__) >= (2, 4):
        pytest.skip("the interpreter of Triton below 3.7 cannot run loops to a loaded bound with NumPy from 2.4 on")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.layers.triton_layer_cases"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def major_minor(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def test_names_tell_cases_apart() -> None:
    """No case hides behind another of the same name."""
    names = [case.name for case in CASES] + [case.name for case in LAYERS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_the_dense_weight_in_the_interpreter(case: Case, errors: dict[str, float]) -> None:
    """A kernel gives what the dense weight gives, writes all of its result and reads nothing that it should not."""
    assert errors[case.name] <= case.tolerance


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layer_equals_its_dense_form_in_the_interpreter(case: LayerCase, errors: dict[str, float]) -> None:
    """Outputs, and gradients of input and values, are those of the dense layer."""
    assert errors[case.name] <= TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_the_dense_weight_on_a_gpu(case: Case) -> None:
    """The compiled kernels keep the facts that the interpreter shows."""
    pytest.importorskip("triton", reason="Triton is not installed")
    assert error(case, torch.device("cuda")) <= case.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layer_equals_its_dense_form_on_a_gpu(case: LayerCase) -> None:
    """Compiled kernels keep the gradients too."""
    pytest.importorskip("triton", reason="Triton is not installed")
    assert layer_error(case, torch.device("cuda")) <= TOLERANCE
