"""Block-sparse layers: modules, their one packed format, and the backends that multiply it."""

from structprune.layers.activation import Activation
from structprune.layers.backend import Backend, remember
from structprune.layers.conv import BlockSparseConv2d
from structprune.layers.dense import DENSE, DENSE_ONEDNN, Dense, DenseOneDNN, forget
from structprune.layers.geometry import Geometry
from structprune.layers.jit_backend import CPU_JIT, CpuJit
from structprune.layers.linear import BlockSparseLinear
from structprune.layers.pack import Packed, pack, unpack
from structprune.layers.pattern import GroupedColumns, Transposed
from structprune.layers.rowloop import ROWLOOP, RowLoop
from structprune.layers.triton_backend import CUDA_TRITON, CudaTriton

__all__ = [
    "CPU_JIT",
    "CUDA_TRITON",
    "DENSE",
    "DENSE_ONEDNN",
    "ROWLOOP",
    "Activation",
    "Backend",
    "BlockSparseConv2d",
    "BlockSparseLinear",
    "CpuJit",
    "CudaTriton",
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
for _backend in (ROWLOOP, DENSE, DENSE_ONEDNN, CPU_JIT, CUDA_TRITON):
    remember(_backend)
