"""The merges that the vectors are records of."""
import json
import math

from record import FLOATS, Adapter, File, Merge, Tensor, pack
from builder import BITS, noise


def floats(label, dtype, n):
    """n random numbers from ±[2^-4, 2^-1)."""
    e, f = FLOATS[dtype]
    b = noise(label, 8 * n)
    xs = [int.from_bytes(b[8 * i:8 * i + 8], "little") for i in range(n)]
    return [x >> 63 << e + f | (2**(e - 1) - 5 + (x >> 60 & 3) % 3) << f | x % 2**f for x in xs]


def rows(label, dtype, m, n):
    return dtype, [floats(f"{label}{i}", dtype, n) for i in range(m)]


def power(n, negative=False):
    """±2^n as the bits of an F32."""
    return negative << 31 | (n + 127 << 23 if n >= -126 else 1 << n + 149)


# Residuals at the bounds of every way to write one: marks of zeros, of z = 1 and of z = 2, the sizes 0 and 254 (z = 3 and 257), escapes
# from z = 258 to the largest and the smallest d that 16 bits have, and what the dtype has beyond, modulo its size.
DS = [0, -1, 1, -2, 2, 0, -129, 129, 0, 0, 130, -130, 3, 32767, -32768, 0, 70000, -2**31, 2**31 - 1, 0, -2**63, 2**63 - 1]

# B of the tensors of edges, so Σ is the first element of a column of A plus 2^-60 times the second.
EDGE_B = [[power(0), power(-60)]]


def edges(dtype):
    """(w′, (a, a′)) with everything that rounding has a case for, as bits."""
    e, f = FLOATS[dtype]
    bias, sign, inf = 2**(e - 1) - 1, 1 << e + f, 2**e - 1 << f
    one, largest, least, normal = bias << f, inf - 1, 1, 1 << f
    half, tiny = power(-f - 1), power(-40)  # tiny · 2^-60 is nothing beside half
    minus = 1 << 31
    out = [(one, (half | minus, 0)), (one + 1, (half | minus, 0)),  # ties: to even, down and up
           (one, (half | minus, tiny | minus)), (one + 1, (half | minus, tiny)),  # beside a tie, by less than a float64 holds
           (one | sign, (half, 0)), (one + 1 | sign, (half, tiny)),
           (one, (half, 0)), (one, (power(-f - 2), 0)), (one, (power(-f - 2), tiny)),  # below one the steps are smaller
           (one, (power(0), 0)), (one | sign, (power(0, True), 0)),  # +0
           (one, (power(0), tiny)), (one + 1, (power(0), 0)),  # cancelled, and something is left
           (0, (0, 0)), (sign, (0, 0)), (sign, (minus, minus)), (sign, (power(3), power(63, True))),  # Σ is zero: the bits of w′
           (0, (power(3), 0)), (sign, (power(3), 0)), (0, (0, power(-149))), (0, (0, power(-149, True))),  # ±0 by underflow, but for F64
           (least, (0, power(-149))), (least, (power(-10), 0)), (normal, (0, power(-60))), (normal - 1, (0, power(-66))),
           (least, (0, power(60 + 2 - bias - f - 1) if 60 + 2 - bias - f - 1 >= -149 else 0)),  # half of the smallest number: a tie
           (inf, (power(0), 0)), (inf | sign, (power(0), 0)), (inf, (0, 0)),
           (inf + 1, (power(0), 0)), (inf | sign | normal >> 1 | 5, (power(0), 0)), (inf + 7, (0, 0)),  # NaN with payloads
           (largest, (power(120), 0)), (largest, (power(-100), 0))]
    if bias <= 127:
        last = bias - f - 1  # half a step of the largest number
        out += [(largest, (power(last, True), 0)), (largest, (power(last, True), power(last - 10))), (largest | sign, (power(last), 0)),
                (largest | sign, (power(last), power(last - 10, True))), (largest, (power(127, True), 0))]
    return out


def edge_tensors(adapter_of):
    out = []
    for dtype in ("F32", "BF16", "F16", "F64"):
        cases = edges(dtype)
        shape = (1, len(cases)) if dtype in ("F32", "F64") else (len(cases), 1)  # the others are stored the other way round
        out.append(Tensor(f"edge.{dtype}.weight", dtype, shape, pack(dtype, [w for w, _ in cases]), DS, [(adapter_of, f"edge.{dtype}")]))
    return out


