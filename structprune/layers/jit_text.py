"""Writing LLVM IR as text: fresh names, and the arithmetic that takes more than one instruction."""

from __future__ import annotations

from struct import pack, unpack

__all__ = ["Text", "Vector", "rounded"]

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


class Text:
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


def number(value: float) -> str:
    """A float32 constant: LLVM wants the bits of the equal double."""
    (rounded,) = unpack("<f", pack("<f", value))
    (bits,) = unpack("<Q", pack("<d", rounded))
    return f"0x{bits:016X}"


class Vector:
    """Expressions on vectors of float32."""

    def __init__(self, text: Text, lanes: int) -> None:
        self.text, self.lanes, self.type = text, lanes, f"<{lanes} x float>"

    def constant(self, value: float) -> str:
        return f"splat (float {number(value)})"

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


def rounded(text: Text, value: str, lanes: int, native: bool) -> str:
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
