"""What happens to the tensors of a base, sections 3, 6.5, 9 and 11 of APPLY.md."""
import math, struct
from collections import defaultdict
from reader import BITS, need
from .exact import (FLOATS, WORD, Matrix, finite_bits, numbers, plus, real, rescaled,
                    rn, shifted, times)
from .files import Tensor, as_matrix, parent

BESIDE = ["_scale", "_scale_inv", ".absmax", ".quant_map", ".SCB"]  # R82

class Change:
    def __init__(self):
        self.terms, self.replace, self.rows, self.magnitude, self.columns = [], [], [], None, set()

class Changes:
    def __init__(self, base, answers):
        self.base, self.answers, self.of = base, answers, defaultdict(Change)

    def term(self, l, name, S, L, R, row=0, column=0, transposed=False, expert=None):
        """A term of L·R from a row and a column on; of the matrix of an expert of a stack."""
        if transposed: L, R, row, column = R.T(), L.T(), column, row
        shape = self.base.tensors[name].shape
        if expert is not None: row += expert * shape[1]
        change = self.of[name]
        change.columns.add(as_matrix(shape)[1] if expert is None else shape[2])
        change.terms.append((l, S, L, R, row, column))

    def check(self, name, c):
        t, M = self.base.tensors[name], parent(name)
        need(t.dtype in FLOATS or c.replace and t.dtype == "I64" and not c.terms and not c.rows,
             "R81", f"{name} is {t.dtype}")
        need(not any(self.base.has(name + x) for x in BESIDE) and not self.base.has(M + ".scales"),
             "R82", name)
        need(len(c.replace) < 2 and len(c.rows) < 2, "R113", name)
        layers = {id(l) for l, *_ in c.terms}
        need(not c.magnitude or not any(l.kind.endswith("scaling") for l, *_ in c.terms), "R138", name)
        need(not c.magnitude or len(layers) == 1 and not c.rows, "R100", name)
        need(not any(l.recompute == name for l, *_ in c.terms) or not c.replace and not c.rows,
             "R119", name)
        need(not (c.replace and c.terms) or c.replace[0][1].dtype == t.dtype, "R120", name)
        need(not c.rows or not c.terms and (not c.replace or c.replace[0][0] is c.rows[0][0]),
             "R121", name)
        need(len(c.columns) < 2, "R122", name)

    # Sections 3, 6.5 and 11: the values

    def values(self, name, c, t):
        before = t.bits()
        if c.replace: self.put(t, c.replace[0][1], name)
        if c.terms: self.add(name, c, t)
        for _, rows, source in c.rows:
            n = t.shape[1] * BITS[t.dtype] // 8
            new = Tensor(t.dtype, source.shape, b"", "")
            self.put(new, source, name)
            data = bytearray(t.data)
            for k, i in enumerate(rows): data[i * n:i * n + n] = new.data[k * n:k * n + n]
            t.data = bytes(data)
        if t.dtype in FLOATS and "allow-nonfinite" not in self.answers:
            for x, y in zip(before, t.bits()):
                need(finite_bits(t.dtype, y) or not finite_bits(t.dtype, x), "R87", name)
    def put(self, t, source, name):
        if t.dtype == source.dtype: t.data = source.data; return
        need(t.dtype in FLOATS and source.dtype in FLOATS, "R115", name)
        v, e = numbers(source.dtype, source.data)
        signs = [x >> BITS[source.dtype] - 1 for x in source.bits()]
        self.set(t, [rn(t.dtype, x, e) | (s << BITS[t.dtype] - 1) for x, s in zip(v, signs)])
    def set(self, t, bits): t.data = struct.pack(f"<{len(bits)}{WORD[BITS[t.dtype]]}", *bits)
    def add(self, name, c, t):
        n = c.columns.copy().pop()
        w, bits = t.matrix(n), t.bits()
        terms = [(*real(S), L, R, row, column) for _, S, L, R, row, column in c.terms]
        e = min([w.e] + [k + L.e + R.e for _, k, L, R, *_ in terms])
        total = [[0] * n for _ in w.rows]
        for S, k, L, R, row, column in terms:
            S <<= k + L.e + R.e - e
            columns = [*zip(*R.rows)]
            for i, left in enumerate(L.rows, row):
                line = total[i]
                for j, right in enumerate(columns, column):
                    line[j] = plus(line[j], times(S, left, right))
        if c.magnitude: return self.rescale(c, t, w, total, e)
        for i, (line, sums) in enumerate(zip(w.rows, total)):
            for j, (x, s) in enumerate(zip(line, sums)):
                if s == 0 or type(x) is float and type(s) is int: continue
                bits[i * n + j] = rn(t.dtype, plus(shifted(x, w.e - e), s), e)
        self.set(t, bits)
    def rescale(self, c, t, w, total, e):
        source, groups = c.magnitude
        m, me = numbers(source.dtype, source.data)
        V = Matrix([[plus(shifted(x, w.e - e), s) for x, s in zip(*lines)]
                    for lines in zip(w.rows, total)], e)
        signs = [x >> BITS[source.dtype] - 1 for x in source.bits()]
        V, bits = [x for r in V.rows for x in r], t.bits()
        for mg, negative, places in zip(m, signs, groups):
            row, out = [V[p] for p in places], []
            odd = [v for v in row if type(v) is float]
            norm2 = sum(v * v for v in row if type(v) is int)
            infinite = type(mg) is float
            for v in row:
                if not odd and norm2 and v and mg and not infinite:
                    out.append(rescaled(t.dtype, mg, v, norm2, me))
                elif not (odd or norm2) or any(x != x for x in [mg, *odd]) or type(v) is float \
                        or infinite and (odd or not v): out.append(rn(t.dtype, math.nan, 0))
                else:
                    size = math.inf if infinite else 0
                    out.append(rn(t.dtype, size, 0) | (negative != (v < 0)) << BITS[t.dtype] - 1)
            for p, x in zip(places, out): bits[p] = x
        self.set(t, bits)
