"""The layers of the house: who may import whom, read from the syntax trees of the files.

A module imports modules of its own layer or of lower ones, never in a circle. `solvers` knows arrays and neither
torch nor structprune.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("solvers", "structprune", "benchmarks", "tests")

# The longest prefix of a module's name decides. `structprune` itself is not a prefix: each of its parts has a row.
LAYERS = {
    "solvers.terms": 1,
    "solvers.packing": 1,
    "solvers.problem": 1,
    "solvers.quadratic": 1,
    "solvers.result": 1,
    "solvers.reduction": 2,
    "solvers.ledger": 2,
    "solvers.verify": 2,
    "solvers.bounds": 2,
    "solvers.envelope": 2,
    "solvers": 3,
    "structprune.axes": 4,
    "structprune.structures": 4,
    "structprune.budget": 4,
    "structprune.errors": 4,
    "structprune.data": 4,
    "structprune.files": 4,
    "structprune.progress": 4,
    "structprune.records": 4,
    "structprune.tensors": 4,
    "structprune.units": 4,
    "structprune.versions": 4,
    "structprune.example": 5,
    "structprune.counting": 5,
    "structprune.costs": 5,
    "structprune.latency": 5,
    "structprune.criteria": 5,
    "structprune.regularizers": 5,
    "structprune.layers": 5,
    "structprune.problem": 6,
    "structprune.arrange": 6,
    "structprune.compile": 6,
    "structprune.limit": 6,
    "structprune.batch_norm": 6,
    "structprune.task": 6,
    "structprune.methods": 7,
    "structprune.finetune": 7,
    "structprune.solve": 7,
    "structprune.page": 7,
    "structprune.report": 7,
    "structprune.report_console": 7,
    "structprune.report_html": 7,
    "structprune.limit_html": 7,
    "structprune.account": 7,
    "structprune.pruned": 7,
    "structprune.io": 7,
    "structprune.sparse_io": 7,
    "structprune.cli": 7,
    "structprune.demo": 7,
    "structprune.__main__": 7,
    "benchmarks": 8,
    "tests": 8,
}
PACKAGE_LAYER = 7  # structprune/__init__.py, which shows the line's functions to the user

SOLVERS_MAY_IMPORT = sys.stdlib_module_names | {"solvers", "numpy", "scipy", "ortools", "cvxpy"}


@dataclass(frozen=True)
class Import:
    """One import statement's target: a module's dotted name, as far as the statement tells it."""

    target: str
    line: int
    in_function: bool
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """A file of the house with what it imports from anywhere."""

    name: str
    path: Path
    imports: tuple[Import, ...]

    def where(self, found: Import) -> str:
        """Return the place of an import for a message."""
        return f"{self.path}:{found.line}"


def read_modules(root: Path) -> dict[str, Module]:
    """Parse every file of the packages under `root`; keys are dotted names, a package has its folder's."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            found = tuple(imports_in(tree, name if is_package else name.rpartition(".")[0]))
            modules[name] = Module(name, path.relative_to(root), found)
    return modules


def imports_in(node: ast.AST, package: str, in_function: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Yield all imports below `node`; relative ones are resolved against `package`, the one that holds the file."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, in_function, typing_only)
        elif isinstance(child, ast.ImportFrom):
            base = imported_base(child, package)
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, in_function, typing_only)
        else:
            inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports_in(child, package, inner, typing_only or guard)


