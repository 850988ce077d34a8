"""LLVM IR of the grouped matrix product: a register tile of outputs x tokens, and the loop over tiles around it.

The stored rows of one output group are contiguous in ``values``, so that one kept input column contributes

    tile[token, row] += x[token, columns[c]] * values[c, row]

with ``values[c, :]`` a few vector loads and ``x[token, columns[c]]`` one broadcast load: the work is proportional to
what is kept, whatever the columns are. The tile stays in registers over all columns of its group. This is the outer
product kernel of dense libraries (Goto and van de Geijn, Anatomy of high-performance matrix multiplication, 2008)
with the packed copy of the activations replaced by an indexed load.

This file only writes text; :mod:`structprune.layers.jit_engine` compiles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cached_property
from struct import pack, unpack

__all__ = ["Field", "Isa", "KernelKey", "Storage", "kernel_ir"]

ACTIVATIONS = ("none", "relu", "gelu")

# Q(a) exp(a^2 / 2) of the normal upper tail Q as a polynomial of u = 1 / (1 + a / 4), lowest degree first: a weighted
# minimax fit on 0 <= a <= 13 (Lawson's iteration on 400 Chebyshev nodes), relative error 6e-8 near 0.
TAIL = (
    2.046130383e-04,
    9.616717585e-02,
    1.260302491e-01,
    -1.32950882e-02,
    3.414980433e-01,
    -3.222901437e-01,
    3.689117832e-01,
    -9.722660539e-02,
)
TAIL_END = 13.0  # Q(13) is 6e-39, the end of float32
# exp2 on [-1/2, 1/2]: its Taylor series, whose remainder is 2e-9 there.
EXP2 = (
    1.0,
    6.931471806e-01,
    2.402265070e-01,
    5.550410866e-02,
    9.618129108e-03,
    1.333355815e-03,
    1.540353039e-04,
    1.525273380e-05,
)


class Isa(Enum):
    """Vector instructions that code is generated for: lanes of float32 and number of vector registers."""

    AVX2 = (8, 16)
    AVX512 = (16, 32)

    @property
    def lanes(self) -> int:
        return self.value[0]

    @property
    def registers(self) -> int:
        return self.value[1]


class Storage(Enum):
    """How values and activations are stored. The sums are float32 in each case."""

    FLOAT = "float"
    WIDENED = "widened"  # bfloat16 values and results, float32 activations: any columns, any machine
    PAIRS = "pairs"  # bfloat16, columns 2i and 2i + 1 together: vdpbf16ps multiplies and adds two columns at once
    LOOSE = "loose"  # bfloat16, any two columns at once: activations are loaded one by one

    @property
    def element(self) -> str:
        """Type of values and results in memory."""
        return "float" if self is Storage.FLOAT else "bfloat"

    @property
    def activation(self) -> str:
        """Type of activations in memory."""
        return "float" if self in (Storage.FLOAT, Storage.WIDENED) else "bfloat"

    @property
    def step(self) -> int:
        """Columns that one step takes."""
        return 2 if self in (Storage.PAIRS, Storage.LOOSE) else 1


class Field(IntEnum):
    """Places in the array of 64-bit integers that a worker receives."""

    NEXT_TASK = 0
    TASKS = 1
    CHUNKS = 2
    CHUNK_GROUPS = 3
    PANEL_TOKENS = 4
    TOKENS = 5
    GROUPS = 6
    OUTPUTS = 7
    X = 8
    VALUES = 9
    COLUMNS = 10
    STARTS = 11
    ORDER = 12
    BIAS = 13
    OUT = 14
    BASES = 15


@dataclass(frozen=True)
class KernelKey:
    """All that the generated code depends on.

    Parameters
    ----------
    height
        Rows of one output group, G.
    storage
        Element types, see `Storage`.
    isa
        Vector instructions.
    activation
        "none", "relu" or "gelu", applied to the sum and its bias.
    """

    height: int
    storage: Storage
    isa: Isa
    activation: str

    @cached_property
    def rows(self) -> int:
        """Rows of one register tile; a taller group takes several passes over its columns."""
        return min(self.height, 4 * self.isa.lanes if self.isa is Isa.AVX512 else 2 * self.isa.lanes)

    @cached_property
    def vectors(self) -> int:
        """Vectors in one column of the tile."""
        return self.rows // self.isa.lanes

    @cached_property
    def tokens(self) -> int:
        """Tokens of one register tile.

        Sums, one column of values and one broadcast have to fit the vector registers; more than about 10 pointers to
        tokens do not fit the general registers; and rows at multiples of 4 KB share the sets of a first-level cache
        of 8 ways, so 8 tokens is the most.
        """
        return min((self.isa.registers - self.vectors - 1) // self.vectors, 8)


class _Text:
    """Lines of one function, with fresh names for its values."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def let(self, expression: str) -> str:
        name = self.fresh()
        self.lines.append(f"  {name} = {expression}")
        return name

    def do(self, statement: str) -> None:
        self.lines.append(f"  {statement}")

    def block(self, label: str) -> None:
        self.lines.append(f"{label}:")


