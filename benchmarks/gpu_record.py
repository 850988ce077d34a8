"""What ``benchmarks/gpu.sh`` knows about its parts: ``environment``, ``packages`` and one JSON file per part.

Needs Python alone until torch is asked for the device, so that a machine that lacks packages can say so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit, machine, versions

PACKAGES = {  # module: what pip is asked for; torch brings the Triton that belongs to it
    "numpy": "numpy",
    "scipy": "scipy",
    "ortools": "ortools",
    "cvxpy": "cvxpy",
    "highspy": "highspy<1.15",
    "safetensors": "safetensors",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "pytest": "pytest>=8",
    "hypothesis": "hypothesis",
    "llvmlite": "llvmlite",
    "accelerate": "accelerate>=1.10",
}
NEVER_INSTALLED = ("torch", "triton")
TOLD = ("torch", "triton", *PACKAGES, "scikit-learn")
CODE = (
    *("structprune", "solvers", "tests", "benchmarks/*.py", "benchmarks/*.sh"),
    *("benchmarks/kernels", "benchmarks/blocks", "benchmarks/grid"),
)
STATUSES = ("done", "failed", "skipped", "unfinished")
TAIL = 4000  # characters of a log


def missing(modules: Sequence[str]) -> list[str]:
    """Return those modules that cannot be found."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def cuda() -> dict[str, Any]:
    """Return the device as torch sees it; without one, the reason under 'missing'."""
    if missing(["torch"]):
        return {"missing": "torch is not installed"}
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return {"missing": f"torch {torch.__version__} sees no CUDA device"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": driver(),
    }


def driver() -> str:
    """Return the driver's release, 'unknown' where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def environment(out: Path, install: bool) -> int:
    """Install what is missing if asked to, write environment.json; 0 if there is a CUDA device."""
    lacking = [PACKAGES[name] for name in missing(list(PACKAGES))]
    if lacking:
        print(f"Missing Python packages: {', '.join(lacking)}.")
    if lacking and install:
        pip = [sys.executable, "-m", "pip", "install", "--retries", "1", "--timeout", "10", *lacking]
        print(" ".join(pip), flush=True)
        if subprocess.run(pip, check=False).returncode:
            print("pip could not install them. The parts that need them are skipped.")
    importlib.invalidate_caches()
    device = cuda()
    found = {
        "commit": commit(CODE),
        "host": machine(),
        "device": device,
        "versions": versions(TOLD),
        "installed_by_this_script": [name for name in lacking if install],
        "missing": missing([*NEVER_INSTALLED, *PACKAGES]),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "environment.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if "missing" in device:
        print(f"Expected a CUDA device. {device['missing']}. Run this where one is.", file=sys.stderr)
        return 2
    return 0


def part(options: argparse.Namespace) -> int:
    """Write the record of one part."""
    known = options.out / "environment.json"
    about = json.loads(known.read_text()) if known.is_file() else {}
    log = options.log.read_text(errors="replace")[-TAIL:] if options.log and options.log.is_file() else ""
    content = {
        "part": options.part,
        "status": options.status,
        "reason": options.reason,
        "command": options.run,
        "seconds": options.seconds,
        "commit": commit(CODE),
        "device": about.get("device", {}),
        "versions": versions(TOLD),
        "end_of_log": log.splitlines(),
    }
    folder = options.out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{options.part}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu_record", description=__doc__)
    kinds = made.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("environment")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--install", action="store_true")
    one = kinds.add_parser("packages", help="print those of the modules that are missing")
    one.add_argument("modules", nargs="*")
    one = kinds.add_parser("part")
    one.add_argument("part")
    one.add_argument("status", choices=STATUSES)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--reason", default="")
    one.add_argument("--run", default="")
    one.add_argument("--seconds", type=int, default=0)
    one.add_argument("--log", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    options = parser().parse_args(arguments)
    if options.kind == "environment":
        return environment(options.out, options.install)
    if options.kind == "packages":
        print(*missing(options.modules))
        return 0
    return part(options)


if __name__ == "__main__":
    sys.exit(main())
