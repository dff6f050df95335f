"""Exact numbers for the vectors of applying: section 3 and 6.5 of spec/APPLY.md over fractions."""
import hashlib
from fractions import Fraction
from math import isqrt, prod

FORMATS = {"F64": (11, 52), "F32": (8, 23), "F16": (5, 10), "BF16": (8, 7)}
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "F8_E4M3": 1}


def rn(dtype, x):
    """The bits of RN_D(x) for a fraction x; those of +0 for 0."""
    e, f = FORMATS[dtype]
    lowest = 2 - 2 ** (e - 1)
    sign, x = (1 << e + f if x < 0 else 0), abs(x)
    if not x:
        return 0
    k = x.numerator.bit_length() - x.denominator.bit_length()
    k = max(k if x >= Fraction(2) ** k else k - 1, lowest)
    n = round(x / Fraction(2) ** (k - f))  # half to even
    return sign | min((k - lowest << f) + n, inf(dtype))


def inf(dtype):
    e, f = FORMATS[dtype]
    return 2**e - 1 << f


def value(dtype, bits):
    """The fraction that the bits are, or None if they are not finite."""
    if dtype not in FORMATS:
        return Fraction(bits)
    e, f = FORMATS[dtype]
    sign, k, n = bits >> e + f, bits >> f & 2**e - 1, bits & 2**f - 1
    if k == 2**e - 1:
        return None
    x = (n + (2**f if k else 0)) * Fraction(2) ** (max(k, 1) + 1 - 2 ** (e - 1) - f)
    return -x if sign else x


class M:
    """A matrix of fractions. m[i:j] are rows; m.t[i:j].t are columns."""

    def __init__(self, rows):
        self.rows = [[Fraction(x) for x in row] for row in rows]

    def __getitem__(self, cut):
        return M(self.rows[cut])

    def __matmul__(self, o):
        return M([[sum(a * b for a, b in zip(r, c)) for c in zip(*o.rows)] for r in self.rows])

    def __rmul__(self, k):
        return M([[k * x for x in r] for r in self.rows])

    def __add__(self, o):
        return M([[a + b for a, b in zip(r, s, strict=True)]
                  for r, s in zip(self.rows, o.rows, strict=True)])

    @property
    def t(self):
        return M(zip(*self.rows))

    def at(self, shape, row=0, column=0):
        """This matrix from a place on in a matrix of zeros."""
        out = [[0] * shape[1] for _ in range(shape[0])]
        for i, r in enumerate(self.rows):
            for j, x in enumerate(r):
                out[row + i][column + j] = x
        return M(out)

    def flat(self):
        return [x for r in self.rows for x in r]


class T:
    """A tensor: dtype, shape, and the bits of its elements."""

    def __init__(self, dtype, shape, bits):
        self.dtype, self.shape, self.bits = dtype, list(shape), list(bits)
        assert len(self.bits) == prod(shape), (shape, len(self.bits))

    def data(self, any_nan=False):
        bits = self.bits
        if any_nan and self.dtype in FORMATS:
            e, f = FORMATS[self.dtype]
            quiet = inf(self.dtype) | 1 << f - 1
            bits = [quiet if b & 2 ** (e + f) - 1 > inf(self.dtype) else b for b in bits]
        return b"".join(b.to_bytes(WIDTHS[self.dtype], "little") for b in bits)

    def matrix(self):
        """As a matrix; None if a value is not finite."""
        n = prod(self.shape[1:]) if len(self.shape) > 1 else len(self.bits)
        v = [value(self.dtype, b) for b in self.bits]
        return None if None in v else M([v[i:i + n] for i in range(0, len(v), n or 1)])

    def to(self, dtype):
        return T(dtype, self.shape, [rn(dtype, value(self.dtype, b)) for b in self.bits])

    def __eq__(self, o):
        return o is not None and vars(self) == vars(o)


def exactly(dtype, shape, values):
    """A tensor of numbers that the dtype has."""
    values = [Fraction(x) for x in values]
    t = T(dtype, shape, [rn(dtype, x) for x in values])
    assert [value(dtype, b) for b in t.bits] == values, (dtype, values)
    return t


def noise(label, dtype, shape):
    """Small numbers other than 0 that depend on nothing but the label, exact in every dtype."""
    n = prod(shape)
    b = hashlib.shake_128(label.encode()).digest(n)
    if dtype not in FORMATS:
        return T(dtype, shape, b)
    return exactly(dtype, shape, [Fraction((x % 13 + 1) * (1 if x & 128 else -1), 8) for x in b])


def added(t, sigma):
    """Section 3: t plus sigma, a matrix of its size or one for each matrix of a stack."""
    sigma = [x for m in (sigma if isinstance(sigma, list) else [sigma]) for x in m.flat()]
    w = [value(t.dtype, b) for b in t.bits]
    return T(t.dtype, t.shape, [b if x == 0 or v is None else rn(t.dtype, v + x)
                                for b, v, x in zip(t.bits, w, sigma, strict=True)])


def root(sign, x):
    """A fraction that rounds as the root of x does, to any dtype."""
    k = 1400
    n, rest = divmod(x.numerator << 2 * k, x.denominator)
    s = isqrt(n)
    return sign * Fraction(2 * s + bool(rest or s * s != n), 2 << k)


def rescaled(t, sigma, magnitude, by_columns=False):
    """Section 6.5: finite numbers, and no norm of 0. magnitude has the bits of t's dtype."""
    v = t.matrix() + sigma
    groups, out = (v.t if by_columns else v).rows, []
    for g, m in zip(groups, magnitude.bits, strict=True):
        norm, negative = sum(x * x for x in g), m >> sum(FORMATS[magnitude.dtype])
        m = abs(value(magnitude.dtype, m))
        sign = 1 << sum(FORMATS[t.dtype])
        out.append([rn(t.dtype, root(1, (m * x) ** 2 / norm)) | sign * ((x < 0) != negative)
                    for x in g])
    out = zip(*out) if by_columns else out
    return T(t.dtype, t.shape, [b for r in out for b in r])