def _number(value: float) -> str:
    """A float32 constant: LLVM wants the bits of the equal double."""
    (rounded,) = unpack("<f", pack("<f", value))
    (bits,) = unpack("<Q", pack("<d", rounded))
    return f"0x{bits:016X}"


class _Vector:
    """Expressions on vectors of float32."""

    def __init__(self, text: _Text, lanes: int) -> None:
        self.text, self.lanes, self.type = text, lanes, f"<{lanes} x float>"

    def constant(self, value: float) -> str:
        return f"splat (float {_number(value)})"

    def apply(self, name: str, *arguments: str) -> str:
        typed = ", ".join(f"{self.type} {a}" for a in arguments)
        return self.text.let(f"call {self.type} @llvm.{name}.v{self.lanes}f32({typed})")

    def fma(self, a: str, b: str, c: str) -> str:
        return self.apply("fma", a, b, c)

    def binary(self, operation: str, a: str, b: str) -> str:
        return self.text.let(f"{operation} {self.type} {a}, {b}")

    def polynomial(self, coefficients: tuple[float, ...], u: str) -> str:
        total = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = self.fma(total, u, self.constant(coefficient))
        return total

    def gelu(self, x: str) -> str:
        """x times the normal distribution function of x, through the upper tail so that nothing cancels."""
        integers = f"<{self.lanes} x i32>"
        a = self.apply("minnum", self.apply("fabs", x), self.constant(TAIL_END))
        u = self.binary("fdiv", self.constant(1.0), self.fma(a, self.constant(0.25), self.constant(1.0)))
        # exp(-a^2 / 2) = 2^y, split into the whole and the broken part of y
        y = self.binary("fmul", self.binary("fmul", a, a), self.constant(-0.5 * 1.4426950408889634))
        whole = self.apply("rint", y)
        power = self.polynomial(EXP2, self.binary("fsub", y, whole))
        exponent = self.text.let(f"fptosi {self.type} {whole} to {integers}")
        exponent = self.text.let(f"add {integers} {exponent}, splat (i32 127)")
        exponent = self.text.let(f"shl {integers} {exponent}, splat (i32 23)")
        scale = self.text.let(f"bitcast {integers} {exponent} to {self.type}")
        tail = self.binary("fmul", self.binary("fmul", scale, power), self.polynomial(TAIL, u))
        negative = self.text.let(f"fcmp olt {self.type} {x}, zeroinitializer")
        upper = self.binary("fsub", self.constant(1.0), tail)
        share = self.text.let(f"select <{self.lanes} x i1> {negative}, {self.type} {tail}, {self.type} {upper}")
        return self.binary("fmul", x, share)


def kernel_ir(key: KernelKey) -> str:
    """The module of one key, as LLVM IR.

    It defines ``void worker(ptr)``, which takes tasks from the shared counter of its argument, an array of 64-bit
    integers laid out as `Field`, until none is left. Any number of threads may run it on the same argument.
    """
    lanes = key.isa.lanes
    vector = f"<{lanes} x float>"
    parts = [_tile(key, tokens) for tokens in range(1, key.tokens + 1)]
    parts += [_dispatch(key), _finish(key), _group(key), _worker(key)]
    parts += [f"declare {vector} @llvm.{f}.v{lanes}f32({vector})" for f in ("fabs", "rint")]
    parts += [f"declare {vector} @llvm.{f}.v{lanes}f32({vector}, {vector})" for f in ("minnum", "maximum")]
    parts.append(f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})")
    if key.storage.step == 2:
        parts.append(
            "declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)"
        )
    return "\n\n".join(parts) + "\n"


