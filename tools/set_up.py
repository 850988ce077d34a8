#!/usr/bin/env python3
"""Make a virtual environment in which this checkout runs: `python3 tools/set_up.py [--venv DIR] [extra ...]`.

Uses the package index that pip is configured with. One exception: on Linux without an NVIDIA GPU, where that
index would bring the CUDA build of torch (gigabytes that such a machine cannot use), torch comes from PyTorch's
index of CPU builds, and the script says so. A second run finds its stamp in the environment and ends at once.

Only the standard library is used, so that an old Python too can start this file and say what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/set_up.py")
STAMP = "structprune-set-up.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, then build the environment or find that it is up to date."""
    parser = argparse.ArgumentParser(description="Make a virtual environment in which this checkout runs.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment (.venv)")
    parser.add_argument("extras", nargs="*", help="optional dependencies to add: dev, bench, gpu, jit")
    options = parser.parse_args(arguments)
    problem = version_problem(sys.version_info[:2])
    if problem:
        fail(problem)
    try:
        set_up(options.venv.absolute(), set(options.extras))
    except KeyboardInterrupt:
        fail("stopped; the same command carries on from here")


def set_up(venv: Path, extras: set[str]) -> None:
    """Bring `venv` to the state that pyproject.toml and constraints.txt ask for, with `extras` at least."""
    digest = inputs_digest()
    present = stamped_extras(venv, digest)
    if present is not None and extras <= present:
        return
    started = time.monotonic()
    extras = extras | (present or set())
    make_venv(venv)
    (venv / STAMP).unlink(missing_ok=True)  # until all steps are done the environment is not what a stamp would say
    install_torch(venv)
    requirement = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    say(f"installing structprune{' with ' + ', '.join(sorted(extras)) if extras else ''}")
    if pip(venv, "install", *constraints(), "--editable", requirement) != 0:
        fail("pip could not install structprune's dependencies; its message is above. Run the same command again "
             "once that is mended: what is already installed is kept.")
    write_stamp(venv, digest, extras)
    say(f"ready in {time.monotonic() - started:.0f} s")


def version_problem(version: tuple[int, int]) -> str | None:
    """Return what is wrong with interpreter `version` (major, minor), or None."""
    if version >= OLDEST_PYTHON:
        return None
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return (f"Expected Python {wanted} or newer. Got {'.'.join(map(str, version))} ({sys.executable}). "
            f"Name a newer interpreter, for example: make demo PYTHON=python{wanted}")