def imported_base(statement: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of what stands after `from`."""
    if not statement.level:
        return statement.module or ""
    above = package.split(".")
    above = above[: len(above) - (statement.level - 1)]
    return ".".join([*above, statement.module] if statement.module else above)


def own_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, str]]:
    """Yield the imports of house modules, each with the module it reaches: `from a.b import c` is a.b.c if a file."""
    for found in module.imports:
        target = found.target
        while target and target not in modules:
            target = target.rpartition(".")[0]
        if target and target != module.name:
            yield found, target


def layer(name: str) -> int | None:
    """Return the layer of a module, None for a name that the table does not know."""
    if name == "structprune":
        return PACKAGE_LAYER
    while name and name not in LAYERS:
        name = name.rpartition(".")[0]
    return LAYERS.get(name)


def unplaced(modules: dict[str, Module]) -> list[str]:
    """Return a sentence for each module without a layer."""
    return [
        f"{module.path} has no layer. Expected {name} or a package above it in LAYERS of tests/test_layers.py. "
        "Add a row there, in the lowest layer whose imports suffice, or move the code to a module that has one."
        for name, module in modules.items()
        if layer(name) is None
    ]


def upward(modules: dict[str, Module]) -> list[str]:
    """Return a sentence for each import that climbs, those for type checking included: to name is to know."""
    return [
        f"{module.where(found)}: {name} (layer {layer(name)}) imports {target} (layer {layer(target)})"
        for name, module in modules.items()
        for found, target in own_imports(module, modules)
        if (layer(name) or 0) < (layer(target) or 0)
    ]


def cycle(modules: dict[str, Module]) -> list[str]:
    """Return the names around one import cycle, [] if there is none; imports for type checking do not run."""
    graph = {
        name: {target for found, target in own_imports(module, modules) if not found.typing_only}
        for name, module in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def hidden(modules: dict[str, Module]) -> list[str]:
    """Return the places where a package, tests excepted, imports a house module inside a function."""
    return [
        f"{module.where(found)}: imports {target} inside a function"
        for name, module in modules.items()
        if not name.startswith("tests")
        for found, target in own_imports(module, modules)
        if found.in_function
    ]


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    """Return the modules of this checkout."""
    return read_modules(ROOT)


def test_both_packages_are_read(house: dict[str, Module]) -> None:
    """The other tests look at files of both packages, so they do not pass for want of something to look at."""
    assert {"solvers", "structprune", "tests.test_layers"} <= house.keys()


def test_every_module_has_a_layer(house: dict[str, Module]) -> None:
    """Each file of the packages belongs to one of the layers."""
    assert not unplaced(house), "\n".join(unplaced(house))


def test_no_import_climbs(house: dict[str, Module]) -> None:
    """A module imports its own layer and the ones below it."""
    assert not upward(house), "\n".join(upward(house))


def test_no_import_cycle(house: dict[str, Module]) -> None:
    """No chain of imports comes back to where it began."""
    assert not cycle(house), " -> ".join(cycle(house))


def test_no_own_import_inside_a_function(house: dict[str, Module]) -> None:
    """House modules are imported at the top of a file, where a reader sees them."""
    assert not hidden(house), "\n".join(hidden(house))


def test_solvers_name_only_arrays(house: dict[str, Module]) -> None:
    """Files of `solvers` import the standard library, numpy, scipy, ortools and cvxpy, and nothing else."""
    strangers = [
        f"{module.where(found)}: {found.target}"
        for name, module in house.items()
        if name.split(".")[0] == "solvers"
        for found in module.imports
        if found.target.split(".")[0] not in SOLVERS_MAY_IMPORT
    ]
    assert not strangers, "\n".join(strangers)


def test_solvers_load_without_torch(house: dict[str, Module]) -> None:
    """Importing all of `solvers` loads neither torch nor structprune, not even through another package."""
    names = [name for name in house if name.split(".")[0] == "solvers"]
    program = "import importlib, sys\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in names)
    program += "print(sorted({'torch', 'structprune'} & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


def test_structprune_does_not_import_benchmarks(house: dict[str, Module]) -> None:
    """What is installed needs nothing that stays in the checkout."""
    reached = [
        f"{module.where(found)}: {found.target}"
        for name, module in house.items()
        if name.split(".")[0] in ("solvers", "structprune")
        for found in module.imports
        if found.target.split(".")[0] in ("benchmarks", "tests")
    ]
    assert not reached, "\n".join(reached)


def small_house(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """Write files under `root` and read them as a house."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_modules(root)


@pytest.mark.parametrize(
    "text",
    [
        "import solvers.allocation",
        "from solvers import allocation",
        "from . import allocation",
        "from .allocation import Allocation",
        "def late():\n    from solvers.allocation import Allocation",
        "if TYPE_CHECKING:\n    from solvers.allocation import Allocation",
    ],
)
def test_a_climbing_import_is_found(tmp_path: Path, text: str) -> None:
    """An upward import is seen in each form that Python has for it."""
    house = small_house(tmp_path, {"solvers/problem.py": text, "solvers/allocation.py": ""})
    assert [line.split(": ")[1] for line in upward(house)] == [
        "solvers.problem (layer 1) imports solvers.allocation (layer 3)"
    ]


def test_imports_downwards_and_sideways_are_allowed(tmp_path: Path) -> None:
    """Lower layers and the own one may be imported."""
    text = "from solvers.problem import Term\nfrom . import latency"
    files = {"structprune/costs.py": text, "structprune/latency.py": "", "solvers/problem.py": ""}
    house = small_house(tmp_path, files)
    assert not upward(house)
    assert not cycle(house)


def test_a_cycle_is_found(tmp_path: Path) -> None:
    """Two modules of one layer that import each other are named; imports for type checking alone are no cycle."""
    files = {"structprune/io.py": "from .report import Report", "structprune/report.py": "from structprune import io"}
    assert set(cycle(small_house(tmp_path, files))) == {"structprune.io", "structprune.report"}
    files["structprune/report.py"] = "if TYPE_CHECKING:\n    from structprune import io"
    assert not cycle(small_house(tmp_path, files))


def test_a_module_outside_the_table_is_named(tmp_path: Path) -> None:
    """A new module of structprune must be given its layer, and the message says where."""
    house = small_house(tmp_path, {"structprune/novelty.py": "", "structprune/axes/rules/conv.py": ""})
    (sentence,) = unplaced(house)
    assert "structprune/novelty.py" in sentence
    assert "LAYERS of tests/test_layers.py" in sentence


def test_an_import_inside_a_function_is_found(tmp_path: Path) -> None:
    """An import of the house that hides in a function or a method is seen, one at the top is not."""
    text = "from solvers import problem\nclass A:\n    def f(self):\n        import solvers.problem\n"
    house = small_house(tmp_path, {"solvers/allocation.py": text, "solvers/problem.py": ""})
    assert hidden(house) == ["solvers/allocation.py:4: imports solvers.problem inside a function"]
