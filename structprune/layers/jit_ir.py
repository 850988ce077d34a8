"""LLVM IR of the grouped matrix product: the loops over tasks, groups and register tiles.

Groups are the inner loop of a panel of tokens, so that the panel's activations stay in the second-level cache while
the values stream through it. This file only writes text; :mod:`structprune.layers.jit_engine` compiles it.
"""

from __future__ import annotations

from structprune.layers.jit_key import Field, KernelKey, Storage
from structprune.layers.jit_text import Text, Vector, rounded
from structprune.layers.jit_tile import tile_ir

__all__ = ["alone_ir", "field_ir", "kernel_ir"]

LINE = 64  # bytes of a cache line


def kernel_ir(key: KernelKey) -> str:
    """The module of one key, as LLVM IR.

    It defines ``void worker(ptr)``, which takes tasks from the shared counter of its argument, an array of 64-bit
    integers laid out as `Field`, until none is left. Any number of threads may run it on the same argument. And it
    defines ``void alone(ptr, x, values, bias, out)``, which does all tasks of such an array with these four addresses
    put into a copy of it, so that one array serves many calls.
    """
    lanes = key.isa.lanes
    vector = f"<{lanes} x float>"
    parts = [tile_ir(key, tokens) for tokens in range(1, key.tokens + 1)]
    parts += [_dispatch(key), _finish(key), _stored_bias(key), _tiles(key), _group(key), _worker(key), alone_ir()]
    parts.append(f"@zeros = internal constant [{key.height} x float] zeroinitializer, align 64")
    parts += [f"declare {vector} @llvm.{f}.v{lanes}f32({vector})" for f in ("fabs", "rint")]
    parts += [f"declare {vector} @llvm.{f}.v{lanes}f32({vector}, {vector})" for f in ("minnum", "maximum")]
    parts.append(f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})")
    parts.append("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    if key.storage.step == 2:
        parts.append(
            "declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)"
        )
    return "\n\n".join(parts) + "\n"


def _dispatch(key: KernelKey) -> str:
    """Call the tile of ``tokens`` tokens."""
    arguments = "ptr %values, ptr %columns, i64 %count, ptr %bases, ptr %x, ptr %bias, ptr %out, i64 %stride"
    cases = " ".join(f"i64 {t}, label %t{t}" for t in range(1, key.tokens + 1))
    calls = "\n".join(f"t{t}:\n  call void @tile{t}({arguments})\n  ret void" for t in range(1, key.tokens + 1))
    return (
        f"define internal void @tile({arguments}, i64 %tokens) {{\n"
        f"  switch i64 %tokens, label %none [ {cases} ]\n{calls}\nnone:\n  ret void\n}}"
    )


def _finish(key: KernelKey) -> str:
    """Move one tile from the scratch to the results: GELU, conversion, permuted or missing rows."""
    lanes, rows = key.isa.lanes, key.rows
    floats = f"<{lanes} x float>"
    result = key.storage.element
    text = Text()
    text.block("entry")
    if key.activation == "gelu":
        text.do(f"%size = mul nuw nsw i64 %tokens, {rows}")
        text.do("br label %gelu")
        text.block("gelu")
        text.do("%g = phi i64 [ 0, %entry ], [ %g_next, %gelu ]")
        place = text.let("getelementptr float, ptr %scratch, i64 %g")
        value = Vector(text, lanes).gelu(text.let(f"load {floats}, ptr {place}, align 4"))
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
            value, kind = rounded(text, value, lanes, native=key.storage.step == 2), f"<{lanes} x i16>"
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
        value = rounded(text, value, 0, native=False)
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


def field_ir(field: Field, kind: str = "i64") -> str:
    """Read one field of `%arguments` into a name of its own."""
    name = field.name.lower()
    return (
        f"  %{name}_at = getelementptr i64, ptr %arguments, i64 {field.value}\n"
        f"  %{name} = load {kind}, ptr %{name}_at, align 8"
    )


def _stored_bias(key: KernelKey) -> str:
    """The bias of one group's rows, in the order of the rows; zero beyond the last."""
    return f"""define internal void @stored_bias(ptr %bias, ptr %order, i64 %first, i64 %here, ptr %to) {{
entry:
  %ordered = icmp ne ptr %order, null
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i_next, %put ]
  %inside = icmp slt i64 %i, %here
  br i1 %inside, label %read, label %put
read:
  %row = add nuw nsw i64 %first, %i
  br i1 %ordered, label %lookup, label %load
lookup:
  %order_at = getelementptr i32, ptr %order, i64 %row
  %place32 = load i32, ptr %order_at, align 4
  %place = sext i32 %place32 to i64
  br label %load
load:
  %output = phi i64 [ %row, %read ], [ %place, %lookup ]
  %bias_at = getelementptr float, ptr %bias, i64 %output
  %found = load float, ptr %bias_at, align 4
  br label %put
put:
  %value = phi float [ 0.0, %next ], [ %found, %load ]
  %to_at = getelementptr float, ptr %to, i64 %i
  store float %value, ptr %to_at, align 4
  %i_next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i_next, {key.height}
  br i1 %more, label %next, label %end
end:
  ret void
}}"""


# What one pass over the columns of a group is given; the names that are not filled in are the same on both sides.
PASS = (
    "ptr {values}, ptr {columns}, i64 %count, ptr {bias}, i64 {first}, i64 %valid, ptr %x, ptr %bases, i64 %token, "
    "i64 %tokens, ptr %out, i64 %outputs, ptr %order, ptr %scratch, i1 %indirect"
)


def _tiles(key: KernelKey) -> str:
    """The register tiles of one pass: the panel's tokens in tiles of nearly one size."""
    rows, size, element = key.rows, key.tokens, key.storage.element
    same = "ptr %values, ptr %columns, i64 %count, ptr %t_bases, ptr %x, ptr %bias"
    given = PASS.format(values="%values", columns="%columns", bias="%bias", first="%first")
    return f"""define internal void @tiles({given}) {{
entry:
  %added = add nuw nsw i64 %tokens, {size - 1}
  %tiles = udiv i64 %added, {size}
  %least = udiv i64 %tokens, %tiles
  %longer = urem i64 %tokens, %tiles
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i_next, %done ]
  %t = phi i64 [ 0, %entry ], [ %t_next, %done ]
  %is_longer = icmp slt i64 %i, %longer
  %one_more = zext i1 %is_longer to i64
  %size = add nuw nsw i64 %least, %one_more
  %t_bases = getelementptr i64, ptr %bases, i64 %t
  %t_token = add nuw nsw i64 %token, %t
  %t_offset = mul nuw nsw i64 %t_token, %outputs
  %t_out = getelementptr {element}, ptr %out, i64 %t_offset
  br i1 %indirect, label %through_scratch, label %straight
straight:
  %s_out = getelementptr float, ptr %t_out, i64 %first
  call void @tile({same}, ptr %s_out, i64 %outputs, i64 %size)
  br label %done
through_scratch:
  call void @tile({same}, ptr %scratch, i64 {rows}, i64 %size)
  call void @finish(ptr %scratch, i64 %size, ptr %t_out, i64 %outputs, i64 %first, i64 %valid, ptr %order)
  br label %done
done:
  %i_next = add nuw nsw i64 %i, 1
  %t_next = add nuw nsw i64 %t, %size
  %more = icmp slt i64 %i_next, %tiles
  br i1 %more, label %next, label %end
end:
  ret void
}}"""


def _group(key: KernelKey) -> str:
    """All tiles of one group for the tokens of one panel."""
    rows, height = key.rows, key.height
    element = key.storage.element
    pointers = (Field.VALUES, Field.COLUMNS, Field.STARTS, Field.ORDER, Field.BIAS, Field.OUT)
    fields = "\n".join([field_ir(Field.OUTPUTS)] + [field_ir(f, "ptr") for f in pointers])
    always = "true" if key.activation == "gelu" or key.storage is not Storage.FLOAT else "false"
    return f"""define internal void @group(ptr %arguments, i64 %g, ptr %x, ptr %bases, i64 %token, i64 %tokens) {{
entry:
{fields}
  %bias_rows = alloca [{height} x float], align 64
  %scratch = alloca [{key.tokens * rows} x float], align 64
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
  %irregular = or i1 %short, %ordered
  %indirect = or i1 %irregular, {always}
  %gathered = and i1 %irregular, %biased
  br i1 %gathered, label %fill, label %plain
plain:
  %bias_first = getelementptr float, ptr %bias, i64 %first
  %bias_or_none = select i1 %biased, ptr %bias_first, ptr @zeros
  br label %passes
fill:
  call void @stored_bias(ptr %bias, ptr %order, i64 %first, i64 %here, ptr %bias_rows)
  br label %passes
passes:
  %bias_group = phi ptr [ %bias_or_none, %plain ], [ %bias_rows, %fill ]
  br label %pass
pass:
  %p = phi i64 [ 0, %passes ], [ %p_next, %pass ]
  %p_left = sub nsw i64 %here, %p
  %p_short = icmp slt i64 %p_left, {rows}
  %valid = select i1 %p_short, i64 %p_left, i64 {rows}
  %p_values = getelementptr {element}, ptr %own_values, i64 %p
  %p_bias = getelementptr float, ptr %bias_group, i64 %p
  %p_first = add nuw nsw i64 %first, %p
  call void @tiles({PASS.format(values="%p_values", columns="%own_columns", bias="%p_bias", first="%p_first")})
  %p_next = add nuw nsw i64 %p, {rows}
  %p_more = icmp slt i64 %p_next, %here
  br i1 %p_more, label %pass, label %end
end:
  ret void
}}"""


def _worker(key: KernelKey) -> str:
    """Take tasks until none is left. A task is one panel of tokens times one chunk of groups.

    The panel is fetched in order beforehand. A group reads a few lines here and there, which no prefetcher foresees,
    and each would wait for memory.
    """
    element = key.storage.activation
    integers = (
        Field.TASKS, Field.CHUNKS, Field.CHUNK_GROUPS, Field.PANEL_TOKENS, Field.TOKENS, Field.GROUPS,
        Field.TOKEN_BYTES,
    )  # fmt: skip
    fields = "\n".join([field_ir(f) for f in integers] + [field_ir(f, "ptr") for f in (Field.X, Field.BASES)])
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
  br label %row
row:
  %r = phi i64 [ 0, %begin ], [ %r_next, %row_end ]
  %r_base_at = getelementptr i64, ptr %own_bases, i64 %r
  %r_base = load i64, ptr %r_base_at, align 8
  %r_x = getelementptr {element}, ptr %x, i64 %r_base
  br label %line
line:
  %l = phi i64 [ 0, %row ], [ %l_next, %line ]
  %l_at = getelementptr i8, ptr %r_x, i64 %l
  call void @llvm.prefetch.p0(ptr %l_at, i32 0, i32 2, i32 1)
  %l_next = add nuw nsw i64 %l, {LINE}
  %l_more = icmp slt i64 %l_next, %token_bytes
  br i1 %l_more, label %line, label %row_end
row_end:
  %r_next = add nuw nsw i64 %r, 1
  %r_more = icmp slt i64 %r_next, %here
  br i1 %r_more, label %row, label %each
each:
  %g = phi i64 [ %group_first, %row_end ], [ %g_next, %each ]
  call void @group(ptr %arguments, i64 %g, ptr %x, ptr %own_bases, i64 %token, i64 %here)
  %g_next = add nuw nsw i64 %g, 1
  %g_more = icmp slt i64 %g_next, %group_stop
  br i1 %g_more, label %each, label %take
end:
  ret void
}}"""


def alone_ir() -> str:
    """Do every task in the calling thread. The array stays as it is: other threads may be at work with it too."""
    given = {Field.X: "%x", Field.VALUES: "%values", Field.BIAS: "%bias", Field.OUT: "%out"}
    text = Text()
    text.block("entry")
    text.do(f"%own = alloca [{len(Field)} x i64], align 64")
    for field in Field:
        place = text.let(f"getelementptr i64, ptr %own, i64 {field.value}")
        if field in given:
            text.do(f"store ptr {given[field]}, ptr {place}, align 8")
        else:
            source = text.let(f"getelementptr i64, ptr %prepared, i64 {field.value}")
            text.do(f"store i64 {text.let(f'load i64, ptr {source}, align 8')}, ptr {place}, align 8")
    text.do("call void @worker(ptr %own)")
    text.do("ret void")
    arguments = "ptr %prepared, ptr %x, ptr %values, ptr %bias, ptr %out"
    return f"define void @alone({arguments}) {{\n" + "\n".join(text.lines) + "\n}"