def _step(key: KernelKey, text: _Text, at: str, rows: list[str], tile: list[str], last: bool = False) -> list[str]:
    """Add the columns at ``at`` (one or two) to the tile; the ``last`` of an odd number comes alone."""
    lanes, vectors, element = key.isa.lanes, key.vectors, key.storage.element
    floats = f"<{lanes} x float>"
    start = text.let(f"mul nuw nsw i64 {at}, {key.height}")
    weight = text.let(f"getelementptr {element}, ptr %values, i64 {start}")
    if key.storage.step == 2:
        return _pair_step(key, text, weight, at, rows, tile, last)
    column = _column(text, at)
    weights = []
    for v in range(vectors):
        place = text.let(f"getelementptr {element}, ptr {weight}, i64 {v * lanes}")
        loaded = text.let(f"load <{lanes} x {element}>, ptr {place}, align {4 if element == 'float' else 2}")
        weights.append(loaded if element == "float" else text.let(f"fpext <{lanes} x bfloat> {loaded} to {floats}"))
    result = []
    for t, row in enumerate(rows):
        place = text.let(f"getelementptr float, ptr {row}, i64 {column}")
        spread = _spread(text, "float", text.let(f"load float, ptr {place}, align 4"), lanes)
        for v in range(vectors):
            terms = f"{floats} {weights[v]}, {floats} {spread}, {floats} {tile[t * vectors + v]}"
            result.append(text.let(f"call {floats} @llvm.fma.v{lanes}f32({terms})"))
    return result


def _column(text: _Text, at: str) -> str:
    index = text.let(f"getelementptr i32, ptr %columns, i64 {at}")
    return text.let(f"sext i32 {text.let(f'load i32, ptr {index}, align 4')} to i64")