def values():
    """All dtypes, two adapters, one tensor that both are merged into; tensors replaced and untouched."""
    saved = replaced(("F32", (3,)), ("BF16", ()), ("F16", (2, 3)), ("F64", (3,)), ("F32", (0, 3)))
    edge = Adapter("edge", 2, {f"edge.{d}": (("F32", [[a[k] for _, a in edges(d)] for k in (0, 1)]), ("F32", EDGE_B))
                               for d in ("F32", "BF16", "F16", "F64")} | {"both": (rows("a", "F32", 2, 7), rows("b", "F32", 3, 2))}, saved=saved)
    scaled = Adapter("scaled", 8, {"both": (rows("c", "BF16", 3, 7), rows("d", "F16", 3, 3)),
                                   "square": (rows("e", "F32", 3, 5), rows("f", "F32", 5, 3))}, weight=0.3)
    ts = edge_tensors(edge)
    ts.append(Tensor("both.weight", "BF16", (3, 7), pack("BF16", floats("w", "BF16", 21)), [0, 1, -1, 0, 0, 2],
                     [(edge, "both"), (scaled, "both")]))
    ts.append(Tensor("square.weight", "F32", (5, 5), pack("F32", floats("x", "F32", 25)), [0, 0, 0, -1, 1], [(scaled, "square")]))
    for name, dtype, shape, b in saved:
        ts.append(Tensor(name, dtype, shape, b, DS[10:16] if dtype == "BF16" else DS[:5]))
    ts[2:2] = [Tensor("left alone", "F32", (3,), noise("left", 12)), Tensor("left alone too", "F16", (1,), noise("too", 2))]
    ts.append(Tensor("left alone at the end", "U8", (3,), noise("end", 3)))
    return Merge("values", [File("model.safetensors", ts, {"format": "pt"}, {"format": "pt", "merged": "é"})], [edge, scaled])


