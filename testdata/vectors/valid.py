"""The valid files: what section 15 lists under "What is valid", and every form that the other sections allow."""
import hashlib
import struct

from builder import (BITS, adapter, blocks_for, canonical, compressed, example, frame, fse_weights, huffman_literals, layer, lora,
                     model, noise, opaque, raw, repeated, rle, rle_literals, sequence, stock, tensor)
from kit import ok
from safetensors_header import header


def both(f):
    return {i: f for i in range(64)}


def add():
    ex = example()
    ok("example", lora(ex), ex, "the example of section 17, all blocks raw")
    structure(ex)
    blocks()
    data()
    records(ex)
    restoring()
    large(ex)


def sharing():
    """Two adapters that agree in A and in a tensor beside: with tensors of their own, and with shared ones."""
    def parts(k):
        return [layer("q", {"A": k, "B": k + 1})], [{"action": "replace", "target": "head", "tensor": k + 2}]

    def of(name, k, b):
        layers, beside = parts(k)
        layers[0]["roles"]["B"] = b
        return adapter(name=name, layers=layers, beside=beside)

    def tensors(*seeds):
        out = [tensor("A", "F32", [1, 3], noise("shared A", 12)), tensor("B", "F32", [2, 1], noise(seeds[0], 8)),
               tensor("head", "F32", [2], noise("shared head", 8))]
        return out
    x, y = tensors("B of a"), tensors("B of b")
    apart = model([of("a", 0, 1), of("b", 3, 4)], x + y)
    return apart, model([of("a", 0, 1), of("b", 0, 3)], x + y[1:2])


