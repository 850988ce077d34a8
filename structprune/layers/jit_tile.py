"""LLVM IR of one register tile: some tokens times the rows of one group, over all columns that the group keeps.

One kept input column contributes

    tile[token, row] += x[token, columns[c]] * values[c, row]

with ``values[c, :]`` a few vector loads and ``x[token, columns[c]]`` one broadcast load: the work is proportional to
what is kept, whatever the columns are. The tile stays in registers over all columns. This is the outer product kernel
of dense libraries (Goto and van de Geijn, Anatomy of high-performance matrix multiplication, 2008) with the packed
copy of the activations replaced by an indexed load.
"""

from __future__ import annotations

from structprune.layers.jit_key import KernelKey, Storage
from structprune.layers.jit_text import Text

__all__ = ["column_at", "spread", "tile_ir"]


def _step(key: KernelKey, text: Text, at: str, rows: list[str], tile: list[str], last: bool = False) -> list[str]:
    """Add the columns at ``at`` (one or two) to the tile; the ``last`` of an odd number comes alone."""
    lanes, vectors, element = key.isa.lanes, key.vectors, key.storage.element
    floats = f"<{lanes} x float>"
    start = text.let(f"mul nuw nsw i64 {at}, {key.height}")
    weight = text.let(f"getelementptr {element}, ptr %values, i64 {start}")
    if key.storage.step == 2:
        return _pair_step(key, text, weight, at, rows, tile, last)
    column = column_at(text, at)
    weights = []
    for v in range(vectors):
        place = text.let(f"getelementptr {element}, ptr {weight}, i64 {v * lanes}")
        loaded = text.let(f"load <{lanes} x {element}>, ptr {place}, align {4 if element == 'float' else 2}")
        weights.append(loaded if element == "float" else text.let(f"fpext <{lanes} x bfloat> {loaded} to {floats}"))
    result = []
    for t, row in enumerate(rows):
        place = text.let(f"getelementptr float, ptr {row}, i64 {column}")
        number = spread(text, "float", text.let(f"load float, ptr {place}, align 4"), lanes)
        for v in range(vectors):
            terms = f"{floats} {weights[v]}, {floats} {number}, {floats} {tile[t * vectors + v]}"
            result.append(text.let(f"call {floats} @llvm.fma.v{lanes}f32({terms})"))
    return result


def column_at(text: Text, at: str) -> str:
    """The column of that number, as a 64-bit integer."""
    index = text.let(f"getelementptr i32, ptr %columns, i64 {at}")
    return text.let(f"sext i32 {text.let(f'load i32, ptr {index}, align 4')} to i64")


def spread(text: Text, kind: str, scalar: str, lanes: int) -> str:
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
    key: KernelKey, text: Text, weight: str, at: str, rows: list[str], tile: list[str], last: bool
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
    first = column_at(text, at)
    loose = key.storage is Storage.LOOSE and not last
    second = column_at(text, text.let(f"add nuw nsw i64 {at}, 1")) if loose else ""
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
        pair = text.let(f"bitcast <16 x i32> {spread(text, 'i32', scalar, 16)} to {wide}")
        for v in range(vectors):
            terms = f"<16 x float> {tile[t * vectors + v]}, {wide} {weights[v]}, {wide} {pair}"
            result.append(text.let(f"call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512({terms})"))
    return result


def _ordered(key: KernelKey, text: Text, vectors: list[str]) -> list[str]:
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


def tile_ir(key: KernelKey, tokens: int) -> str:
    """One register tile: the sums over all columns of a group plus bias, as float32 at ``out``.

    Few tokens would wait for the multiply-add unit, so columns are then dealt to several sets of sums.
    """
    lanes, vectors = key.isa.lanes, key.vectors
    floats = f"<{lanes} x float>"
    size = tokens * vectors
    sets = 1 if size >= 8 else 2 if size >= 4 else 4
    step = key.storage.step
    text = Text()
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
        tails = [f"%tail0_{i}" for i in range(size)]
        finals, source = _joined(text, floats, "end", [(finals, "rest"), (tails, "tail")]), "end"
    if key.storage is Storage.LOOSE:
        text.do("%odd = trunc i64 %count to i1")
        text.do("br i1 %odd, label %alone, label %all")
        text.block("alone")
        place = text.let("sub nuw nsw i64 %count, 1")
        longer = _step(key, text, place, rows, finals, last=True)
        finals = _joined(text, floats, "all", [(finals, source), (longer, "alone")])
    _store(key, text, tokens, finals)
    text.do("ret void")
    body = "\n".join(text.lines)
    arguments = "ptr %values, ptr %columns, i64 %count, ptr %bases, ptr %x, ptr %bias, ptr %out, i64 %stride"
    return f"define internal void @tile{tokens}({arguments}) {{\n{body}\n}}"


def _joined(text: Text, kind: str, label: str, incoming: list[tuple[list[str], str]]) -> list[str]:
    """Begin the block where branches meet; each brings its sums and the name of its last block."""
    if text.lines[-1].split()[0] != "br":
        text.do(f"br label %{label}")
    text.block(label)
    names = [f"%{label}_{i}" for i in range(len(incoming[0][0]))]
    for i, name in enumerate(names):
        text.do(f"{name} = phi {kind} " + ", ".join(f"[ {sums[i]}, %{block} ]" for sums, block in incoming))
    return names


def _store(key: KernelKey, text: Text, tokens: int, sums: list[str]) -> None:
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
