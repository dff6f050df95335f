"""Files that are valid under R1 to R66, and break a rule of section 12 or ask for more than a program implements (R70)."""
import hashlib
import json

from builder import adapter, frame, layer, lora, model, raw, rle, stock, tensor
from kit import bad
from safetensors_header import text, with_length


def add():
    b, a = tensor("b", "F32", [2, 1]), tensor("a", "F32", [1, 2])
    both = [("a", a), ("b", b)]
    good = text(both, meta={"format": "pt"})

    def put(name, t, comment, rule=None, n=None, sha="", rows="81", head=None, log2=20, frames=None):
        h = with_length(t, n) if head is None else head
        m = model([adapter(layers=[layer("q", {"A": 0, "B": 1})])], [a, b], [("source.safetensors.header", h, sha)])
        bad(name, lora(m, log2=log2, frames=frames), comment, "restore", rule, rows, model=m)

    def change(name, t, comment, **more):
        """t of a tensor's entry changed; b is the second."""
        put(name, text(both, change=t), comment, **more)

    put("r67-length-less", good, "N one less than there are bytes", n=len(good) - 1)
    put("r67-length-more", good, "N one more than there are bytes", n=len(good) + 1)
    put("r67-length-zero", good, "N = 0", n=0)
    put("r67-length-2-63", good, "N = 2^63", n=2**63)
    put("r67-length-minus-8", good, "N = 2^64 - 8, so that N + 8 wraps to 0", n=2**64 - 8)
    put("r67-no-header", b"", "N = 0 and no byte")
    put("r67-7-bytes", b"", "seven bytes", head=bytes(7))
    put("r67-nothing", b"", "an attachment of no bytes", head=b"")
    put("r67-data-attached", good, "header and data", n=len(good), head=with_length(good) + a[1] + b[1])
    n = 100_000_001
    whole = good + b" " * (n - len(good))
    chunks = {i: one_chunk for i in range(1, 16)}
    put("r67-longer-than-100-mb", whole, "N = 100,000,001, all of it spaces but for the start", log2=24, frames=chunks)
    for name, t, comment, rule in (
            ("null", b"null", "null", None), ("array", b"[]", "an array", None), ("empty-text", b"  ", "spaces", None),
            ("cut", good[:-1], "the last brace is missing", None),
            ("two-objects", good + b"{}", "two objects", None), ("nul-appended", good + b"\0", "a NUL after the object", None),
            ("trailing-comma", good[:-1] + b",}", "a comma before the last brace", None),
            ("bom", b"\xef\xbb\xbf" + good, "a byte order mark", None),
            ("comment", b"/**/" + good, "a comment", None),
            ("nan", good.replace(b'"shape":[2,1]', b'"shape":[NaN,1]'), "NaN in a shape", "R67 R68"),
            ("utf-16", good.decode().encode("utf-16-le"), "UTF-16", None),
            ("invalid-utf-8", good.replace(b'"pt"', b'"\xff"'), "the byte FF", None),
            ("overlong", good.replace(b'"pt"', b'"\xc0\xaf"'), "a slash in two bytes", None),
            ("cesu", good.replace(b'"pt"', b'"\xed\xa0\x80"'), "an encoded surrogate", None),
            ("raw-line-feed", good.replace(b'"pt"', b'"p\nt"'), "a line feed in a string", None),
            ("unknown-escape", good.replace(b'"pt"', rb'"\x70t"'), "an escape that JSON does not have", None),
            ("leading-zero", good.replace(b"[0,8]", b"[00,8]"), "00 as an offset", None),
            ("tensor-twice", good[:-1] + b',"a":' + entry(a, 0, 8) + b"}", "an entry twice", None),
            ("tensor-twice-by-escape", good[:-1] + rb',"\u0061":' + entry(a, 0, 8) + b"}", "an entry twice, once with an escape", None),
            ("metadata-twice", good[:-1] + b',"__metadata__":{}}', "__metadata__ twice", None),
            ("metadata-key-twice", good.replace(b'{"format": "pt"}', b'{"a":"1","a":"2"}'), "a key of __metadata__ twice", None),
            ("member-twice", good.replace(b'"dtype":"F32"', b'"dtype":"F16","dtype":"F32"', 1), "a dtype twice, the second is right", None),
            ("offsets-twice", good.replace(b'"data_offsets":[0,8]', b'"data_offsets":[0,8],"data_offsets":[0,8]', 1), "offsets twice, both right", None),
            ("metadata-true", good.replace(b'{"format": "pt"}', b"true"), "__metadata__ is true", None),
            ("metadata-array", good.replace(b'{"format": "pt"}', b"[]"), "__metadata__ is an array", None),
            ("metadata-number", good.replace(b'"pt"', b"1"), "a number in __metadata__", None),
            ("metadata-nested", good.replace(b'"pt"', b'{"a":"b"}'), "an object in __metadata__", None),
            ("metadata-entry", text(both, meta={"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}), "__metadata__ is a tensor's entry", None),
            ("entry-null", b'{"a":null,"b":' + entry(b, 8, 16) + b"}", "null for an entry", "R67 R68"),
            ("entry-array", b'{"a":[],"b":' + entry(b, 8, 16) + b"}", "an array for an entry", "R67 R68")):
        put("r67-" + name, t, comment, rule)
    put("r67-space-first", b" " + good, "a space before the object")
    put("r67-form-feed-last", good + b"\f", "a form feed after the object, no white space of JSON")
    put("r67-deep", good.replace(b'{"format": "pt"}', b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}"), "20,000 arrays in each other in __metadata__", frames={1: stock})
    for name, e, comment in (("unknown", {"stride": 1}, "a member that safetensors does not have"),
            ("no-dtype", {"dtype": None}, "no dtype"),
                             ("no-shape", {"shape": None}, "no shape"),
                             ("no-offsets", {"data_offsets": None}, "no data_offsets"),
                             ("capital", {"Shape": [2, 1]}, "Shape besides shape")):
        change("r67-member-" + name, {"b": e}, comment, rule="R67 R68" if name in ("no-dtype", "no-shape") else None)
    for name, x, y, comment in (("gap", [0, 8], [9, 17], "a byte between two tensors"),
            ("overlap", [0, 8], [7, 15], "a byte of two tensors"), ("same", [0, 8], [0, 8], "two tensors share their bytes"),
                                ("not-from-0", [8, 16], [16, 24], "data that begin at 8"),
                                ("short", [0, 8], [8, 15], "a byte less than dtype and shape say"),
                                ("long", [0, 8], [8, 17], "a byte more than dtype and shape say"),
                                ("shifted", [0, 9], [9, 16], "nine bytes and seven"),
                                ("reversed", [0, 8], [16, 8], "end before begin"),
                                ("negative", [-8, 0], [0, 8], "a negative offset"),
                                ("one", [0, 8], [8], "one offset"), ("three", [0, 8], [8, 16, 16], "three offsets"),
                                ("number", [0, 8], 8, "a number for the offsets"),
                                ("string", [0, 8], "8,16", "a string for the offsets"),
                                ("fraction", [0, 8], [8.0, 16.0], "8.0 and 16.0"),
                                ("true", [0, 8], [8, True], "true for an offset"),
                                ("string-numbers", [0, 8], ["8", "16"], "strings for numbers"),
                                ("null", [0, 8], None, "null for the offsets"),
                                ("2-64", [0, 8], [2**64 + 8, 2**64 + 16], "offsets that are right modulo 2^64"),
                                ("huge", [0, 8], [8, 10**400], "an offset of 401 digits")):
        es = [entry(a, *x), json.dumps({"dtype": "F32", "shape": [2, 1], "data_offsets": y}).encode()]
        put("r67-offsets-" + name, b'{"a":' + es[0] + b',"b":' + es[1] + b"}", comment)
    for name, e, comment in (("negative", {"shape": [-2, -1]}, "negative dimensions, whose product is right"),
            ("fraction", {"shape": [2.0, 1]}, "2.0 for a dimension"),
                             ("true", {"shape": [2, True]}, "true for a dimension"),
                             ("string", {"shape": "2,1"}, "a string for a shape"),
                             ("nested", {"shape": [[2, 1]]}, "an array for a dimension"),
                             ("null", {"shape": [None]}, "null for a dimension"),
                             ("object", {"shape": {}}, "an object for a shape")):
        change("r67-shape-" + name, {"b": e}, comment, rule="R67 R68")
    for name, e, comment in (("number", {"dtype": 32}, "a number for a dtype"),
            ("unknown", {"dtype": "F33"}, "a dtype that nobody knows"), ("lowercase", {"dtype": "f32"}, "f32"),
            ("array", {"dtype": ["F32"]}, "an array for a dtype")):
        change("r67-dtype-" + name, {"b": e}, comment, rule="R67 R68")
    ones = b"[" + b"1," * 50000 + b"2,1]"
    put("r68-shape-of-50000", text(both).replace(b"[2, 1]", b"[2,1]").replace(b"[2,1]", ones), "a shape of 50,002 dimensions whose product is right", rule="R68 R67",
        frames={1: stock})
    for name, t, comment in (("shape", text([("a", a), ("b", ({"dtype": "F32", "shape": [1, 2]}, b[1]))]), "1 x 2 for 2 x 1"),
                             ("shape-flat", text([("a", a), ("b", ({"dtype": "F32", "shape": [2]}, b[1]))]), "2 for 2 x 1"),
                             ("dtype", text([("a", a), ("b", ({"dtype": "I32", "shape": [2, 1]}, b[1]))]), "I32 for F32"),
                             ("dtype-of-other-width", text([("a", a),
                             ("b", ({"dtype": "F16", "shape": [2, 1]}, b[1][:4]))]), "F16 for F32, with offsets to match"),
                             ("name", text([("a", a), ("B", b)]), "B for b"), ("name-accent", text([("a", a),
                             ("b\u0301", b)]), "b with a combining accent for b"),
                             ("missing", text([("a", a)]), "a tensor of the adapter is not in the header"),
                             ("none", text([]), "no tensor in the header"),
                             ("more", text([("a", a), ("b", b),
                             ("c", tensor("c", "F32", [1]))]), "a tensor that the adapter does not have"),
                             ("more-empty", text([("a", a), ("b", b),
                             ("c", tensor("c", "F32", [0]))]), "an empty tensor that the adapter does not have")):
        put("r68-" + name, t, comment, rows="80")
    right = hashlib.sha256(with_length(good) + a[1] + b[1]).hexdigest()
    put("r69-of-header", good, "the SHA-256 is that of the header", sha=hashlib.sha256(with_length(good)).hexdigest(), rows="80")
    put("r69-of-nothing", good, "the SHA-256 of no bytes", sha=hashlib.sha256(b"").hexdigest(), rows="80")
    put("r69-storage-order", text([("b", b),
            ("a", a)]), "the SHA-256 of header and tensors in storage order, which is not that of the offsets",
        sha=hashlib.sha256(with_length(text([("b", b), ("a", a)])) + a[1] + b[1]).hexdigest(), rows="80")
    put("r69-space-more", good + b" ", "a space in the header that the source file did not have", sha=right, rows="80")
    two = [adapter(name="x", layers=[layer("q", {"A": 0, "B": 1})]), adapter(name="y", layers=[layer("q", {"A": 2, "B": 3})])]
    c, d = tensor("a", "F32", [1, 2], b"12345678"), tensor("b", "F32", [2, 1], b"abcdefgh")
    h = with_length(good)
    m = model(two, [a, b, c, d], [("x/source.safetensors.header", h, right), ("y/source.safetensors.header", h, right)])
    bad("r69-bundle", lora(m), "both headers of a bundle with the SHA-256 of the first file", "restore", model=m, rows="80")

    def asks(name, comment, ts=(a, b), **more):
        m = model([adapter(**{"layers": [layer("q", {"A": 0, "B": 1})]} | more)], list(ts))
        bad(name, lora(m), comment, "apply", model=m)
    asks("r70-feature", "an unknown feature for the whole adapter", requires=[{"feature": "x-not-invented", "where": ""}])
    asks("r70-feature-of-module", "an unknown feature for a module", requires=[{"feature": "x-not-invented", "where": "q"}])
    asks("r70-feature-elsewhere", "an unknown feature for a module without layer", requires=[{"feature": "x-not-invented", "where": "elsewhere"}])
    asks("r70-feature-case", "DoRA is not dora", requires=[{"feature": "DoRA", "where": "q"}])
    asks("r70-method", "a method that its required feature stands for", method="other:x-not-invented", requires=[{"feature": "x-not-invented", "where": ""}])
    asks("r70-kind-other", "a layer of kind other", layers=[layer("q", {"A": 0, "B": 1}, kind="other")])
    asks("r70-kind-other-without-factors", "a layer of kind other beside one that could be applied", layers=[layer("q", {"A": 0, "B": 1}), layer("r", {}, kind="other")])

    dora = [{"feature": "dora", "where": "q"}]
    m, more = tensor("m", "F32", [2]), [tensor("c", "F32", [1, 2]), tensor("d", "F32", [2, 1])]
    plain, with_m = layer("q", {"A": 0, "B": 1}), layer("q", {"A": 0, "B": 1, "magnitude": 2})
    asks("r74-dora-of-module", "DoRA of a layer without a magnitude", requires=dora)
    asks("r74-dora-of-no-layer", "DoRA of a module without a layer", requires=[{"feature": "dora", "where": "elsewhere"}])
    asks("r74-dora-of-all", "DoRA of the whole adapter, one of two layers without a magnitude", [a, b, m, *more], requires=[{"feature": "dora", "where": ""}],
         layers=[with_m, layer("r", {"A": 3, "B": 4})])
    asks("r74-method-dora", "the method dora, another feature, no magnitude", method="dora", requires=[{"feature": "lora-bias", "where": "q"}],
         layers=[layer("q", {"A": 0, "B": 1, "bias": 2})], ts=[a, b, m])
    asks("r74-bias", "a bias of B that is not there", requires=[{"feature": "lora-bias", "where": "q"}])
    asks("r75-magnitude", "a magnitude and no requirement", [a, b, m], layers=[with_m])
    asks("r75-magnitude-of-another", "a magnitude of q, DoRA of r", [a, b, m, *more, tensor("n", "F32", [2])], requires=[{"feature": "dora", "where": "r"}],
         layers=[with_m, layer("r", {"A": 3, "B": 4, "magnitude": 5})])
    asks("r75-bias", "a bias of B and no requirement", [a, b, m], layers=[layer("q", {"A": 0, "B": 1, "bias": 2})])
    asks("r76-unknown-role", "a role x", [a, b, m], layers=[layer("q", {"A": 0, "B": 1, "x": 2})])
    asks("r76-lowercase", "the role a beside A", [a, b, m], layers=[layer("q", {"A": 0, "B": 1, "a": 2})])


def entry(t, begin, end):
    return json.dumps({"dtype": t[0]["dtype"], "shape": t[0]["shape"], "data_offsets": [begin, end]}, separators=(",", ":")).encode()


def one_chunk(c):
    """RLE blocks for the spaces; the beginning, if it is no space, raw."""
    n = len(c) - len(c.lstrip(b" ")) if c[:1] == b" " else 0
    start = b"" if n else c[:c.rindex(b"}") + 1] if b"}" in c else b""
    rest, out = len(c) - len(start), [raw(start)] if start else []
    while rest:
        k = min(rest, 2**17)
        rest -= k
        out.append(rle(32, k, not rest))
    return frame(c, b"".join(out))
