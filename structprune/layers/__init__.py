"""Block-sparse layers: modules, their one packed format, and the backends that multiply it."""

from structprune.layers.activation import Activation
from structprune.layers.backend import Backend, remember
from structprune.layers.conv import BlockSparseConv2d
from structprune.layers.dense import DENSE, DENSE_ONEDNN, Dense, DenseOneDNN, forget
from structprune.layers.geometry import Geometry
from structprune.layers.linear import BlockSparseLinear
from structprune.layers.pack import Packed, pack, unpack
from structprune.layers.pattern import GroupedColumns, Transposed
from structprune.layers.rowloop import ROWLOOP, RowLoop

__all__ = [
    "DENSE",
    "DENSE_ONEDNN",
    "ROWLOOP",
    "Activation",
    "Backend",
    "BlockSparseConv2d",
    "BlockSparseLinear",
    "Dense",
    "DenseOneDNN",
    "Geometry",
    "GroupedColumns",
    "Packed",
    "RowLoop",
    "Transposed",
    "forget",
    "pack",
    "remember",
    "unpack",
]

# Programs saved with these backends name them; loading one imports this package and finds them.
for _backend in (ROWLOOP, DENSE, DENSE_ONEDNN):
    remember(_backend)