def inputs_digest() -> str:
    """Return a digest of all that decides what the environment holds: the inputs, this checkout, the interpreter."""
    digest = hashlib.sha256(f"{ROOT}\0{sys.version}\0".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def stamped_extras(venv: Path, digest: str) -> set[str] | None:
    """Return the extras that a finished set-up with this digest left in `venv`, or None."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
        return set(stamp["extras"]) if stamp["digest"] == digest and interpreter(venv).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(venv: Path, digest: str, extras: set[str]) -> None:
    """Record a finished set-up; written whole or not at all."""
    unfinished = venv / (STAMP + ".tmp")
    unfinished.write_text(json.dumps({"digest": digest, "extras": sorted(extras)}))
    os.replace(unfinished, venv / STAMP)


def make_venv(venv: Path) -> None:
    """Create the environment; one whose interpreter is gone or of another version is made anew."""
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        fail(f"Expected a virtual environment or an empty folder at {venv}. Got a folder with other files. "
             "Name another one: make demo VENV=folder")
    if usable(venv):
        return
    say(f"making {venv} with Python {sys.version.split()[0]}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)]).returncode != 0 or not usable(venv):
        fail("Python's venv module could not make an environment with pip. On Debian and Ubuntu it is a package of "
             "its own: apt install python3-venv")


def usable(venv: Path) -> bool:
    """Return whether `venv` has pip and the version of Python that runs this file."""
    try:
        probe = "import pip, sys; print(*sys.version_info[:2])"
        answer = subprocess.run([str(interpreter(venv)), "-c", probe], capture_output=True, text=True)
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.split() == [str(part) for part in sys.version_info[:2]]


def install_torch(venv: Path) -> None:
    """Install torch before all else, as a build that fits this machine."""
    torch = torch_requirement((ROOT / "constraints.txt").read_text())
    if installed(venv, torch):
        return
    if not sys.platform.startswith("linux") or gpu_present():
        say(f"installing {torch}")
        succeeded = pip(venv, "install", torch) == 0
    else:
        succeeded = install_cpu_torch(venv, torch)
    if not succeeded:
        fail(f"pip could not install {torch}; its message is above. Expected the configured package index to have "
             f"it for Python {sys.version.split()[0]}.")


def install_cpu_torch(venv: Path, torch: str) -> bool:
    """Install torch on Linux without a GPU: the index's own build if that is free of CUDA, else PyTorch's CPU build."""
    say(f"asking the configured package index for {torch}")
    required = requirements_offered(venv, torch)
    if required is None:
        return False
    if not brings_cuda(required):
        say(f"installing {torch}")
        return pip(venv, "install", torch) == 0
    say(f"no NVIDIA GPU here, and the configured index offers the CUDA build: taking torch from {CPU_INDEX}")
    # pip holds 2.13.0+cpu, as that index calls its build, for newer than a 2.13.0 from anywhere else.
    if pip(venv, "install", "--index-url", CPU_INDEX, "--retries", "1", "--timeout", "15", torch) == 0:
        return True
    say(f"{CPU_INDEX} did not answer with {torch}: taking the CUDA build, which is larger and runs on the CPU too")
    return pip(venv, "install", torch) == 0


def installed(venv: Path, torch: str) -> bool:
    """Return whether the environment has the pinned torch, whichever its build (2.13.0+cpu is a 2.13.0)."""
    probe = "from importlib.metadata import version; print(version('torch'))"
    answer = subprocess.run([str(interpreter(venv)), "-c", probe], capture_output=True, text=True)
    return answer.returncode == 0 and "torch==" + answer.stdout.strip().partition("+")[0] == torch


def requirements_offered(venv: Path, requirement: str) -> list[str] | None:
    """Return what the distribution that pip would install requires, None if the index has none that fits.

    Only that distribution is looked at: resolving its dependencies too would make older versions of pip download
    every CUDA library just to learn their names.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if pip(venv, "install", "--dry-run", "--no-deps", "--report", str(report), requirement) != 0:
            return None
        return [line for item in json.loads(report.read_text())["install"]
                for line in item["metadata"].get("requires_dist", [])]


def brings_cuda(requirements: Sequence[str]) -> bool:
    """Return whether a plain install of these requirements (lines of `Requires-Dist`) would bring CUDA libraries."""
    return any(re.match(r"(nvidia|cuda)-", line) and "extra ==" not in line for line in requirements)


def torch_requirement(constraints_text: str) -> str:
    """Return the line of constraints.txt that pins torch."""
    found = re.search(r"^torch==\S+", constraints_text, re.MULTILINE)
    if found is None:
        fail("Expected a line `torch==<version>` in constraints.txt. Got none. Add one.")
    return found.group()


def gpu_present() -> bool:
    """Return whether nvidia-smi is here and lists a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    answer = subprocess.run([command, "-L"], capture_output=True, text=True)
    return answer.returncode == 0 and "GPU" in answer.stdout


def interpreter(venv: Path) -> Path:
    """Return the environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def constraints() -> list[str]:
    """Return pip's arguments for constraints.txt."""
    return ["--constraint", str(ROOT / "constraints.txt")]


def pip(venv: Path, *arguments: str) -> int:
    """Run the environment's pip and return its status; it shows its progress where someone watches a terminal."""
    talk = [] if sys.stderr.isatty() else ["--quiet"]
    command = [str(interpreter(venv)), "-m", "pip", "--disable-pip-version-check", *arguments, *talk]
    return subprocess.run(command, cwd=ROOT).returncode


def say(text: str) -> None:
    """Tell the user what happens next."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    """End with a message and status 1."""
    raise SystemExit(f"set-up: {text}")


if __name__ == "__main__":
    main()
