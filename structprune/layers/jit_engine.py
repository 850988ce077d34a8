"""Compile generated LLVM IR with llvmlite and run it, in as many threads as torch would.

llvmlite is the compiler of numba: one wheel, no C compiler. It is an optional dependency, imported here alone and only
when a kernel is asked for.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from structprune.layers.jit_gradient_ir import gradient_ir
from structprune.layers.jit_ir import kernel_ir
from structprune.layers.jit_key import GradientKey, Isa, KernelKey

__all__ = ["Code", "Function", "available", "compiled", "has_bfloat16", "isa_of_this_machine", "run"]

Function = Any  # a foreign function of ctypes; its classes have no public name


class Code(NamedTuple):
    """The machine code of one kernel.

    Attributes
    ----------
    worker
        Takes an array laid out as `Field` and works until no task is left.
    alone
        Takes such an array, which it leaves as it is, and the addresses of activations, values, bias (or 0) and
        outputs, and does all tasks.
    """

    worker: Function
    alone: Function


OLDEST_LLVM = 20  # that of llvmlite 0.45; older ones read neither `splat` constants nor pairs of bfloat16
_lock = threading.Lock()


@lru_cache(maxsize=1)
def available() -> str:
    """Say why the kernels cannot run on this machine: '' where they can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"Kernels exist for x86-64 processors alone; this is {platform.machine()}."
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return "llvmlite is not installed (pip install 'llvmlite>=0.45')."
    if llvm.llvm_version_info[0] < OLDEST_LLVM:
        brought = llvm.llvm_version_info[0]
        return f"llvmlite brings LLVM {brought}, which is before {OLDEST_LLVM} (pip install 'llvmlite>=0.45')."
    if not (_feature("avx2") and _feature("fma")):
        return "The processor has no AVX2 with fused multiply-add."
    return ""


@lru_cache(maxsize=1)
def isa_of_this_machine() -> Isa:
    """Return the widest instructions of this machine; only where `available` is ''."""
    return Isa.AVX512 if all(_feature(f) for f in ("avx512f", "avx512bw", "avx512vl", "avx512dq")) else Isa.AVX2


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Return whether the processor multiplies pairs of bfloat16 (AVX512-BF16)."""
    return isa_of_this_machine() is Isa.AVX512 and _feature("avx512bf16")


@lru_cache(maxsize=1)
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return dict(llvm.get_host_cpu_features())


def _feature(name: str) -> bool:
    return bool(_features().get(name, False))


_engines: dict[KernelKey | GradientKey, tuple[Any, Code]] = {}


def compiled(key: KernelKey | GradientKey) -> Code:
    """Return the machine code of one key; it is made once per process.

    Raises
    ------
    RuntimeError
        If this machine cannot run it.
    """
    known = _engines.get(key)
    if known is None:
        with _lock:
            known = _engines.get(key)
            if known is None:
                known = _engines[key] = _compile(key)
    return known[1]


def _compile(key: KernelKey | GradientKey) -> tuple[Any, Code]:
    reason = available()
    if reason:
        raise RuntimeError(f"Expected a machine for the cpu-jit kernels. {reason} Choose another backend.")
    if key.isa is Isa.AVX512 and isa_of_this_machine() is not Isa.AVX512:
        raise RuntimeError("Expected a processor with AVX-512. Got one without. Ask for Isa.AVX2.")
    import llvmlite.binding as llvm

    machine = _target_machine(key.isa)
    module = llvm.parse_assembly(text_of(key))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    pointer = ctypes.c_void_p
    worker = ctypes.CFUNCTYPE(None, pointer)(engine.get_function_address("worker"))
    alone = ctypes.CFUNCTYPE(None, *[pointer] * 5)(engine.get_function_address("alone"))
    return engine, Code(worker, alone)


def text_of(key: KernelKey | GradientKey) -> str:
    """Return the kernel as LLVM IR."""
    return kernel_ir(key) if isinstance(key, KernelKey) else gradient_ir(key)


def _target_machine(isa: Isa) -> Any:
    import llvmlite.binding as llvm

    target = llvm.Target.from_default_triple()
    cpu = llvm.get_host_cpu_name() if isa is Isa.AVX512 else "haswell"
    features = llvm.get_host_cpu_features().flatten() if isa is Isa.AVX512 else ""
    return target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


def assembly(key: KernelKey | GradientKey) -> str:
    """Return the machine code of one key as assembly text, to look at or to test."""
    import llvmlite.binding as llvm

    _features()
    return _target_machine(key.isa).emit_assembly(llvm.parse_assembly(text_of(key)))


def libraries_of_torch() -> list[Path]:
    """Return the GNU OpenMP libraries that torch brought along; none on macOS and Windows."""
    return sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))


@lru_cache(maxsize=1)
def _team() -> Callable[[Function, int, int], None]:
    """Return what runs a worker in several threads: torch's own OpenMP pool, else threads of Python.

    Torch's pool is warm and pinned, and a second pool would compete with it for the same cores.
    """
    libraries = libraries_of_torch()
    if libraries:
        parallel = ctypes.CDLL(str(libraries[0])).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None

        def through_openmp(worker: Function, arguments: int, threads: int) -> None:
            parallel(ctypes.cast(worker, ctypes.c_void_p), arguments, threads, 0)

        return through_openmp
    pool = ThreadPoolExecutor(thread_name_prefix="structprune")

    def through_python(worker: Function, arguments: int, threads: int) -> None:
        others = [pool.submit(worker, arguments) for _ in range(threads - 1)]
        worker(arguments)
        for other in others:
            other.result()

    return through_python


def run(worker: Function, arguments: array[int], threads: int) -> None:
    """Run a worker on its tasks in up to ``threads`` threads and wait for all of them."""
    address, _ = arguments.buffer_info()
    if threads > 1:
        _team()(worker, address, threads)
    else:
        worker(address)
