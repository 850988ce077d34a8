"""LLVM IR of the gradient of the values: for each group the products of its columns of X with its outputs' gradient.

    dV[c, row] = sum over tokens of x[token, columns[c]] * dY[token, row]

It is the forward tile turned over: a register tile is some columns times the rows of one group, and goes over tokens
instead of columns. A token contributes a few vector loads of ``dY`` and one broadcast load of ``x`` per column; nothing
is gathered into a matrix. Tokens come in panels, whose activations stay in the second-level cache for all groups, and
whose part of ``dY`` is copied, group by group, to where its rows lie together: rows of ``dY`` lie one power of two
apart in most networks, where they would fight for a few sets of the first-level cache. The copy puts permuted outputs
in order and zeros where rows are missing.
"""

from __future__ import annotations

from structprune.layers.jit_ir import LINE, alone_ir, field_ir
from structprune.layers.jit_key import Field, GradientKey
from structprune.layers.jit_text import Text
from structprune.layers.jit_tile import column_at, spread

__all__ = ["MOST_TOKENS", "gradient_ir"]

MOST_TOKENS = 64  # of a panel: their copy of 64 rows of dY takes a third or half of a first-level cache


def gradient_ir(key: GradientKey) -> str:
    """The module of one key, as LLVM IR.

    It defines ``worker`` and ``alone`` as :func:`structprune.layers.jit_ir.kernel_ir` does. A task is a chunk of groups
    over all tokens, so that no two threads add to one number.
    """
    vector = f"<{key.isa.lanes} x float>"
    parts = [_tile(key, columns) for columns in range(1, key.columns + 1)]
    parts += [_dispatch(key), _copy(key), _tiles(key), _group(key), _worker(), alone_ir()]
    parts.append(f"declare {vector} @llvm.fma.v{key.isa.lanes}f32({vector}, {vector}, {vector})")
    parts.append("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    return "\n\n".join(parts) + "\n"


# What one register tile is given: the copy of dY, activations, where their tokens begin, columns, where its sums go,
# and whether they are added to what is there.
TILE = "ptr %grad, ptr %x, ptr %bases, i64 %tokens, ptr %columns, ptr %to, i1 %adds"


def _tile(key: GradientKey, columns: int) -> str:
    """The sums of one register tile over the tokens of a panel, of which there is at least one."""
    lanes, vectors, rows = key.isa.lanes, key.vectors, key.rows
    floats, size = f"<{lanes} x float>", columns * key.vectors
    text = Text()
    text.block("entry")
    where = [column_at(text, str(c)) for c in range(columns)]
    places = []
    for c in range(columns):
        for v in range(vectors):
            places.append(text.let(f"getelementptr float, ptr %to, i64 {c * key.height + v * lanes}"))
    text.do("br i1 %adds, label %load, label %begin")
    text.block("load")
    loaded = [text.let(f"load {floats}, ptr {place}, align 4") for place in places]
    text.do("br label %begin")
    text.block("begin")
    for i in range(size):
        text.do(f"%s{i} = phi {floats} [ zeroinitializer, %entry ], [ {loaded[i]}, %load ]")
    text.do("br label %token")
    text.block("token")
    text.do("%t = phi i64 [ 0, %begin ], [ %t_next, %token ]")
    for i in range(size):
        text.do(f"%m{i} = phi {floats} [ %s{i}, %begin ], [ %e{i}, %token ]")
    base = text.let(f"load i64, ptr {text.let('getelementptr i64, ptr %bases, i64 %t')}, align 8")
    row = text.let(f"getelementptr float, ptr %x, i64 {base}")
    start = text.let(f"getelementptr float, ptr %grad, i64 {text.let(f'mul nuw nsw i64 %t, {rows}')}")
    grads = []
    for v in range(vectors):
        place = text.let(f"getelementptr float, ptr {start}, i64 {v * lanes}")
        grads.append(text.let(f"load {floats}, ptr {place}, align {4 * lanes}"))
    for c in range(columns):
        place = text.let(f"getelementptr float, ptr {row}, i64 {where[c]}")
        entry = spread(text, "float", text.let(f"load float, ptr {place}, align 4"), lanes)
        for v in range(vectors):
            i = c * vectors + v
            text.do(
                f"%e{i} = call {floats} @llvm.fma.v{lanes}f32({floats} {grads[v]}, {floats} {entry}, {floats} %m{i})"
            )
    text.do("%t_next = add nuw nsw i64 %t, 1")
    text.do("%t_more = icmp slt i64 %t_next, %tokens")
    text.do("br i1 %t_more, label %token, label %end")
    text.block("end")
    for i, place in enumerate(places):
        text.do(f"store {floats} %e{i}, ptr {place}, align 4")
    text.do("ret void")
    return f"define internal void @tile{columns}({TILE}) {{\n" + "\n".join(text.lines) + "\n}"


def _dispatch(key: GradientKey) -> str:
    """Call the tile of ``size`` columns."""
    sizes = range(1, key.columns + 1)
    cases = " ".join(f"i64 {c}, label %c{c}" for c in sizes)
    calls = "\n".join(f"c{c}:\n  call void @tile{c}({TILE})\n  ret void" for c in sizes)
    return (
        f"define internal void @tile({TILE}, i64 %size) {{\n"
        f"  switch i64 %size, label %none [ {cases} ]\n{calls}\nnone:\n  ret void\n}}"
    )


def _copy(key: GradientKey) -> str:
    """Copy one pass's rows of dY, ``valid`` of them from the stored row ``first`` on, to ``(tokens, rows)``."""
    lanes, rows = key.isa.lanes, key.rows
    floats = f"<{lanes} x float>"
    text = Text()
    text.block("entry")
    text.do("%ordered = icmp ne ptr %order, null")
    text.do(f"%ragged = icmp slt i64 %valid, {rows}")
    text.do("%single = or i1 %ordered, %ragged")
    text.do("br label %token")
    text.block("token")
    text.do("%t = phi i64 [ 0, %entry ], [ %t_next, %done ]")
    text.do(f"%from = getelementptr float, ptr %out, i64 {text.let('mul nsw i64 %t, %outputs')}")
    text.do(f"%to = getelementptr float, ptr %scratch, i64 {text.let(f'mul nuw nsw i64 %t, {rows}')}")
    text.do("br i1 %single, label %each, label %whole")
    text.block("whole")
    for v in range(key.vectors):
        source = text.let("getelementptr float, ptr %from, i64 %first")
        source = text.let(f"getelementptr float, ptr {source}, i64 {v * lanes}")
        value = text.let(f"load {floats}, ptr {source}, align 4")
        text.do(f"store {floats} {value}, ptr {text.let(f'getelementptr float, ptr %to, i64 {v * lanes}')}, align 4")
    text.do("br label %done")
    text.block("each")
    text.do("%i = phi i64 [ 0, %token ], [ %i_next, %put ]")
    text.do("%inside = icmp slt i64 %i, %valid")
    text.do("br i1 %inside, label %read, label %put")
    text.block("read")
    text.do("%row = add nuw nsw i64 %first, %i")
    text.do("br i1 %ordered, label %lookup, label %fetch")
    text.block("lookup")
    entry = text.let("getelementptr i32, ptr %order, i64 %row")
    text.do(f"%place = sext i32 {text.let(f'load i32, ptr {entry}, align 4')} to i64")
    text.do("br label %fetch")
    text.block("fetch")
    text.do("%output = phi i64 [ %row, %read ], [ %place, %lookup ]")
    text.do(f"%found = load float, ptr {text.let('getelementptr float, ptr %from, i64 %output')}, align 4")
    text.do("br label %put")
    text.block("put")
    text.do("%value = phi float [ 0.0, %each ], [ %found, %fetch ]")
    text.do(f"store float %value, ptr {text.let('getelementptr float, ptr %to, i64 %i')}, align 4")
    text.do("%i_next = add nuw nsw i64 %i, 1")
    text.do(f"%i_more = icmp slt i64 %i_next, {rows}")
    text.do("br i1 %i_more, label %each, label %done")
    text.block("done")
    text.do("%t_next = add nuw nsw i64 %t, 1")
    text.do("%t_more = icmp slt i64 %t_next, %tokens")
    text.do("br i1 %t_more, label %token, label %end")
    text.block("end")
    text.do("ret void")
    arguments = "ptr %out, i64 %tokens, i64 %outputs, i64 %first, i64 %valid, ptr %order, ptr %scratch"
    return f"define internal void @copy({arguments}) {{\n" + "\n".join(text.lines) + "\n}"


def _tiles(key: GradientKey) -> str:
    """The register tiles of one pass: the group's columns in tiles of nearly one size."""
    size = key.columns
    given = "ptr %grad, ptr %x, ptr %bases, i64 %tokens, ptr %columns, i64 %count, ptr %to, i1 %adds"
    return f"""define internal void @tiles({given}) {{
entry:
  %added = add nuw nsw i64 %count, {size - 1}
  %tiles = udiv i64 %added, {size}
  %none = icmp eq i64 %count, 0
  br i1 %none, label %end, label %some
some:
  %least = udiv i64 %count, %tiles
  %longer = urem i64 %count, %tiles
  br label %next
next:
  %i = phi i64 [ 0, %some ], [ %i_next, %next ]
  %c = phi i64 [ 0, %some ], [ %c_next, %next ]
  %is_longer = icmp slt i64 %i, %longer
  %one_more = zext i1 %is_longer to i64
  %size = add nuw nsw i64 %least, %one_more
  %own_columns = getelementptr i32, ptr %columns, i64 %c
  %c_offset = mul nuw nsw i64 %c, {key.height}
  %own_to = getelementptr float, ptr %to, i64 %c_offset
  call void @tile(ptr %grad, ptr %x, ptr %bases, i64 %tokens, ptr %own_columns, ptr %own_to, i1 %adds, i64 %size)
  %i_next = add nuw nsw i64 %i, 1
  %c_next = add nuw nsw i64 %c, %size
  %more = icmp slt i64 %i_next, %tiles
  br i1 %more, label %next, label %end
end:
  ret void
}}"""


def _group(key: GradientKey) -> str:
    """What the tokens of one panel add to the gradient of one group; the first panel writes instead."""
    rows, height = key.rows, key.height
    fields = "\n".join(
        [field_ir(Field.OUTPUTS)]
        + [field_ir(f, "ptr") for f in (Field.VALUES, Field.COLUMNS, Field.STARTS, Field.ORDER, Field.OUT)]
    )
    given = "ptr %arguments, i64 %g, ptr %x, ptr %bases, i64 %token, i64 %tokens"
    return f"""define internal void @group({given}) {{
entry:
{fields}
  %scratch = alloca [{MOST_TOKENS * rows} x float], align 64
  %start_at = getelementptr i32, ptr %starts, i64 %g
  %start32 = load i32, ptr %start_at, align 4
  %stop_at = getelementptr i32, ptr %start_at, i64 1
  %stop32 = load i32, ptr %stop_at, align 4
  %count32 = sub nsw i32 %stop32, %start32
  %count = zext i32 %count32 to i64
  %start = zext i32 %start32 to i64
  %own_columns = getelementptr i32, ptr %columns, i64 %start
  %value_start = mul nuw nsw i64 %start, {height}
  %own_values = getelementptr float, ptr %values, i64 %value_start
  %first = mul nuw nsw i64 %g, {height}
  %adds = icmp sgt i64 %token, 0
  %out_offset = mul nuw nsw i64 %token, %outputs
  %own_out = getelementptr float, ptr %out, i64 %out_offset
  %none = icmp eq i64 %count, 0
  br i1 %none, label %end, label %pass
pass:
  %p = phi i64 [ 0, %entry ], [ %p_next, %pass ]
  %p_first = add nuw nsw i64 %first, %p
  %p_left = sub nsw i64 %outputs, %p_first
  %p_short = icmp slt i64 %p_left, {rows}
  %valid = select i1 %p_short, i64 %p_left, i64 {rows}
  call void @copy(ptr %own_out, i64 %tokens, i64 %outputs, i64 %p_first, i64 %valid, ptr %order, ptr %scratch)
  %p_values = getelementptr float, ptr %own_values, i64 %p
  call void @tiles(ptr %scratch, ptr %x, ptr %bases, i64 %tokens, ptr %own_columns, i64 %count, ptr %p_values, i1 %adds)
  %p_next = add nuw nsw i64 %p, {rows}
  %p_more = icmp slt i64 %p_next, {height}
  br i1 %p_more, label %pass, label %end
end:
  ret void
}}"""


def _worker() -> str:
    """Take chunks of groups until none is left, and go over all panels with each.

    The panel is fetched in order beforehand, as by the forward kernel.
    """
    integers = (Field.TASKS, Field.CHUNK_GROUPS, Field.PANEL_TOKENS, Field.TOKENS, Field.GROUPS, Field.TOKEN_BYTES)
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
  %group_first = mul nuw nsw i64 %task, %chunk_groups
  %group_end = add nuw nsw i64 %group_first, %chunk_groups
  %group_over = icmp slt i64 %group_end, %groups
  %group_stop = select i1 %group_over, i64 %group_end, i64 %groups
  br label %panel
panel:
  %token = phi i64 [ 0, %begin ], [ %token_next, %panel_end ]
  %token_left = sub nsw i64 %tokens, %token
  %token_short = icmp slt i64 %token_left, %panel_tokens
  %here = select i1 %token_short, i64 %token_left, i64 %panel_tokens
  %own_bases = getelementptr i64, ptr %bases, i64 %token
  br label %row
row:
  %r = phi i64 [ 0, %panel ], [ %r_next, %row_end ]
  %r_base_at = getelementptr i64, ptr %own_bases, i64 %r
  %r_base = load i64, ptr %r_base_at, align 8
  %r_x = getelementptr float, ptr %x, i64 %r_base
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
  br i1 %g_more, label %each, label %panel_end
panel_end:
  %token_next = add nuw nsw i64 %token, %here
  %token_more = icmp slt i64 %token_next, %tokens
  br i1 %token_more, label %panel, label %take
end:
  ret void
}}"""