def _spread(text: _Text, kind: str, scalar: str, lanes: int) -> str:
    """The number in every lane."""
    vector = f"<{lanes} x {kind}>"
    single = text.let(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
    return text.let(f"shufflevector {vector} {single}, {vector} poison, <{lanes} x i32> zeroinitializer")


def _halves(order: str) -> list[int]:
    """Lanes that vpunpcklwd ("low") or vpunpckhwd ("high") interleaves, as a shuffle of two vectors of 32."""
    first = 0 if order == "low" else 4
    return [lane * 8 + first + i + other for lane in range(4) for i in range(4) for other in (0, 32)]


def _mask(entries: list[int]) -> str:
    return f"<{len(entries)} x i32> <{', '.join(f'i32 {e}' for e in entries)}>"


def _pair_step(
    key: KernelKey, text: _Text, weight: str, at: str, rows: list[str], tile: list[str], last: bool
) -> list[str]:
    """Two columns at once. Rows of values are interleaved within 128-bit lanes, which `_ordered` undoes at the end."""
    wide, vectors = "<32 x bfloat>", key.vectors
    weights = []
    if vectors == 1:  # 16 rows: both columns are one vector already, one permutation interleaves them
        kind, other = ("<16 x bfloat>", "zeroinitializer") if last else (wide, "poison")
        loaded = text.let(f"load {kind}, ptr {weight}, align 2")
        entries = [i + second for i in range(16) for second in (0, 16)]
        weights.append(text.let(f"shufflevector {kind} {loaded}, {kind} {other}, {_mask(entries)}"))
    for half in range(vectors // 2):
        row_pair = []
        for which in (0,) if last else (0, key.height):
            place = text.let(f"getelementptr bfloat, ptr {weight}, i64 {which + 32 * half}")
            row_pair.append(text.let(f"load {wide}, ptr {place}, align 2"))
        upper = "zeroinitializer" if last else row_pair[1]
        for order in ("low", "high"):
            weights.append(text.let(f"shufflevector {wide} {row_pair[0]}, {wide} {upper}, {_mask(_halves(order))}"))
    first = _column(text, at)
    loose = key.storage is Storage.LOOSE and not last
    second = _column(text, text.let(f"add nuw nsw i64 {at}, 1")) if loose else ""
    result = []
    for t, row in enumerate(rows):
        place = text.let(f"getelementptr bfloat, ptr {row}, i64 {first}")
        if key.storage is Storage.PAIRS:
            scalar = text.let(f"load i32, ptr {place}, align 2")
        else:
            scalar = text.let(f"zext i16 {text.let(f'load i16, ptr {place}, align 2')} to i32")
        if loose:
            place = text.let(f"getelementptr bfloat, ptr {row}, i64 {second}")
            upper = text.let(f"zext i16 {text.let(f'load i16, ptr {place}, align 2')} to i32")
            scalar = text.let(f"or i32 {scalar}, {text.let(f'shl i32 {upper}, 16')}")
        pair = text.let(f"bitcast <16 x i32> {_spread(text, 'i32', scalar, 16)} to {wide}")
        for v in range(vectors):
            terms = f"<16 x float> {tile[t * vectors + v]}, {wide} {weights[v]}, {wide} {pair}"
            result.append(text.let(f"call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512({terms})"))
    return result


def _ordered(key: KernelKey, text: _Text, vectors: list[str]) -> list[str]:
    """One token's vectors of the tile in the order of the stored rows."""
    if key.storage.step == 1 or key.vectors == 1:
        return vectors
    floats, result = "<16 x float>", []
    for half in range(key.vectors // 2):
        low, high = vectors[2 * half], vectors[2 * half + 1]
        for first in (0, 2):
            # row 8 k + i lies in lane 4 k + i of `low` for i < 4, else in lane 4 k + i - 4 of `high`
            entries = [4 * k + i + other for k in (first, first + 1) for other in (0, 16) for i in range(4)]
            result.append(text.let(f"shufflevector {floats} {low}, {floats} {high}, {_mask(entries)}"))
    return result


def _tile(key: KernelKey, tokens: int) -> str:
    """One register tile: the sums over all columns of a group plus bias, as float32 at ``out``.

    Few tokens would wait for the multiply-add unit, so columns are then dealt to several sets of sums.
    """
    lanes, vectors = key.isa.lanes, key.vectors
    floats = f"<{lanes} x float>"
    size = tokens * vectors
    sets = 1 if size >= 8 else 2 if size >= 4 else 4
    step = key.storage.step
    text = _Text()
    text.block("entry")
    element = key.storage.activation
    rows = []
    for t in range(tokens):
        place = text.let(f"getelementptr i64, ptr %bases, i64 {t}")
        rows.append(text.let(f"getelementptr {element}, ptr %x, i64 {text.let(f'load i64, ptr {place}, align 8')}"))
    unrolled = text.let(f"and i64 %count, {-sets * step}")
    text.do(f"%some = icmp sgt i64 {unrolled}, 0")
    text.do("br i1 %some, label %main, label %rest")

    def loop(label: str, sums: list[list[str]], start: list[list[str]], source: str, at: str, first: str) -> None:
        text.block(label)
        after = [[f"%{label}{s}_{i}" for i in range(size)] for s in range(len(sums))]
        text.do(f"{at} = phi i64 [ {first}, %{source} ], [ {at}_next, %{label} ]")
        for s, names in enumerate(sums):
            for name, begin, end in zip(names, start[s], after[s], strict=True):
                text.do(f"{name} = phi {floats} [ {begin}, %{source} ], [ {end}, %{label} ]")
        for s, names in enumerate(sums):
            place = at if s == 0 else text.let(f"add nuw nsw i64 {at}, {s * step}")
            for end, value in zip(after[s], _step(key, text, place, rows, names), strict=True):
                text.do(f"{end} = bitcast {floats} {value} to {floats}")
        text.do(f"{at}_next = add nuw nsw i64 {at}, {len(sums) * step}")

    zeros = [["zeroinitializer"] * size for _ in range(sets)]
    loop("main", [[f"%m{s}_{i}" for i in range(size)] for s in range(sets)], zeros, "entry", "%c", "0")
    text.do(f"%more = icmp slt i64 %c_next, {unrolled}")
    text.do("br i1 %more, label %main, label %rest")
    text.block("rest")
    sums = []
    for s in range(sets):
        names = [f"%r{s}_{i}" for i in range(size)]
        for i, name in enumerate(names):
            text.do(f"{name} = phi {floats} [ zeroinitializer, %entry ], [ %main{s}_{i}, %main ]")
        sums.append(names)
    while len(sums) > 1:
        last = sums.pop()
        sums[0] = [text.let(f"fadd {floats} {a}, {b}") for a, b in zip(sums[0], last, strict=True)]
    finals, source = sums[0], "rest"
    if sets > 1:
        whole = text.let(f"and i64 %count, {-step}")
        text.do(f"%left = icmp slt i64 {unrolled}, {whole}")
        text.do("br i1 %left, label %tail, label %end")
        loop("tail", [[f"%t_{i}" for i in range(size)]], [finals], "rest", "%d", unrolled)
        text.do(f"%again = icmp slt i64 %d_next, {whole}")
        text.do("br i1 %again, label %tail, label %end")
        finals, source = (
            _joined(text, floats, "end", [(finals, "rest"), ([f"%tail0_{i}" for i in range(size)], "tail")]),
            "end",
        )
    if key.storage is Storage.LOOSE:
        text.do("%odd = trunc i64 %count to i1")
        text.do("br i1 %odd, label %alone, label %all")
        text.block("alone")
        place = text.let("sub nuw nsw i64 %count, 1")
        finals = _joined(
            text, floats, "all", [(finals, source), (_step(key, text, place, rows, finals, last=True), "alone")]
        )
    _store(key, text, tokens, finals)
    text.do("ret void")
    body = "\n".join(text.lines)
    arguments = "ptr %values, ptr %columns, i64 %count, ptr %bases, ptr %x, ptr %bias, ptr %out, i64 %stride"
    return f"define internal void @tile{tokens}({arguments}) {{\n{body}\n}}"


def _joined(text: _Text, kind: str, label: str, incoming: list[tuple[list[str], str]]) -> list[str]:
    """Begin the block where branches meet; each brings its sums and the name of its last block."""
    if text.lines[-1].split()[0] != "br":
        text.do(f"br label %{label}")
    text.block(label)
    names = [f"%{label}_{i}" for i in range(len(incoming[0][0]))]
    for i, name in enumerate(names):
        text.do(f"{name} = phi {kind} " + ", ".join(f"[ {sums[i]}, %{block} ]" for sums, block in incoming))
    return names


def _store(key: KernelKey, text: _Text, tokens: int, sums: list[str]) -> None:
    """Bias, ReLU and the stores of one tile."""
    lanes, vectors = key.isa.lanes, key.vectors
    floats = f"<{lanes} x float>"
    bias = []
    for v in range(vectors):
        place = text.let(f"getelementptr float, ptr %bias, i64 {v * lanes}")
        bias.append(text.let(f"load {floats}, ptr {place}, align 4"))
    for t in range(tokens):
        row = text.let(f"getelementptr float, ptr %out, i64 {text.let(f'mul nsw i64 %stride, {t}')}")
        for v, total in enumerate(_ordered(key, text, sums[t * vectors : (t + 1) * vectors])):
            value = text.let(f"fadd {floats} {total}, {bias[v]}")
            if key.activation == "relu":  # `maximum` hands NaN on, as torch.relu does
                value = text.let(f"call {floats} @llvm.maximum.v{lanes}f32({floats} {value}, {floats} zeroinitializer)")
            place = text.let(f"getelementptr float, ptr {row}, i64 {v * lanes}")
            text.do(f"store {floats} {value}, ptr {place}, align 4")


def _dispatch(key: KernelKey) -> str:
    """Call the tile of ``tokens`` tokens."""
    arguments = "ptr %values, ptr %columns, i64 %count, ptr %bases, ptr %x, ptr %bias, ptr %out, i64 %stride"
    cases = " ".join(f"i64 {t}, label %t{t}" for t in range(1, key.tokens + 1))
    calls = "\n".join(f"t{t}:\n  call void @tile{t}({arguments})\n  ret void" for t in range(1, key.tokens + 1))
    return (
        f"define internal void @tile({arguments}, i64 %tokens) {{\n"
        f"  switch i64 %tokens, label %none [ {cases} ]\n{calls}\nnone:\n  ret void\n}}"
    )


def _rounded(text: _Text, value: str, lanes: int, native: bool) -> str:
    """The 16 bits of the nearest bfloat16, of a vector or (``lanes`` 0) of one number.

    Without AVX512-BF16 the conversion of LLVM calls a function that no library here holds, so it is written out: add
    half of the last place, less one bit where the kept part is even, and cut; a NaN stays one.
    """

    def of(kind: str) -> str:
        return f"<{lanes} x {kind}>" if lanes else kind

    def constant(number: int) -> str:
        return f"splat (i32 {number})" if lanes else str(number)

    if native:
        short = text.let(f"fptrunc {of('float')} {value} to {of('bfloat')}")
        return text.let(f"bitcast {of('bfloat')} {short} to {of('i16')}")
    words = of("i32")
    bits = text.let(f"bitcast {of('float')} {value} to {words}")
    kept = text.let(f"lshr {words} {bits}, {constant(16)}")
    odd = text.let(f"and {words} {kept}, {constant(1)}")
    half = text.let(f"add {words} {odd}, {constant(0x7FFF)}")
    nearest = text.let(f"lshr {words} {text.let(f'add {words} {bits}, {half}')}, {constant(16)}")
    quiet = text.let(f"or {words} {kept}, {constant(0x40)}")
    undefined = text.let(f"fcmp uno {of('float')} {value}, {value}")
    chosen = text.let(f"select {of('i1')} {undefined}, {words} {quiet}, {words} {nearest}")
    return text.let(f"trunc {words} {chosen} to {of('i16')}")


def _finish(key: KernelKey) -> str:
    """Move one tile from the scratch to the results: GELU, conversion, permuted or missing rows."""
    lanes, rows = key.isa.lanes, key.rows
    floats = f"<{lanes} x float>"
    result = key.storage.element
    text = _Text()
    text.block("entry")
    if key.activation == "gelu":
        text.do(f"%size = mul nuw nsw i64 %tokens, {rows}")
        text.do("br label %gelu")
        text.block("gelu")
        text.do("%g = phi i64 [ 0, %entry ], [ %g_next, %gelu ]")
        place = text.let("getelementptr float, ptr %scratch, i64 %g")
        value = _Vector(text, lanes).gelu(text.let(f"load {floats}, ptr {place}, align 4"))
        text.do(f"store {floats} {value}, ptr {place}, align 4")
        text.do(f"%g_next = add nuw nsw i64 %g, {lanes}")
        text.do("%g_more = icmp slt i64 %g_next, %size")
        text.do("br i1 %g_more, label %gelu, label %choose")
    else:
        text.do("br label %choose")
    text.block("choose")
    text.do("%ordered = icmp ne ptr %order, null")
    text.do(f"%ragged = icmp slt i64 %valid, {rows}")
    text.do("%single = or i1 %ordered, %ragged")
    text.do("br label %token")
    text.block("token")
    text.do("%t = phi i64 [ 0, %choose ], [ %t_next, %done ]")
    text.do(f"%from = getelementptr float, ptr %scratch, i64 {text.let(f'mul nuw nsw i64 %t, {rows}')}")
    text.do(f"%to = getelementptr {result}, ptr %out, i64 {text.let('mul nsw i64 %t, %stride')}")
    text.do("br i1 %single, label %each, label %whole")
    text.block("whole")
    for v in range(rows // lanes):
        source = text.let(f"getelementptr float, ptr %from, i64 {v * lanes}")
        value, kind = text.let(f"load {floats}, ptr {source}, align 4"), floats
        if result == "bfloat":
            value, kind = _rounded(text, value, lanes, native=key.storage.step == 2), f"<{lanes} x i16>"
        place = text.let(f"getelementptr {result}, ptr %to, i64 %first")
        place = text.let(f"getelementptr {result}, ptr {place}, i64 {v * lanes}")
        text.do(f"store {kind} {value}, ptr {place}, align 2")
    text.do("br label %done")
    text.block("each")
    text.do("%i = phi i64 [ 0, %token ], [ %i_next, %put ]")
    text.do("%row = add nuw nsw i64 %first, %i")
    text.do("br i1 %ordered, label %lookup, label %put")
    text.block("lookup")
    entry = text.let("getelementptr i32, ptr %order, i64 %row")
    text.do(f"%place = sext i32 {text.let(f'load i32, ptr {entry}, align 4')} to i64")
    text.do("br label %put")
    text.block("put")
    text.do("%output = phi i64 [ %row, %each ], [ %place, %lookup ]")
    source = text.let("getelementptr float, ptr %from, i64 %i")
    value = text.let(f"load float, ptr {source}, align 4")
    if result == "bfloat":
        value = _rounded(text, value, 0, native=False)
    target = text.let(f"getelementptr {result}, ptr %to, i64 %output")
    text.do(f"store {'i16' if result == 'bfloat' else result} {value}, ptr {target}, align 2")
    text.do("%i_next = add nuw nsw i64 %i, 1")
    text.do("%i_more = icmp slt i64 %i_next, %valid")
    text.do("br i1 %i_more, label %each, label %done")
    text.block("done")
    text.do("%t_next = add nuw nsw i64 %t, 1")
    text.do("%t_more = icmp slt i64 %t_next, %tokens")
    text.do("br i1 %t_more, label %token, label %end")
    text.block("end")
    text.do("ret void")
    arguments = "ptr %scratch, i64 %tokens, ptr %out, i64 %stride, i64 %first, i64 %valid, ptr %order"
    return f"define internal void @finish({arguments}) {{\n" + "\n".join(text.lines) + "\n}"


def _field(field: Field, kind: str = "i64") -> str:
    name = field.name.lower()
    return (
        f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {field.value}\n"
        f"  %{name} = load {kind}, ptr %{name}_at, align 8"
    )


def _group(key: KernelKey) -> str:
    """All tiles of one group for the tokens of one panel."""
    rows, height = key.rows, key.height
    size = key.tokens
    element = key.storage.element
    fields = "\n".join(
        [_field(f) for f in (Field.OUTPUTS,)]
        + [_field(f, "ptr") for f in (Field.VALUES, Field.COLUMNS, Field.STARTS, Field.ORDER, Field.BIAS, Field.OUT)]
    )
    always = "true" if key.activation == "gelu" or key.storage is not Storage.FLOAT else "false"
    same = "ptr %p_values, ptr %own_columns, i64 %count, ptr %t_bases, ptr %x, ptr %p_bias"
    return f"""define internal void @group(ptr %arguments, i64 %g, ptr %x, ptr %bases, i64 %token, i64 %tokens) {{
entry:
{fields}
  %bias_rows = alloca [{height} x float], align 64
  %scratch = alloca [{size * rows} x float], align 64
  %start_at = getelementptr i32, ptr %starts, i64 %g
  %start32 = load i32, ptr %start_at, align 4
  %stop_at = getelementptr i32, ptr %start_at, i64 1
  %stop32 = load i32, ptr %stop_at, align 4
  %count32 = sub nsw i32 %stop32, %start32
  %count = zext i32 %count32 to i64
  %start = zext i32 %start32 to i64
  %own_columns = getelementptr i32, ptr %columns, i64 %start
  %value_start = mul nuw nsw i64 %start, {height}
  %own_values = getelementptr {element}, ptr %values, i64 %value_start
  %first = mul nuw nsw i64 %g, {height}
  %left = sub nsw i64 %outputs, %first
  %short = icmp slt i64 %left, {height}
  %here = select i1 %short, i64 %left, i64 {height}
  %ordered = icmp ne ptr %order, null
  %biased = icmp ne ptr %bias, null
  %is_plain0 = or i1 %short, %ordered
  %indirect = or i1 %is_plain0, {always}
  %unbiased = xor i1 %biased, true
  %gathered = or i1 %is_plain0, %unbiased
  br i1 %gathered, label %fill, label %plain
plain:
  %bias_first = getelementptr float, ptr %bias, i64 %first
  br label %passes
fill:
  %b = phi i64 [ 0, %entry ], [ %b_next, %filled ]
  %b_in = icmp slt i64 %b, %here
  %b_read = and i1 %b_in, %biased
  br i1 %b_read, label %read, label %filled
read:
  %b_row = add nuw nsw i64 %first, %b
  br i1 %ordered, label %b_look, label %b_load
b_look:
  %b_order = getelementptr i32, ptr %order, i64 %b_row
  %b_place32 = load i32, ptr %b_order, align 4
  %b_place = sext i32 %b_place32 to i64
  br label %b_load
b_load:
  %b_output = phi i64 [ %b_row, %read ], [ %b_place, %b_look ]
  %b_at = getelementptr float, ptr %bias, i64 %b_output
  %b_given = load float, ptr %b_at, align 4
  br label %filled
filled:
  %b_value = phi float [ 0.0, %fill ], [ %b_given, %b_load ]
  %b_to = getelementptr float, ptr %bias_rows, i64 %b
  store float %b_value, ptr %b_to, align 4
  %b_next = add nuw nsw i64 %b, 1
  %b_more = icmp slt i64 %b_next, {height}
  br i1 %b_more, label %fill, label %passes
passes:
  %bias_group = phi ptr [ %bias_first, %plain ], [ %bias_rows, %filled ]
  %added = add nuw nsw i64 %tokens, {size - 1}
  %tiles = udiv i64 %added, {size}
  %least = udiv i64 %tokens, %tiles
  %longer = urem i64 %tokens, %tiles
  br label %pass
pass:
  %p = phi i64 [ 0, %passes ], [ %p_next, %pass_end ]
  %p_left = sub nsw i64 %here, %p
  %p_short = icmp slt i64 %p_left, {rows}
  %valid = select i1 %p_short, i64 %p_left, i64 {rows}
  %p_values = getelementptr {element}, ptr %own_values, i64 %p
  %p_bias = getelementptr float, ptr %bias_group, i64 %p
  %p_first = add nuw nsw i64 %first, %p
  br label %each_tile
each_tile:
  %i = phi i64 [ 0, %pass ], [ %i_next, %tile_end ]
  %t = phi i64 [ 0, %pass ], [ %t_next, %tile_end ]
  %is_longer = icmp slt i64 %i, %longer
  %one_more = zext i1 %is_longer to i64
  %size = add nuw nsw i64 %least, %one_more
  %t_bases = getelementptr i64, ptr %bases, i64 %t
  %t_token = add nuw nsw i64 %token, %t
  %t_offset = mul nuw nsw i64 %t_token, %outputs
  %t_out = getelementptr {element}, ptr %out, i64 %t_offset
  br i1 %indirect, label %through_scratch, label %straight
straight:
  %s_out = getelementptr float, ptr %t_out, i64 %p_first
  call void @tile({same}, ptr %s_out, i64 %outputs, i64 %size)
  br label %tile_end
through_scratch:
  call void @tile({same}, ptr %scratch, i64 {rows}, i64 %size)
  call void @finish(ptr %scratch, i64 %size, ptr %t_out, i64 %outputs, i64 %p_first, i64 %valid, ptr %order)
  br label %tile_end
tile_end:
  %i_next = add nuw nsw i64 %i, 1
  %t_next = add nuw nsw i64 %t, %size
  %t_more = icmp slt i64 %i_next, %tiles
  br i1 %t_more, label %each_tile, label %pass_end
pass_end:
  %p_next = add nuw nsw i64 %p, {rows}
  %p_more = icmp slt i64 %p_next, %here
  br i1 %p_more, label %pass, label %end
end:
  ret void
}}"""


def _worker(key: KernelKey) -> str:
    """Take tasks until none is left. A task is one panel of tokens times one chunk of groups."""
    integers = (Field.TASKS, Field.CHUNKS, Field.CHUNK_GROUPS, Field.PANEL_TOKENS, Field.TOKENS, Field.GROUPS)
    fields = "\n".join([_field(f) for f in integers] + [_field(f, "ptr") for f in (Field.X, Field.BASES)])
    return f"""define void @worker(ptr %arguments) {{
entry:
{fields}
  %next_task_at = getelementptr i64, ptr %arguments, i64 {Field.NEXT_TASK.value}
  br label %take
take:
  %task = atomicrmw add ptr %next_task_at, i64 1 monotonic
  %is_task = icmp slt i64 %task, %tasks
  br i1 %is_task, label %begin, label %end
begin:
  %which = udiv i64 %task, %chunks
  %chunk = urem i64 %task, %chunks
  %token = mul nuw nsw i64 %which, %panel_tokens
  %token_left = sub nsw i64 %tokens, %token
  %token_short = icmp slt i64 %token_left, %panel_tokens
  %here = select i1 %token_short, i64 %token_left, i64 %panel_tokens
  %group_first = mul nuw nsw i64 %chunk, %chunk_groups
  %group_end = add nuw nsw i64 %group_first, %chunk_groups
  %group_over = icmp slt i64 %group_end, %groups
  %group_stop = select i1 %group_over, i64 %group_end, i64 %groups
  %own_bases = getelementptr i64, ptr %bases, i64 %token
  br label %each
each:
  %g = phi i64 [ %group_first, %begin ], [ %g_next, %each ]
  call void @group(ptr %arguments, i64 %g, ptr %x, ptr %own_bases, i64 %token, i64 %here)
  %g_next = add nuw nsw i64 %g, 1
  %g_more = icmp slt i64 %g_next, %group_stop
  br i1 %g_more, label %each, label %take
end:
  ret void
}}"""