def replaced(*all):
    return [(f"m{i}.bias", dtype, shape, noise(dtype, BITS[dtype] // 8 * math.prod(shape))) for i, (dtype, shape) in enumerate(all)]


def widths():
    """Tensors of other dtypes, as no merge of today changes them."""
    saved = replaced(("U8", (16,)), ("BOOL", (4,)), ("F8_E4M3", (2, 3)), ("I16", (3,)), ("U32", (2,)), ("I64", (3,)), ("C64", (2,)))
    adapter = Adapter("widths", 1, {"q": (rows("g", "F32", 1, 3), rows("h", "F32", 2, 1))}, saved=saved)
    ts = [Tensor(*t, [0, 1, -1, 2, -2, 0, 127, -128] + (DS if t[1] not in ("U8", "BOOL", "F8_E4M3") else [])) for t in saved]
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", floats("q", "F32", 6)), [0, 1], [(adapter, "q")])
    return Merge("widths", [File("", [*ts, q])], [adapter])


def small():
    """One tensor predicted by subtraction, one that was replaced, one left alone."""
    s = ("s.bias", "BF16", (16,), bytes(32))
    adapter = Adapter("small", 1, {"q": (rows("g", "F32", 1, 3), rows("h", "F32", 2, 1))}, saved=[s])
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", floats("q", "F32", 6)), [0, 1, 0, 300, -7, 0], [(adapter, "q")])
    ts = [Tensor("a", "U8", (5,), b"hello"), q, Tensor(*s, [0, 3, 0, -2] + [0] * 12)]
    return Merge("small", [File("", ts, None, {"merged": "small"})], [adapter])


def tiny():
    """One tensor."""
    adapter = Adapter("tiny", 1, {"q": (rows("g", "F32", 1, 3), rows("h", "F32", 2, 1))})
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", floats("q", "F32", 6)), [0, 1], [(adapter, "q")])
    return Merge("tiny", [File("", [Tensor("a", "U8", (5,), b"hello"), q], None, {"m": ""})], [adapter])


def two():
    """Two files, and a third that the merge has not changed."""
    k = ("k.bias", "BF16", (4,), pack("BF16", floats("k", "BF16", 4)))
    adapter = Adapter("two", 1, {"q": (rows("g", "F32", 1, 3), rows("h", "F32", 2, 1))}, saved=[k])
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", floats("q", "F32", 6)), [0, 1, 0, -2, 0, 0], [(adapter, "q")])
    k = Tensor(*k, [0, 0, 1, 0])
    v = Tensor("v", "U8", (3,), b"abc")
    return Merge("two", [File("model-00001-of-00003.safetensors", [q]), File("model-00002-of-00003.safetensors", [v]),
                         File("model-00003-of-00003.safetensors", [k], None, {"merged": "two"})], [adapter])


def grown():
    """Rows added to a replaced tensor, to one of one dimension, and to one whose rows of before stay; an added tensor; other tensors
    in another order than before."""
    e, b = ("e.bias", "F32", (6, 3), noise("e", 72)), ("b.bias", "BF16", (5,), noise("b", 10))
    k = Tensor("k", "U8", (4, 2), b"kept rows"[:8], rows=3)
    adapter = Adapter("grown", 1, {"q": (rows("g", "F32", 1, 3), rows("h", "F32", 2, 1)), "h": (rows("i", "F32", 1, 3), rows("j", "F32", 6, 1))},
                      saved=[b, e])
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", floats("q", "F32", 6)), [0, 1, 0, 300, -7, 0], [(adapter, "q")])
    h = Tensor("h.weight", "F32", (6, 3), pack("F32", floats("h", "F32", 18)), rows=0)
    ts = [Tensor(*e, [0, 3, 0, -2], rows=4), h, Tensor(*b, [1, -1, 0], rows=3), q, k]
    return Merge("grown", [File("", ts, {"format": "pt"}, {"format": "pt", "merged": "grown"}, ["k", "q.weight", "e.bias", "b.bias"])], [adapter])


def untied():
    """A head that was the embedding, in two files, with config.json and an index."""
    e, files = ("model.embed_tokens.weight", "F32", (5, 2), noise("e", 40)), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    adapter = Adapter("untied", 1, {"model.q": (rows("g", "F32", 1, 2), rows("h", "F32", 2, 1)), "lm_head": (rows("i", "F32", 1, 2), rows("j", "F32", 5, 1))},
                      saved=[e])
    q = Tensor("model.q.weight", "F32", (2, 2), pack("F32", floats("q", "F32", 4)), [0, -1, 0, 2], [(adapter, "model.q")])
    h = Tensor("lm_head.weight", "F32", (5, 2), pack("F32", floats("h", "F32", 10)), rows=0)
    weights = [File(files[0], [Tensor(*e, [0, 0, 5], rows=3), h], None, {"merged": "untied"}), File(files[1], [q], None, {"merged": "untied"})]

    def index(names):
        return json.dumps({"metadata": {}, "weight_map": {name: files[name == "model.q.weight"] for name in names}}, indent=1).encode() + b"\n"
    names = [e[0], "lm_head.weight", "model.q.weight"]
    side = [("config.json", b'{"tie_word_embeddings": true, "vocab_size": 3}\n', b'{"tie_word_embeddings": false, "vocab_size": 5}\n'),
            ("model.safetensors.index.json", index(names[::2]), index(names))]
    return Merge("untied", weights, [adapter], side)


LONG_ZEROS = 2 * 512 * 1026 + 2**26 + 3  # all data of long()


def long():
    """More zeros than a mark skips, than a block has and than a piece: the merged file is its first bytes with zeros behind."""
    adapter = Adapter("zeros", 1, {"long": (("BF16", [[0] * 512]), ("BF16", [[0]] * 1026))})
    ds = [0] * (512 * 1026)
    at = 0
    for c in range(7):  # 80·4^c elements are skipped by one mark, then comes one that is not zero
        at += 80 * 4**c
        ds[at] = -1 - c
        at += 1
    ds[2**19 - 1], ds[2**19], ds[-1] = 5, 1, -1  # the end of the first block, the beginning and the end of the second one
    w = Tensor("long.weight", "BF16", (1026, 512), bytes(2 * 512 * 1026), ds, [(adapter, "long")], block=2**19)
    return Merge("long", [File("", [w, Tensor("rest", "U8", (2**26 + 3,), bytes(2**26 + 3))])], [adapter])


def empty():
    """A tensor without elements, changed, between two that were left alone: what was left alone is two ranges."""
    adapter = Adapter("empty", 1, {"q": (rows("g", "F32", 1, 40), rows("h", "F32", 4, 1))}, saved=[("e.bias", "F32", (0,), b"")])
    q = Tensor("q.weight", "F32", (4, 40), pack("F32", floats("q", "F32", 160)), [0], [(adapter, "q")])
    a, e, b = Tensor("a", "U8", (2,), b"ab"), Tensor("e.bias", "F32", (0,), b"", [0]), Tensor("b", "U8", (2,), b"cd")
    return Merge("empty", [File("", [a, e, b, q])], [adapter])


def not_finite():
    """Infinity and NaN in A, so the tensor is predicted by `same`."""
    adapter = Adapter("not-finite", 1, {"q": (("F32", [[0xFF << 23, (0xFF << 23) + 1, 0]]), rows("h", "F32", 2, 1))})
    q = Tensor("q.weight", "F32", (2, 3), pack("F32", [0xFF << 23, (0x1FF << 22) + 5, 0] * 2), DS)
    return Merge("not-finite", [File("", [q])], [adapter])
