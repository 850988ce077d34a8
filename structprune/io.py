"""Save a pruned network without pickle, and load it again.

A folder holds ``weights.safetensors``, ``structure.json`` (format version, how it was built, shapes, the modules'
changed integers, block-sparse layers), ``report.json`` and ``report.html``; a network built as a graph is also there as
``program.pt2``, the exported program. The folder appears whole or not at all.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from structprune.axes import Example
from structprune.axes.rewrite import GraphModel
from structprune.compile.packing import pack_linear, packed_layers
from structprune.compile.sparse import channels_innermost
from structprune.errors import FileFormatError
from structprune.report import Report
from structprune.sparse_io import sparse_records, with_sparse_layers
from structprune.tensors import named_tensors

__all__ = ["check_free", "load", "save"]

FORMAT = "structprune-network"
VERSION = 1
BUILT_AS = ("module", "graph", "block-sparse", "masked")
FIELDS = {"built_as": str, "model": str, "weights_sha256": str, "tensors": dict, "aliases": dict, "integers": dict}


def save(
    model: nn.Module, built_as: str, example: Example, report: Report, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write ``model`` and its report into the new folder ``path``.

    Raises
    ------
    FileExistsError
        If something is there already, unless it is a saved network and ``overwrite`` is True.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        tensors = _state(model)
        save_file(tensors, work / "weights.safetensors")
        structure = {
            "format": FORMAT,
            "version": VERSION,
            "built_as": built_as,
            "model": report.model_name,
            "weights_sha256": _digest(work / "weights.safetensors"),
            "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "aliases": _aliases(model),
            "integers": _integers(model),
        }
        if built_as == "block-sparse":
            structure["sparse"] = sparse_records(model)
        if packed_layers(model):
            structure["packed"] = list(packed_layers(model))
        if built_as == "graph":
            _export(model, example, work / "program.pt2")
            structure["program_sha256"] = _digest(work / "program.pt2")
        (work / "structure.json").write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")
        report.to_json(work / "report.json")
        report.to_html(work / "report.html")
        for file in work.iterdir():
            file.chmod(0o644)  # temporary files are the user's alone; the folder is as readable as any other
        work.chmod(0o755)
        _swap(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return path


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise FileExistsError unless a network may be saved at ``path``; only a saved network is ever overwritten."""
    path = Path(path)
    if not (path.exists() or path.is_symlink()):
        return
    if not overwrite:
        raise FileExistsError(
            f"Expected a new folder. Got {str(path)!r}, which exists. Pass another, or overwrite=True (--overwrite)."
        )
    if not (path / "structure.json").is_file():
        raise FileExistsError(
            f"Expected a network of structprune to overwrite. Got {str(path)!r}, which is something else. "
            "Pass another folder."
        )


