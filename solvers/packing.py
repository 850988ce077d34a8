"""Selection problems as files: a JSON header and named arrays, in one ``.npz`` or one ``.json`` file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from solvers.terms import Capacity, FloatArray, IntArray, Link, LocalLimit, Product, Table, Term, ValueTable

#: Formats that are read. 2 added value tables, local limits and links; problems without them are written as 1.
FILE_FORMATS = (1, 2)

#: Name, levels, values, order.
GroupParts: TypeAlias = tuple[str, IntArray, FloatArray, IntArray]

#: Groups, capacities, size, value tables, local limits, links.
Parts: TypeAlias = tuple[
    list[GroupParts],
    tuple[Capacity, ...],
    int,
    tuple[ValueTable, ...],
    tuple[LocalLimit, ...],
    tuple[Link, ...],
]


@dataclass(frozen=True)
class Packed:
    """A JSON header and the arrays that it refers to by name."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def digest(self) -> str:
        """SHA-256 of header and arrays, as 64 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        for name in sorted(self.arrays):
            digest.update(f"{name}{self.arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()


def pack(
    groups: Sequence[GroupParts],
    capacities: Sequence[Capacity],
    size: int,
    value_tables: Sequence[ValueTable],
    local_limits: Sequence[LocalLimit],
    links: Sequence[Link],
) -> Packed:
    """Take a problem apart."""
    arrays: dict[str, NDArray[Any]] = {}
    for g, (_, levels, values, order) in enumerate(groups):
        arrays |= {f"levels_{g}": levels, f"values_{g}": values, f"order_{g}": order}
    packed = []
    for k, capacity in enumerate(capacities):
        terms: list[dict[str, Any]] = []
        for t, term in enumerate(capacity.terms):
            if isinstance(term, Table):
                arrays[f"table_{k}_{t}"] = term.entries
                terms.append({"groups": term.groups})
            else:
                terms.append({"groups": term.groups, "coefficient": term.coefficient})
        packed.append({"resource": capacity.resource, "limit": capacity.limit, "terms": terms})
    header: dict[str, Any] = {"format": 1, "size": size, "groups": [g[0] for g in groups], "capacities": packed}
    if value_tables or local_limits or links:
        arrays |= {f"value_table_{t}": table.entries for t, table in enumerate(value_tables)}
        header |= {
            "format": 2,
            "value_tables": [{"groups": table.groups, "label": table.label} for table in value_tables],
            "local_limits": [{"terms": one.terms, "limit": one.limit, "label": one.label} for one in local_limits],
            "links": [{"groups": link.groups, "by_index": link.by_index} for link in links],
        }
    return Packed(header, arrays)


def unpack(packed: Packed, source: str) -> Parts:
    """Put a problem's parts together again. Raises ValueError for a file of another kind."""
    header, arrays = packed.header, packed.arrays
    if header.get("format") not in FILE_FORMATS:
        raise ValueError(
            f"Expected a selection problem of format {' or '.join(map(str, FILE_FORMATS))} in {source!r}. "
            f"Got {header.get('format')!r}. Save it again with this version."
        )
    groups = [
        (name, arrays[f"levels_{g}"], arrays[f"values_{g}"], arrays[f"order_{g}"])
        for g, name in enumerate(header["groups"])
    ]
    capacities = []
    for k, one in enumerate(header["capacities"]):
        terms: list[Term] = []
        for t, term in enumerate(one["terms"]):
            scope = tuple(term["groups"])
            if "coefficient" in term:
                terms.append(Product(scope, term["coefficient"]))
            else:
                terms.append(Table(scope, arrays[f"table_{k}_{t}"]))
        capacities.append(Capacity(one["resource"], one["limit"], tuple(terms)))
    tables = tuple(
        ValueTable(tuple(one["groups"]), arrays[f"value_table_{t}"], one["label"])
        for t, one in enumerate(header.get("value_tables", []))
    )
    limits = tuple(
        LocalLimit(tuple((g, c) for g, c in one["terms"]), one["limit"], one["label"])
        for one in header.get("local_limits", [])
    )
    links = tuple(Link(tuple(one["groups"]), one["by_index"]) for one in header.get("links", []))
    return groups, tuple(capacities), header["size"], tables, limits, links


def _listed(array: NDArray[Any]) -> dict[str, Any]:
    """An array in JSON's words; null stands for -inf, which JSON does not have."""
    entries = [None if entry == -math.inf else entry for entry in array.ravel().tolist()]
    return {"dtype": str(array.dtype), "shape": array.shape, "entries": entries}


def _array(listed: dict[str, Any]) -> NDArray[Any]:
    entries = [-math.inf if entry is None else entry for entry in listed["entries"]]
    return np.array(entries, dtype=listed["dtype"]).reshape(listed["shape"])


def write(packed: Packed, path: str | os.PathLike[str]) -> None:
    """Write one file under a temporary name, then rename it."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        if target.suffix == ".json":
            arrays = {name: _listed(array) for name, array in packed.arrays.items()}
            text = json.dumps({"header": packed.header, "arrays": arrays}, allow_nan=False)
            temporary.write_text(text, encoding="utf-8")
        else:
            with temporary.open("wb") as file:
                header = np.array(json.dumps(packed.header))
                np.savez_compressed(file, header=header, **packed.arrays)  # type: ignore[arg-type]
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Parts:
    """Read what ``write`` wrote."""
    if Path(path).suffix == ".json":
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        arrays = {name: _array(one) for name, one in content.get("arrays", {}).items()}
        return unpack(Packed(content.get("header", {}), arrays), os.fspath(path))
    with np.load(path, allow_pickle=False) as stored:
        header = json.loads(str(stored["header"])) if "header" in stored else {}
        arrays = {name: stored[name] for name in stored.files if name != "header"}
    return unpack(Packed(header, arrays), os.fspath(path))