def structure(ex):
    m = model([adapter()], [])
    ok("no-chunks", lora(m), m, "no tensor, no attachment, no chunk")
    m = opaque(tensor("a", "F32", [0]), tensor("b", "U8", [0, 2**48]), tensor("c", "BF16", [3, 0, 5]), attachments=[("empty", b"")])
    ok("empty-tensors-only", lora(m), m, "three tensors and an attachment of no bytes: no chunk")
    m = opaque(tensor("a", "F32", [2]), tensor("b", "F32", [0], coding="raw"), tensor("c", "F32", [2]), tensor("d", "F32", [2**48, 0]),
               tensor("e", "F32", []))
    ok("empty-tensors-cut-runs", lora(m), m, "an empty tensor with another coding ends a run, one with the same coding does not")
    m = opaque(tensor("s", "F32", []), tensor("t", "F4", [2, 1, 1, 1, 1, 1, 1, 1]), tensor("u", "I64", [1, 1]))
    ok("scalar-and-8-dims", lora(m), m, "a scalar, and as many dimensions as there may be")
    ok("ignorable-bits", lora(ex, ignorable=0xFFFFFFFF), ex, "all ignorable bits set", rows="14")
    ok("newer-minor", lora(ex, minor=1), ex, "minor 1 and nothing new")
    deep = 1
    for _ in range(15):
        deep = [deep]
    m = example()

    def later(v, at_root=True):
        for x in v.values() if isinstance(v, dict) else v:
            if isinstance(x, (dict, list)):
                later(x, False)
        if isinstance(v, dict) and v and not ("A" in v and "B" in v):
            v["later"] = deep if at_root else {"": [-1, "\u0001"]}
    new = m.edited(later)
    ok("newer-minor-members", lora(m, text=canonical(new.manifest), minor=65535, ignorable=5), m,
       "minor 65535 with a member `later` in every record, one of them 16 deep; the content id is that of ok-example", rows="25")
    a = adapter(name="a", layers=[layer("q", {"A": 3, "B": 0})])
    b = adapter(name="b/ü", layers=[layer("q", {"A": 2, "B": 1})])
    m = model([a, b], [tensor("B", "F32", [2, 1]), tensor("B", "F32", [3, 1], noise("b", 12)), tensor("A", "F32", [1, 3], noise("c", 12)),
                       tensor("A", "F32", [1, 2])], [("README.md", b"both\n"), ("a/README.md", b"a\n"), ("b/ü/README.md", b"b\n")])
    ok("bundle", lora(m), m, "two adapters with tensors of the same names, their bytes interleaved")
    apart, shared = sharing()
    ok("shared-tensors", lora(shared, minor=1, critical=1), shared, "two adapters share A and a tensor beside")
    ok("shared-tensors-apart", lora(apart), apart, "the adapters of ok-shared-tensors, each with its own tensors, under the same content id")
    a, b = (adapter(name=n, layers=[layer("q", {"A": 0, "B": 1})]) for n in "ab")
    m = model([a, b], [tensor("A", "F32", [1, 2]), tensor("B", "F32", [2, 1])])
    ok("shared-everything", lora(m, minor=1, critical=1), m, "two adapters that differ in their names alone")
    m = model([adapter(layers=[layer("q", {"A": 1, "B": 0})], orientation="nxm", dialect="peft",
                       base={"fingerprints": {"q.weight": "0" * 63 + "a"}, "name": "x/y", "revision": "main"})],
              [tensor("q.lora_B.weight", "F32", [2, 1], ex.parts[1], "raw"), tensor("q.lora_A.weight", "F32", [1, 2], ex.parts[0])],
              [("x/y", b"other")], metadata={"k": "v"}, provenance={"source": "s", "tool": "t", "version": "1"})
    ok("same-content", lora(m, log2=16, ignorable=1, frames={0: stock}), m,
       "all that the content id does not cover is other than in ok-example, which has the same content id")
    for log2, sizes in ((16, (0, 2**16 - 1, 2**16, 2**16 + 1, 2**17, 3)), (24, (0, 3))):
        ts = []
        for i, n in enumerate(sizes):
            pattern = noise(f"pattern{i}", 96)
            ts.append(tensor(f"u{i}", "U8" if i % 2 else "I8", [n], (pattern * (n // 96 + 1))[:n]))
        m = opaque(*ts, attachments=[("a", noise("a", 96) * 700), ("b", b"b")])
        ok(f"chunk-log2-{log2}", lora(m, log2=log2, frames=both(stock)), m, "runs of nothing, of one chunk less and more a byte, of two chunks")
    pattern = struct.pack("<24H", *range(0x3F80, 0x3F80 + 24))
    ts = [tensor(f"t{i:02}", "BF16", [n], (pattern * (n // 24 + 1))[:2 * n]) for i, n in enumerate((5, 32768, 1, 65536, 7, 3, 40000))]
    m = opaque(*ts)
    ok("run-of-chunks", lora(m, log2=16, frames=both(stock)), m, "small tensors share a chunk, large ones span several; planes are per chunk")
    m = opaque(tensor("a", "U8", [5]), attachments=[("a", b"12345")])
    ok("attachment-after-u8", lora(m), m, "the attachments are a run of their own, after a raw U8 tensor too")


def blocks():
    bits = format(int.from_bytes(noise("bits", 5), "big"), "040b")
    b = b"abc" + b"x" * 50 + b"q" * 9 + b"Z" * 200 + bytes(map(int, bits)) + b"Z" * 33
    m = opaque(tensor("x", "U8", [len(b)], b))
    mixed = (raw(b"abc") + rle(120, 50) + raw(b"") + compressed(rle_literals(113, 9), b"\0")
             + compressed(rle_literals(90, 1), sequence(1, 0, 43, format(199 - 131, "07b"))) + rle(7, 0)
             + compressed(huffman_literals(bits, 40), b"\0") + rle(90, 33, True))
    ok("blocks", lora(m, frames={0: lambda c: frame(c, mixed)}), m,
       "raw, RLE, compressed blocks with RLE and Huffman literals and one sequence, an empty raw and an empty RLE block, in one frame")
    bits = "".join(map(str, (x & 1 for x in noise("bits", 200))))
    b = bytes(map(int, bits))
    m = opaque(tensor("x", "U8", [200], b))
    tree = compressed(huffman_literals(bits[:100], 100), b"\0") + compressed(huffman_literals(bits[100:], 100, b"", 3), b"\0", True)
    ok("treeless-block", lora(m, frames={0: lambda c: frame(c, tree)}), m, "the second block uses the Huffman table of the first")
    codes = ["0000", "0001", "0010", "0011", "010", "011", "10", "11"]  # of the weights 1, 1, 1, 1, 2, 2, 3 and 3
    b = bytes(x & 7 for x in noise("weights", 200))
    bits = "".join(codes[x] for x in b)
    m = opaque(tensor("x", "U8", [200], b))
    for name, tail, what in (("at-a-bit", "", "no bit is left"), ("within-an-update", "0", "one bit is left"),
                             ("within-an-update-of-ones", "1", "one bit, which is set, is left")):
        tree = fse_weights([1, 1, 1, 1, 2, 2, 3], 5, [2, 16, 8, 6], tail)
        ok(f"weights-end-{name}", lora(m, frames={0: lambda c: frame(c, compressed(huffman_literals(bits, 200, tree), b"\0", True))}), m,
           f"Huffman weights under an FSE code; where an update of two bits ends them, {what} (RFC 8878, section 4.2.1.2)")
    m = opaque(tensor("x", "U8", [200], b"r" * 200))
    ok("last-block-empty", lora(m, frames={0: lambda c: frame(c, rle(114, 200) + raw(b"", True))}), m, "the last block is empty")
    b = noise("bound", 16)
    m = opaque(tensor("x", "U8", [16], b))
    ok("frame-at-bound", lora(m, frames={0: lambda c: frame(c, raw(b"") * 17 + raw(b, True))}), m,
       "17 empty blocks make the chunk frame as long as bound(16) = 80 allows", rows="63")
    text = (b"the quick brown fox jumps over the lazy dog; " * 40 + noise("n", 100).hex().encode()) * 2
    m = opaque(tensor("x", "U8", [len(text)], text), tensor("y", "F16", [800], struct.pack("<800e", *(i / 64 for i in range(800)))))
    ok("stock-encoder", lora(m, frames=both(stock), manifest_frame=stock), m, "frames of the zstd library at level 19, the manifest's too")
    ok("stock-encoder-level-1", lora(m, frames=both(lambda c: stock(c, 1)), manifest_frame=lambda c: stock(c, 1)), m, "the same at level 1")
    ex = example()
    for width in (2, 4, 8):
        m = opaque(tensor("x", "U8", [256], noise("w", 256))) if width == 2 else ex
        ok(f"content-size-{width}-bytes", lora(m, frames=both(lambda c: frame(c, width=width)), manifest_frame=lambda c: frame(c, width=width)),
           m, f"every content size in {width} bytes")
    n = 2**17
    m = opaque(tensor("x", "U8", [2 * n + 1], bytes(2 * n + 1)))
    ok("blocks-of-128k", lora(m), m, "two RLE blocks of exactly 128 KiB and one of a byte")
    period = noise("period", 300)
    m = opaque(tensor("x", "U8", [3 * n], (period * n)[:3 * n]))
    ok("matches-across-blocks", lora(m, frames={0: lambda c: frame(c, repeated(period, len(c)))}), m,
       "one sequence a block, that copies from the block before")


def data():
    ts = [tensor(d.lower(), d, [4, 3]) for d in BITS]
    m = opaque(*ts)
    ok("every-dtype", lora(m), m, "every dtype, those of floating point in planes")
    m = opaque(*[tensor(d.lower(), d, [4, 3], coding="raw") for d in BITS])
    ok("every-dtype-raw", lora(m), m, "every dtype, all raw")
    m = opaque(tensor("f4", "F4", [6]), tensor("f4 one byte", "F4", [1, 2]), tensor("f6", "F6_E2M3", [4]), tensor("f6 more", "F6_E3M2", [2, 10]),
               tensor("f6 none", "F6_E2M3", [0, 3]), tensor("f4 none", "F4", [3, 0]))
    ok("f4-f6", lora(m), m, "elements of 4 and 6 bits that end on a byte", rows="38")
    f32 = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x007FFFFF, 0x80000000, 0]
    m = opaque(tensor("f64", "F64", [5], struct.pack("<5Q", 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF, 0x7FF << 52, 1, 1 << 63)),
               tensor("f32", "F32", [11], struct.pack("<11I", *f32)),
               tensor("f16", "F16", [6], struct.pack("<6H", 0x7C01, 0xFFFF, 0x7C00, 0xFC00, 1, 0x8000)),
               tensor("bf16", "BF16", [6], struct.pack("<6H", 0x7F81, 0xFFFF, 0x7F80, 0xFF80, 1, 0x8000)),
               tensor("bool", "BOOL", [256], bytes(range(256))))
    ok("nan-inf-subnormal", lora(m), m, "quiet and signalling NaNs, infinities, subnormals, -0; BOOL of every byte", rows="88")
    m = opaque(tensor("a", "F32", [3]), tensor("b", "F32", [3], coding="raw"), tensor("c", "F32", [3]), tensor("d", "BF16", [3]),
               tensor("e", "F16", [3]), tensor("f", "I16", [3]), tensor("g", "U16", [3]))
    ok("codings-alternate", lora(m), m, "a run ends where dtype or coding changes: seven runs")


def records(ex):
    names = ["../../etc/passwd", "C:\\x", "\"q\" 'q' `q`", "\u0080", "\u0085", "\u00e9", "e\u0301", "\u2028", "\ufeffx", "\ufffd", "\U0001f600",
             "x" * 1024, "é" * 512, " ", "/", "a:b", "a\\b", "."]
    m = opaque(*[tensor(n, "U8", [1]) for n in names])
    ok("names", lora(m), m, "names with ../, a drive, quotes, C1 controls, equal but for normalisation, beyond the BMP, of 1,024 bytes",
       rows="31 33")
    mods = sorted(names, key=lambda s: s.encode())
    ts = [tensor(f"{r}{i}", "U8", [1, 1]) for i in range(len(mods)) for r in "AB"]
    m = model([adapter(layers=[layer(x, {"A": 2 * i, "B": 2 * i + 1}) for i, x in enumerate(mods)], name="../x")], ts)
    ok("module-names", lora(m), m, "the same as modules, which are in the order of code points, not of UTF-16")
    allc = "".join(map(chr, range(0x20)))
    m = model([adapter(base={"fingerprints": {}, "name": allc, "revision": "\x7f\u2028\U0010ffff"})], [],
              metadata={"\ue000": "", "\ufffd": allc + "\"\\/\x7f", "\U00010000": "\ud7ff\ue000\ufeff"})
    ok("texts", lora(m), m, "every escape there is, DEL and U+10FFFF as they are, keys in the order of code points", rows="27")
    alphas = [16, 0, -8, 2**53 - 1, 1 - 2**53, "3fe0000000000000", "4340000000000000", "c340000000000000", "0000000000000001",
              "7fefffffffffffff", "bfb999999999999a", "8000000000000001"]
    layers = [layer(f"m{i:02}", {}, kind="other", alpha=a, scaling="alpha/sqrt(r)" if i % 2 else "alpha/r", rank=i + 1)
              for i, a in enumerate(alphas)]
    layers += [{k: v for k, v in layer(f"n{i:02}", {}, kind="other", scaling="fixed", scale=a).items()} for i, a in enumerate(alphas)]
    m = model([adapter(layers=layers)], [])
    ok("reals", lora(m), m, "alpha and scale as integers and as bits: 0.5, 2^53, the smallest and largest numbers")
    m = model([adapter(
        method="dora", name="only", requires=[{"feature": "dora", "where": "c"}, {"feature": "dora", "where": "d"},
                                              {"feature": "lora-bias", "where": ""}, {"feature": "lora-bias", "where": "b"}],
        layers=[layer("a", {"A": 0, "B": 1}, 2, kind="embedding"), layer("b", {"A": 2, "B": 3, "bias": 4, "x": 5}),
                layer("c", {"A": 6, "B": 7, "magnitude": 8}), layer("d", {"A": 9, "B": 10, "bias": 11, "magnitude": 12}),
                layer("e", {"A": 13, "B": 14}, 9, kind="conv"), layer("f", {"A": 15, "B": 16}, kind="expert"),
                layer("g", {"B": 17}, 65536, kind="other"), layer("h", {}, kind="other"),
                layer("i", {"A": 18, "B": 19}, 65536)])],
        [tensor(f"t{i:02}", "I8", s) for i, s in enumerate((
            [2, 5], [3, 2], [1, 4], [3, 1], [3], [7, 7], [1, 4], [3, 1], [3, 1], [1, 4], [3, 1], [1, 3], [1, 1, 4], [1, 2, 3, 3], [4],
            [], [0], [9], [65536, 0], [0, 65536]))])
    ok("kinds-and-roles", lora(m), m, "every kind, bias and magnitude of m and n elements, layers without factors, ranks 1 and 65,536")
    m = model([adapter(requires=[{"feature": "experts", "where": "e.w"}], layers=[
        layer("a", {"A": 0, "B": 1}, kind="expert-first"), layer("b", {"A": 2, "B": 3}, 2, kind="expert-inputs"),
        layer("c", {"A": 4, "B": 5}, 3, kind="expert-outputs"), layer("d", {"A": 6, "B": 7}, 2, kind="expert-second")])],
        [tensor(f"t{i}", "I8", s) for i, s in enumerate(([3, 2], [2, 3], [2, 4], [4, 2], [6, 1], [1, 6], [4, 0], [0, 4]))])
    ok("kinds-of-experts", lora(m, minor=1), m, "the kinds of version 1.1: three experts, one, two, and two with no columns")
    m = model([adapter(method="other:ia3 é", requires=[{"feature": "peft-type:IA3", "where": ""}],
                       beside=[{"action": "rows", "rows": [5, 0, 2**53 - 1], "target": "embed", "tensor": 0},
                               {"action": "replace", "target": "head", "tensor": 1}, {"action": "opaque", "tensor": 2},
                               {"action": "rows", "rows": [], "target": "embed", "tensor": 3},
                               {"action": "rows", "rows": [7], "target": "embed", "tensor": 4}])],
              [tensor("z", "F32", [3, 2]), tensor("y", "F32", [2]), tensor("x", "F32", []), tensor("w", "F32", [0, 2]), tensor("v", "F32", [1])])
    ok("beside", lora(m), m, "rows, replace and opaque; in the content document they are in the order of names, here the reverse")
    m = model([adapter()], [], [("adapter_config.json", b"[" * 2**21), ("aux", b""), ("c/d", b"\xff\x00"), ("c/e...", b"..."),
                                ("con", b"c", hashlib.sha256(b"c").hexdigest()), ("source.later", b"?")])
    ok("attachments", lora(m), m, "a configuration that is 2 MiB of [, which nobody has to parse, and others", rows="82")


def restoring():
    ts = [tensor("b", "F32", [2, 1]), tensor("a", "BF16", [1, 2]), tensor("é\"/x", "U8", [0]), tensor("s", "F16", [])]
    h = header([("s", ts[3]), ("b", ts[0]), ("é\"/x", ts[2]), ("a", ts[1])], order="basé",
               meta={"format": "pt"}, names={"é\"/x": '\\u00e9\\"\\/x'}, space=" ", pad=3)
    source = h + ts[3][1] + ts[0][1] + ts[1][1]
    sha = hashlib.sha256(source).hexdigest()
    rec = dict(layers=[layer("q", {"A": 1, "B": 0})], beside=[{"action": "opaque", "tensor": 2}, {"action": "opaque", "tensor": 3}])
    files = [("README.md", b"# card\n", hashlib.sha256(b"# card\n").hexdigest()), ("adapter_config.json", b"{}")]
    m = model([adapter(**rec)], ts, files + [("source.safetensors.header", h, sha)])
    ok("restore", lora(m), m, "keys in any order, escapes and white space, an empty tensor, N no multiple of 8, offsets not aligned",
       restored=[("source.safetensors.header", source)])
    m = model([adapter(name="one", **rec)], ts, [("source.safetensors.header", h)])
    ok("restore-no-digest", lora(m), m, "no sha256; the only adapter has a name and no prefix", restored=[("source.safetensors.header", source)])
    one, two = tensor("w", "F32", [1, 1]), tensor("w", "F32", [1, 1], noise("2", 4))
    h1, h2 = header([("w", one)]), header([("w", two)], meta={})
    m = model([adapter(name="1", beside=[{"action": "opaque", "tensor": 1}]), adapter(name="2", beside=[{"action": "opaque", "tensor": 0}])],
              [two, one], [("1/source.safetensors.header", h1, hashlib.sha256(h1 + one[1]).hexdigest()),
                           ("2/source.safetensors.header", h2, hashlib.sha256(h2 + two[1]).hexdigest())])
    ok("restore-bundle", lora(m), m, "a header for each adapter of a bundle",
       restored=[("1/source.safetensors.header", h1 + one[1]), ("2/source.safetensors.header", h2 + two[1])])
    h = header([])
    m = model([adapter()], [], [("source.safetensors.header", h, hashlib.sha256(h).hexdigest())])
    ok("restore-nothing", lora(m), m, "the header {} and no tensor", restored=[("source.safetensors.header", h)])
    t = b'{"__metadata__":null}'
    h = len(t).to_bytes(8, "little") + t
    m = model([adapter()], [], [("source.safetensors.header", h, hashlib.sha256(h).hexdigest())])
    ok("restore-metadata-null", lora(m), m, "__metadata__ is null, as MLX writes it", restored=[("source.safetensors.header", h)])


def large(ex):
    n = 2**26
    m = opaque(tensor("zero", "BF16", [2**25], bytes(n)))
    zeros = lora(m, log2=24, frames=both(lambda c: frame(c, blocks_for(c))))
    from kit import bad
    ok("zeros", zeros, m, "64 MiB of zeros in RLE blocks: the ratio has no limit", rows="44")
    bad("r56-total-over-readers-limit", b"", "a valid file, refused by a reader with a lower limit on all raw bytes", rows="44",
        options=f"total={n - 1}")
    take(zeros, "ok-zeros.lora")
    m = example().edited(lambda v: v["metadata"].update(k="v" * (17 * 2**20)))
    before, after = canonical(m.manifest).split(b"v" * (17 * 2**20))
    vs = rle(118, 2**17) * (17 * 8)
    long = lora(m, manifest_frame=lambda c: frame(c, raw(before) + vs + raw(after, True)))
    ok("manifest-17-mib", long, m, "a manifest over the default limit of readers, which is raised", options=f"manifest={2**26}")
    bad("r9-manifest-over-default", b"", "the same, refused at the default limit")
    take(long, "ok-manifest-17-mib.lora")


def take(data, file):
    """The vector added last is a second record for a file that is there already."""
    from kit import VECTORS
    VECTORS[-1].data, VECTORS[-1].file = data, file