def _swap(work: Path, path: Path) -> None:
    """Put ``work`` in the place of ``path``; what was there is gone only when the new one stands."""
    if not path.exists():
        os.replace(work, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, old / "was")
        os.replace(work, path)
    finally:
        if not path.exists():  # interrupted between the two
            os.replace(old / "was", path)
        shutil.rmtree(old, ignore_errors=True)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Distinct parameters and buffers, those that ``state_dict`` leaves out included."""
    tensors = named_tensors(model, every_name=False)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of shared tensors -> the name they are stored under."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named_tensors(model).items():
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    return aliases


def _integers(model: nn.Module) -> dict[str, dict[str, int]]:
    """Every module's own integers, by dotted name: the sizes that its Python computes with."""
    return {
        name: {key: value for key, value in vars(module).items() if type(value) is int and not key.startswith("_")}
        for name, module in model.named_modules()
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _export(model: nn.Module, example: Example, path: Path) -> None:
    assert isinstance(model, GraphModel)
    given = {name: part for name, part in (("args", example.args), ("kwargs", dict(example.kwargs))) if part}
    dynamic = torch.utils._pytree.tree_map(
        lambda leaf: {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim else None, given
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, example.args, dict(example.kwargs), dynamic_shapes=dynamic, strict=False)
        torch.export.save(program, path)


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a network that :meth:`Pruned.save` wrote; it computes exactly what the saved one did.

    Parameters
    ----------
    path
        The folder.
    model
        The dense network's class, freshly made: its shapes are cut and its weights replaced in a copy. Needed
        unless the network was built as a graph.

    Raises
    ------
    FileFormatError
        If the folder is incomplete, truncated, foreign or of another version.
    ValueError
        If ``model`` is missing or is another architecture.
    """
    path = Path(path)
    structure = _structure(path)
    if structure["built_as"] == "graph":
        return _load_program(path, structure)
    if model is None:
        raise ValueError(
            f"Expected the dense network to load {str(path)!r} into. Got None. "
            f"Pass load(path, model) with a freshly made {structure['model']}."
        )
    tensors = _weights(path, structure)
    clone = with_sparse_layers(copy.deepcopy(model).eval(), structure.get("sparse", {}), tensors)
    clone = pack_linear(clone, structure.get("packed", []))
    named = named_tensors(clone)
    names = {**{name: name for name in structure["tensors"]}, **structure["aliases"]}
    _check_architecture(clone, named, {name: tensors[source] for name, source in names.items()}, structure)
    placed: dict[str, Tensor] = {}
    for name, source in names.items():
        _place(clone, name, source, tensors, placed)
    for name, integers in structure["integers"].items():
        module = clone.get_submodule(name)
        for key, value in integers.items():
            if getattr(module, key, None) != value:
                setattr(module, key, value)
    channels_innermost(clone)  # files hold no layouts
    return clone


def _check_architecture(
    model: nn.Module, named: dict[str, Tensor], saved: dict[str, Tensor], structure: dict[str, Any]
) -> None:
    """Raise ValueError unless the saved tensors can have been cut out of this model's."""
    strange = sorted(set(named) ^ set(saved))
    strange += sorted(set(structure["integers"]) - {name for name, _ in model.named_modules()})
    strange += [
        name
        for name, tensor in saved.items()
        if name in named
        and (
            tensor.ndim != named[name].ndim or any(a > b for a, b in zip(tensor.shape, named[name].shape, strict=True))
        )
    ]
    if strange:
        raise ValueError(
            f"Expected a {structure['model']} as it was before pruning. Got a {type(model).__name__} that differs in "
            f"{', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}. Make the model as it was made for solve."
        )


def _place(clone: nn.Module, name: str, source: str, tensors: dict[str, Tensor], placed: dict[str, Tensor]) -> None:
    owner, _, leaf = name.rpartition(".")
    module = clone.get_submodule(owner)
    old = getattr(module, leaf)
    if source not in placed:
        value = tensors[source].to(old.device)
        placed[source] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    setattr(module, leaf, placed[source])


def _structure(path: Path) -> dict[str, Any]:
    """The folder's description, checked."""
    if not path.is_dir():
        raise FileFormatError(f"Expected a folder written by save. Got {str(path)!r}. Check the path.")
    try:
        structure = json.loads((path / "structure.json").read_text(encoding="utf-8"))
        known = isinstance(structure, dict) and structure.get("format") == FORMAT
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"Expected structure.json of structprune in {str(path)!r}. Got {error}. Save the network again."
        ) from error
    if not known:
        raise FileFormatError(f"Expected a network of structprune in {str(path)!r}. Got another file. Check the path.")
    if structure.get("version") != VERSION:
        raise FileFormatError(
            f"Expected version {VERSION} of the format in {str(path)!r}. Got {structure.get('version')}. "
            "Load it with the release of structprune that wrote it."
        )
    wrong = [field for field, kind in FIELDS.items() if not isinstance(structure.get(field), kind)]
    if structure.get("built_as") == "block-sparse" and not isinstance(structure.get("sparse"), dict):
        wrong.append("sparse")
    if structure.get("built_as") not in BUILT_AS and "built_as" not in wrong:
        wrong.append("built_as")
    if wrong:
        raise FileFormatError(
            f"Expected structure.json as it was saved in {str(path)!r}. Got one without a sound {', '.join(wrong)}. "
            "Copy the whole folder again."
        )
    return structure


def _weights(path: Path, structure: dict[str, Any]) -> dict[str, Tensor]:
    file = path / "weights.safetensors"
    _check_digest(file, structure["weights_sha256"])
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise FileFormatError(f"Expected whole weights in {str(file)!r}. Got {error}. Save them again.") from error
    listed = structure["tensors"]
    if {name: list(tensor.shape) for name, tensor in tensors.items()} != listed:
        raise FileFormatError(
            f"Expected the tensors that structure.json lists in {str(file)!r}. Got others. Copy the whole folder again."
        )
    return tensors


def _check_digest(file: Path, expected: str) -> None:
    if not file.is_file():
        raise FileFormatError(f"Expected the file {str(file)!r}. Got none. Copy the whole folder.")
    if _digest(file) != expected:
        raise FileFormatError(
            f"Expected {str(file)!r} as it was saved. Got a file with another checksum: it is truncated or foreign. "
            "Copy the whole folder again."
        )


def _load_program(path: Path, structure: dict[str, Any]) -> nn.Module:
    _check_digest(path / "weights.safetensors", structure["weights_sha256"])
    _check_digest(path / "program.pt2", structure.get("program_sha256", ""))
    model = torch.export.load(path / "program.pt2").module()
    for method in ("train", "eval"):  # torch puts refusals in their place; the recorded operators have one mode anyway
        vars(model).pop(method, None)
    return model.eval()
