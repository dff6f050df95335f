"""Numbers, section 3 of APPLY.md, and the parts of a matrix of section 10. A number is an integer
times a power of two; it is rounded once."""
import math, struct
from fractions import Fraction
from operator import mul
from reader import BITS, need

FLOATS = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23), "F64": (11, 52)}  # exponent, fraction
WORD = {8: "B", 16: "H", 32: "I", 64: "Q"}

# Section 3: numbers. A Matrix is rows of integers times 2^e; NaN and infinity are floats in it.

class Matrix:
    def __init__(self, rows, e): self.rows, self.e = rows, e
    def T(self): return Matrix([*map(list, zip(*self.rows))], self.e)
    def take(self, rows): return Matrix([self.rows[i] for i in rows], self.e)
    def columns(self, columns): return Matrix([[r[j] for j in columns] for r in self.rows], self.e)
    def size(self): return len(self.rows), len(self.rows[0]) if self.rows else 0
    def finite(self): return all(type(x) is int for r in self.rows for x in r)

def numbers(dtype, data):
    """The elements as integers times one power of two: the least that serves all of them."""
    exponent, fraction = FLOATS[dtype]
    bias, ones, out = (1 << exponent - 1) - 1, (1 << exponent) - 1, []
    for x in struct.unpack(f"<{len(data) * 8 // BITS[dtype]}{WORD[BITS[dtype]]}", data):
        f, e = x & (1 << fraction) - 1, x >> fraction & ones
        if e: f |= 1 << fraction
        if e == ones: f = math.nan if f & (1 << fraction) - 1 else math.inf
        out.append((-f if x >> BITS[dtype] - 1 else f, max(e, 1) - bias - fraction))
    low = min((e for f, e in out if f and type(f) is int), default=0)
    return [f << e - low if f and type(f) is int else f for f, e in out], low

def real(x):  # a float64 as an integer and a power of two
    n, d = x.as_integer_ratio()
    return n, 1 - d.bit_length()

def rn(dtype, v, e):
    """The bits of RN_D(v·2^e)."""
    exponent, fraction = FLOATS[dtype]
    sign = int(v < 0) << exponent + fraction
    if type(v) is float:
        return sign | ((1 << exponent) - 1 << fraction) + (v != v) * (1 << fraction - 1)
    if not v: return 0
    a, least = abs(v), 2 - (1 << exponent - 1)
    q = max(a.bit_length() + e - 1, least) - fraction
    if q > e:
        half = 1 << q - e - 1
        n, rest = a >> q - e, a & 2 * half - 1
        n += rest > half or rest == half and n & 1
    else: n = a << e - q
    return sign | min((q + fraction - least << fraction) + n, (1 << exponent) - 1 << fraction)

def rescaled(dtype, m, V, norm2, e):
    """The bits of RN_D(m·V/√norm2·2^e): as many bits of the root as decide, and whether any are
    left."""
    square = (m * V) ** 2
    k = max(0, 2 * FLOATS[dtype][1] + 10 - square.bit_length() + norm2.bit_length()) // 2 + 1
    q, rest = divmod(square << 2 * k, norm2)
    root = math.isqrt(q)
    n = 2 * root + (rest > 0 or root * root < q)
    return rn(dtype, -n if (m < 0) != (V < 0) else n, e - k - 1)

def finite_bits(dtype, bits):
    exponent, fraction = FLOATS[dtype]
    return bits >> fraction & (1 << exponent) - 1 != (1 << exponent) - 1

def shifted(x, k): return x << k if type(x) is int else x
def plus(x, y):
    """x + y as IEEE 754 has it where one of them is not finite."""
    if type(x) is type(y): return x + y
    return x if type(x) is float else y

def times(S, row, column):
    """An element of S·L·R: an integer, or what IEEE 754 makes of its parts."""
    odd = [(a, b) for a, b in zip(row, column) if type(a) is float or type(b) is float]
    if not odd: return S * sum(map(mul, row, column))
    def sign(x): return x if type(x) is float else (x > 0) - (x < 0)
    return sign(S) * sum(sign(a) * sign(b) for a, b in odd)

# Section 10: parts of W. Float64 for singular values; projections are exact up to their last step.

def of_floats(rows):
    pairs = [[real(x) for x in r] for r in rows]
    e = min((k for r in pairs for n, k in r if n), default=0)
    return Matrix([[n << k - e if n else 0 for n, k in r] for r in pairs], e)

def dominant(W, r):
    """The part of the r largest singular values, by Jacobi's rotations of the columns."""
    if W.size()[0] < W.size()[1]:
        L, R = dominant(W.T(), r)
        return R.T(), L.T()
    U = [[math.ldexp(x, W.e) for x in column] for column in W.T().rows]
    n = len(U)
    V = [[float(i == j) for i in range(n)] for j in range(n)]
    def dot(x, y): return math.fsum(map(mul, x, y))
    turned = True
    while turned:
        turned = False
        for i in range(n):
            for j in range(i):
                a, b, c = dot(U[i], U[i]), dot(U[j], U[j]), dot(U[i], U[j])
                if abs(c) <= 1e-16 * math.sqrt(a * b): continue
                turned = True
                z = (b - a) / (2 * c)
                t = math.copysign(1, z) / (abs(z) + math.hypot(1, z))
                k = 1 / math.hypot(1, t)
                for X in U, V:
                    x, y = X[i], X[j]
                    X[i] = [k * (p - t * q) for p, q in zip(x, y)]
                    X[j] = [k * (t * p + q) for p, q in zip(x, y)]
    order = sorted(range(n), key=lambda i: -dot(U[i], U[i]))
    first, last, after = (math.sqrt(dot(U[i], U[i])) for i in (order[0], order[r - 1], order[r]))
    near = 2**-44 * first
    need(last <= near or last - after > near, "R118", f"the singular values {last} and {after}")
    order = order[:r]
    return of_floats([U[i] for i in order]).T(), of_floats([V[i] for i in order])

def leading(W, r):
    """The projection of W on its first r columns: what Q and R of that rank give."""
    C = W.columns(range(r))
    gram = [[Fraction(sum(map(mul, x, y))) for y in C.T().rows] +
            [Fraction(sum(map(mul, x, y))) for y in W.T().rows] for x in C.T().rows]
    for i in range(r):
        need(gram[i][i], "R118", "the first columns depend on each other")
        gram[i] = [x / gram[i][i] for x in gram[i]]
        for j in range(r):
            if j != i: gram[j] = [x - gram[j][i] * y for x, y in zip(gram[j], gram[i])]
    return C, Matrix([[round(x * 2**200) for x in row[r:]] for row in gram], -200)
