"""Records that break one rule each; nearly all are of merges.small()."""
import json
import struct
import zlib

import builder
import merges
from kit_undo import bad, put
from record import record, sha

TABLES = {"undo": ("undo", "tool", "reading", "adapters", "files", "tensors"), "adapter": ("name", "content", "weight"),
          "file": ("name", "before", "after", "rest"), "header": ("bytes", "sha256"),
          "tensor": ("name", "file", "dtype", "shape", "block", "predict", "terms"), "term": ("adapter", "module", "scale", "transposed")}


def tables(d):
    """The first record of each table."""
    return {"undo": d, "adapter": d["adapters"][0], "file": d["files"][0], "header": d["files"][0]["after"],
            "tensor": d["tensors"][0], "term": d["tensors"][0]["terms"][0]}


def flip(b, i):
    return b[:i] + bytes([b[i] ^ 1]) + b[i + 1:]


def add():
    m = merges.small()
    at = put(m)
    container(m, at)
    tiny = merges.tiny()
    text(tiny, put(tiny))
    description(m, at)
    streams(m, at)
    way_back(m, at)
    added()


def added():
    m = merges.grown()
    at, f = put(m), m.files[0]
    head = len(f.after)

    def files(name, comment, i):
        bad(name, record(m, 2), comment, put(m, "not-merged/" + name, lambda p: p.update({"": flip(p[""], head + i)})))
    files("u15-version-2-added-row", "a value of an added row was changed", 4 * 12)
    files("u15-version-2-added-tensor", "a value of an added tensor was changed", 72)
    files("u15-version-2-row-kept", "a value of a row before added ones was changed", 3)

    def header(name, comment, *texts, tensor=None):
        b = f.before
        for was, now in texts:
            assert was in b
            b = b.replace(was, now)
        b = struct.pack("<Q", len(b) - 8) + b[8:]

        def edit(d):
            d["files"][0]["before"] = {"bytes": len(b), "sha256": sha(b)}
            d["tensors"][0].update(tensor or {})
        bad("u17-" + name, record(m, 2, edit=edit, attached=lambda a: a.update({"headers/0": b})), comment, at)
    kept = b'"k":{"dtype":"U8","shape":[3,2],"data_offsets":[0,6]}'
    header("tensor-more", "a tensor that the merged file lacks", (b'"k"', b'"l"'))
    header("rows-less", "a tensor that has fewer rows after the merge", (kept, kept.replace(b"3", b"5").replace(b"6", b"10")),
           (b"[6,30]", b"[10,34]"), (b"[30,78]", b"[34,82]"), (b"[78,84]", b"[82,88]"))
    header("columns", "other rows", (kept, kept.replace(b"3,2", b"2,3")))
    header("dimensions", "another number of dimensions", (kept, kept.replace(b"3,2", b"6")))
    header("dtype", "another dtype", (kept, kept.replace(b"U8", b"I8")))
    header("record-shape", "the record has another shape than the header before", tensor={"shape": [3, 3], "block": 9})
    header("record-tensor", "the header before lacks a tensor of the record", (b',"b.bias":{"dtype":"BF16","shape":[3],"data_offsets":[78,84]}', b""))
    bad("u14-version-2-rows", record(m, 2, edit=lambda d: d["tensors"][0].update(shape=[7, 3], block=21)), "more rows than the merged file has", at, "U14 U17")
    bad("u05-version-1-rows", record(m, 1), "added rows and tensors in version 1", at, "U5 U14")
    side(merges.untied())


def side(m):
    at = put(m)

    def edited(name, comment, edit, rule=None, **more):
        bad(name, record(m, 2, edit=edit, **more), comment, at, rule)

    def member(key, v, of=0):
        return lambda d: d["side"][of].update({key: v})
    edited("u03-version-1-side", "a side in version 1", lambda d: d.update(undo=1))
    edited("u03-side-object", "side is an object", lambda d: d.update(side={}))
    edited("u03-side-more", "another member", member("more", 1))
    for key, v in (("name", 7), ("before", []), ("after", {"bytes": 1})):
        edited(f"u03-side-{key}", f"{key} is {v!r}", member(key, v))
        edited(f"u03-side-no-{key}", f"no {key}", lambda d: d["side"][0].pop(key) and None)
    edited("u17-side-twice", "a name twice", lambda d: d["side"][1].update(name=d["side"][0]["name"]))
    edited("u17-side-digest", "the digest before is another one", lambda d: d["side"][0]["before"].update(sha256=sha(b"")))
    edited("u17-side-capital", "the digest after has capital letters", lambda d: d["side"][0]["after"].update(sha256=d["side"][0]["after"]["sha256"].upper()))
    edited("u17-side-length", "the length before is another one", lambda d: d["side"][0]["before"].update(bytes=7))
    edited("u17-side-bytes", "a byte more than 2^26 after the merge", lambda d: d["side"][0]["after"].update(bytes=2**26 + 1))
    edited("u17-side-negative", "a length of -1", lambda d: d["side"][0]["after"].update(bytes=-1), "U17 U18")
    edited("u17-side-missing", "no bytes of config.json", None, attached=lambda a: a.pop("side/0") and None)
    edited("u18-after", "another digest after the merge", lambda d: d["side"][0]["after"].update(sha256=sha(b"")))
    edited("u18-name", "a file that is not there", member("name", "other.json"))
    edited("u18-outside", "a file outside of the directory", member("name", "../untied/config.json"))
    edited("u18-weights", "a weight file", member("name", "model-00001-of-00002.safetensors"))

    def files(name, comment, side):
        bad(name, record(m, 2), comment, put(m, "not-merged/" + name, side=side))
    config, index = ((name, after) for name, _, after in m.side)
    files("u18-edited", "config.json was edited", [(config[0], config[1] + b"\n"), index])
    files("u18-missing", "no config.json", [index])


def container(m, at):
    def put(name, comment, rule=None, **change):
        bad("u01-" + name, record(m, **change), comment, at, rule)

    def change(**members):
        return lambda v: v["adapters"][0].update(members)
    whole = record(m)
    bad("u01-cut", whole[:-100], "cut", at, "U1 R1")
    bad("u01-no-container", b'{"undo":1}' + bytes(20), "no .lora file", at, "U1 R3")
    put("major-2", "format version 2", "U1 R4", major=2)
    put("critical", "a critical feature", "U1 R5 R77", critical=1)  # version 1.1 knows bit 0
    put("head-digest", "the digest of the head is wrong", "U1 R60", head_digest=bytes(32))
    put("chunk-digest", "the digest of a chunk is wrong", "U1 R61", chunk_digests=lambda d: [flip(d[0], 5)] + d[1:])
    put("content-id", "the content id is wrong", "U1 R62", content=bytes(32))
    put("attachment-digest", "the sha256 of an attachment is wrong", "U1 R55",
        manifest=lambda v: v["attachments"][0].update(sha256="0" * 64))
    put("checksum", "the checksum of the streams' frame is wrong", "U1 R17", frames={0: lambda b: builder.frame(b, checksum=b"abcd")})
    put("two-adapters", "two adapters",
        manifest=lambda v: v["adapters"].append(builder.adapter(name="b")) or v["adapters"][0].update(name="a"))
    put("no-adapter", "no adapter", "U1 R34 R46", manifest=lambda v: v.update(adapters=[]))
    put("method-lora", "the method lora", manifest=change(method="lora"))
    put("method-other", "the method other:redo", manifest=change(method="other:redo"))
    put("layer", "a layer", manifest=lambda v: v["adapters"][0]["beside"].pop() and
        v["adapters"][0].update(layers=[builder.layer("q", {"x": 1}, kind="other")]))
    put("replace", "a tensor that is to replace another",
        manifest=lambda v: v["adapters"][0]["beside"][0].update(action="replace", target="q"))
    put("rows", "a tensor that is to replace a row", manifest=lambda v: v["adapters"][0]["beside"][0].update(
        action="rows", target="q", rows=[*range(v["tensors"][0]["shape"][0])]))


def member(table, key, v):
    return lambda d: tables(d)[table].update({key: v})


def text(m, at):
    def put(name, f, comment):
        bad("u03-" + name, record(m, text=f), comment, at)
    for v in (0, 3):
        bad(f"u02-version-{v}", record(m, edit=member("undo", "undo", v)), f"version {v}", at)
    bad("u11-version-2-entry-of-1", record(m, edit=member("undo", "undo", 2)), "version 2, with the table of version 1", at)
    bad("u02-later-version", record(m, edit=lambda d: {"undo": 3, "new": None, "tensors": []}), "version 3, with other members", at, "U2 U3")
    bad("u03-version-2", record(m, edit=lambda d: {"undo": 2, "new": None, "tensors": []}), "version 2, with other members", at)
    bad("u03-no-description", record(m, attached=lambda a: {"undo": a["undo.json"]}), "no undo.json", at)
    put("empty", lambda b: b"\n", "a line feed in place of the object")
    put("cut", lambda b: b[:-1], "cut by one byte")
    put("array", lambda b: b"[" + b + b"]", "an array around the object")
    put("null", lambda b: b"null", "null")
    put("two-objects", lambda b: b + b"{}", "an object behind the object")
    put("bom", lambda b: b"\xef\xbb\xbf" + b, "a byte order mark")
    put("invalid-utf-8", lambda b: b.replace(b"make.py", b"\xff"), "invalid UTF-8 in the name of the tool")
    put("member-twice", lambda b: b.replace(b'"tool"', b'"tool":"x","tool"'), "a member twice")
    put("member-twice-in-term", lambda b: b.replace(b'"scale"', b'"scale":1,"scale"'), "a member of a term twice")
    put("weight-nan", lambda b: b.replace(b'"weight":1.0', b'"weight":NaN'), "a weight of NaN")
    put("weight-infinite", lambda b: b.replace(b'"weight":1.0', b'"weight":1e999'), "a weight beyond float64")
    put("scale-leading-zero", lambda b: b.replace(b'"scale":1', b'"scale":01'), "a number with a leading zero")
    put("deep", lambda b: b'{"undo":1,"tool":' + b"[" * 100000, "arrays nested 100,000 deep")
    wrong = {"undo": ["1", 1.5], "tool": [7], "reading": [[], {"flag": 1}, None], "adapters": [{}, [None]], "tensors": [None], "weight": ["1", None], "rest": [["1"], [0.5], [None]],
             "before": [[]], "sha256": [None], "bytes": [0.5], "file": ["0", None], "dtype": [7], "shape": [["6"], [-2, 3], None], "block": [0.5],
             "terms": [{}], "module": [None], "scale": ["1", None], "transposed": [0, None]}
    # Where a member is not there, what another rule wants of it is not there either.
    also = {"adapters": "U4", "content": "U4", "files": "U6 U14", "tensors": "U6", "before": "U5", "after": "U5", "sha256": "U5", "bytes": "U5",
            "rest": "U13", "dtype": "U7", "block": "U8", "predict": "U10", "terms": "U10"}
    for table, keys in TABLES.items():
        bad(f"u03-{table}-more", record(m, edit=member(table, "more", 1)), f"another member in {table}", at)
        k = keys[0]
        bad(f"u03-{table}-capital", record(m, edit=lambda d: tables(d)[table].update({k.upper(): tables(d)[table].pop(k)})),
            f"{k.upper()} in {table}", at)
        for key in keys:
            rule = f"U3 {also.get(key, '')}".strip()
            bad(f"u03-{table}-no-{key}", record(m, edit=lambda d: tables(d)[table].pop(key) and None), f"{table} lacks {key}", at, rule)
            for i, v in enumerate(wrong.get(key, [])):
                bad(f"u03-{table}-{key}-{i + 1}", record(m, edit=member(table, key, v)), f"{key} of {table} is {json.dumps(v)}", at,
                    rule if v is None or v == [None] and key == "adapters" else None)


def description(m, at):
    def put(name, comment, edit, rule=None, **more):
        bad(name, record(m, edit=edit, **more), comment, at, rule)

    put("u04-no-adapters", "no adapters, and no terms", lambda d: d.update(adapters=[]) or d["tensors"][0].update(terms=[], predict="same"))
    h = m.adapters[0].content
    for name, v in (("short", h[:-1]), ("capital", h.upper()), ("letter", "g" + h[1:])):
        put(f"u04-content-{name}", f"the content id is {v!r}", member("adapter", "content", v))
    f = m.files[0]
    put("u05-names-equal", "two files of one name", lambda d: d["files"].append(d["files"][0] | {"before": d["files"][0]["after"]}))
    for which, b in (("before", f.before), ("after", f.after)):
        put(f"u05-{which}-capital", f"{which} with capital letters", lambda d: d["files"][0][which].update(sha256=sha(b).upper()))
    put("u05-length", "the header has another length", lambda d: d["files"][0]["before"].update(bytes=len(f.before) + 1))
    put("u05-digest", "the header has another digest", lambda d: d["files"][0]["before"].update(sha256=sha(b"")))
    for name, comment, attached in (
            ("missing", "no header", lambda a: {"undo.json": a["undo.json"]}),
            ("name", "the header is called headers/00", lambda a: {"headers/00": a["headers/0"], "undo.json": a["undo.json"]}),
            ("other", "the header is that of the next file", lambda a: {"headers/1": a["headers/0"], "undo.json": a["undo.json"]}),
            ("edited", "a bit of the header turned", lambda a: a.update({"headers/0": flip(a["headers/0"], 20)}))):
        bad(f"u05-header-{name}", record(m, attached=attached), comment, at)
    put("u06-names-equal", "two tensors of one name", lambda d: d["tensors"][1].update(name="q.weight"))
    for v in (-1, 1):
        put(f"u06-file-{v}", f"file {v} of one", member("tensor", "file", v))
    for name, comment, change in (
            ("missing", "no stream of the last tensor", lambda s: s[:1]),
            ("more", "a stream of no tensor", lambda s: s + [("2", *s[1][1:])]),
            ("empty", "a stream without a byte, of no tensor", lambda s: s + [("2", "U8", [0], b"")]),
            ("name", "a stream with a leading zero in its name", lambda s: [s[0], ("01", *s[1][1:])]),
            ("sign", "a stream called +1", lambda s: [s[0], ("+1", *s[1][1:])])):
        bad(f"u06-stream-{name}", record(m, streams=change), comment, at)
    for name, comment, v in (("f4", "four bits", {"dtype": "F4"}),
                             ("lowercase", "a dtype in small letters", {"dtype": "f32"}),
                             ("size", "2^62 bytes", {"shape": [2**60], "block": 2**60}),
                             ("size-64", "2^64 bytes and a few", {"shape": [2**62 + 1], "block": 2**62}),
                             ("size-wraps", "2^66 bytes", {"shape": [2**32, 2**32], "block": 2**62})):
        put("u07-" + name, comment, lambda d: d["tensors"][0].update(v), "U7 U3" if name == "lowercase" else None)
    for v in (0, -1, 5):
        put(f"u08-block-{v}", f"blocks of {v} elements, the tensor has 6", member("tensor", "block", v))
    table = bytes(48 * 3)
    for name, dtype, n in (("f32", "F32", 2**17 - 1), ("bf16", "BF16", 2**18 - 1)):
        bad(f"u08-small-{name}", record(m, edit=lambda d: d["tensors"][0].update(dtype=dtype, shape=[2 * n + 1], block=n),
            streams=lambda s: [("0", "U8", [len(table)], table), s[1]]), "blocks of less than 2^19 bytes, in a tensor of three", at)
    put("u08-empty-tensor", "blocks of no elements, in a tensor of none", lambda d: d["tensors"][0].update(shape=[0, 3], block=0),
        streams=lambda s: [("0", "U8", [0], b""), s[1]])
    bad("u09-bytes", record(m, text=lambda b: b.ljust(2**26 + 1), log2=23), "2^26 + 1 bytes, most of them spaces", at)
    for v in ("", "Subtract"):
        put(f"u10-predict-{v.strip() or 'empty'}", f"predict is {v!r}", member("tensor", "predict", v))
    put("u10-no-terms", "subtract without terms", member("tensor", "terms", []))
    put("u10-terms", "same with terms", member("tensor", "predict", "same"))
    for v in (-1, 1):
        put(f"u10-adapter-{v}", f"adapter {v} of one", member("term", "adapter", v))


def streams(m, at):
    def put(name, comment, change, i=0, rule=None):
        bad(name, record(m, blocks={i: change}), comment, at, rule)

    def stream(name, comment, change):
        bad("u11-" + name, record(m, streams=lambda s: [change(*s[0]), s[1]]), comment, at)
    stream("dtype", "a stream of I8", lambda n, d, s, b: (n, "I8", s, b))
    stream("dtype-wide", "a stream of F32", lambda n, d, s, b: (n, "F32", [len(b + b[:-len(b) % 4]) // 4], b + b[:-len(b) % 4]))
    stream("two-dimensions", "a stream of two dimensions", lambda n, d, s, b: (n, d, [1, len(b)], b))
    stream("short", "a byte less", lambda n, d, s, b: (n, d, [len(b) - 1], b[1:]))
    stream("long", "a byte more, between payload and table", lambda n, d, s, b: (n, d, [len(b) + 1], b[:-48] + b"\0" + b[-48:]))
    stream("entry-more", "an entry of no block", lambda n, d, s, b: (n, d, [len(b) + 48], b + bytes(48)))
    stream("empty", "no bytes", lambda n, d, s, b: (n, d, [0], b""))
    bad("u11-version-1-entry-of-2", record(m, 2, edit=member("undo", "undo", 1)), "version 1, with the table of version 2", at)
    for name, comment, change in (("short", "a byte less", lambda b: b[1:]), ("half-table", "half of a table", lambda b: b[-10:]),
                                  ("long", "a byte more, between payload and table", lambda b: b[:-20] + b"\0" + b[-20:]),
                                  ("entry-more", "an entry of no block", lambda b: b + bytes(20))):
        bad("u11-version-2-" + name, record(m, 2, streams=lambda s: [("0", "U8", [len(change(s[0][3]))], change(s[0][3])), s[1]]),
            comment + ", in version 2", at)
    stream("half-table", "half of a table", lambda n, d, s, b: (n, d, [24], b[-24:]))

    def lengths(*f):
        return lambda bs: setattr(bs[0], "lengths", tuple(g(len(x)) for g, x in zip(f, (bs[0].marks, bs[0].sizes, bs[0].escapes))))

    def same(n):
        return n
    put("u11-marks-more", "one mark more than there is", lengths(lambda n: n + 1, same, same))
    put("u11-marks-max", "2^32 - 2 marks", lengths(lambda n: 2**32 - 2, same, same))
    put("u11-wraps", "lengths that are right modulo 2^32", lengths(same, lambda n: n + 2**31, lambda n: n + 2**31))
    put("u11-planar-wraps", "a planar block, its length modulo 2^32 right",
        lambda bs: bs[0].planar() or setattr(bs[0], "lengths", (2**32 - 1, 25, 2**32 - 1)), rule="U11 U12")

    def escape_all(bs):
        b = bs[0]
        b.marks, b.sizes, b.escapes = [160] * len(b.zs), [255] * len(b.zs), [x for z in b.zs for x in z.to_bytes(b.bits // 8, "little")]
    put("u11-payload-longer-than-block", "every element an escape: as it should be, but for its length", escape_all)

    def longer(bs):
        bs[0].planar()
        bs[0].sizes.append(0)
    put("u11-planar-longer-than-block", "a planar payload of a byte more", longer, rule="U11 U12")

    def marks(change, sizes=None, escapes=None):
        def f(bs):
            b = bs[0]
            b.marks = change(b.marks)
            b.sizes = sizes(b.sizes) if sizes else b.sizes
            b.escapes = escapes(b.escapes) if escapes else b.escapes
        return f
    # The first tensor has 6 elements, marks for z = 2, an escape and z = 13; the second one 16, all behind the fourth zero.
    for v in (247, 255):
        put(f"u12-mark-{v}", f"a mark of {v} at the end", marks(lambda x: x + [v]))
    put("u12-at-end", "a mark for the element behind the last one", marks(lambda x: x + [12]), 1)
    put("u12-beyond", "a mark that skips five elements of four", marks(lambda x: [5] + x))
    put("u12-one-too-many", "a mark for each element and one more", marks(lambda x: [0] * 17), 1, "U12 U11")
    for v in (240, 246):
        put(f"u12-skip-{v}", f"a skip of {80 * 4**(v - 240)} elements of 16", marks(lambda x: x + [v]), 1)
    put("u12-size-left", "a size more than the marks take", marks(lambda x: x, lambda x: x + [0]))
    put("u12-size-missing", "a size less than the marks take", marks(lambda x: x, lambda x: x[:-1]))
    put("u12-sizes-none", "no sizes, and marks that take some", marks(lambda x: x, lambda x: [], lambda x: []))
    put("u12-escapes-left", "an escape more than the sizes take", marks(lambda x: x, None, lambda x: x + [0, 0, 0, 1]))
    put("u12-escape-byte-left", "a byte behind the escapes", marks(lambda x: x, None, lambda x: x + [0]))
    put("u12-escape-missing", "no escapes, and a size that takes one", marks(lambda x: x, None, lambda x: []))
    put("u12-escape-short", "an escape of three bytes for an F32", marks(lambda x: x, None, lambda x: x[:-1]))

    def shorter(n):
        def f(bs):
            bs[0].planar()
            bs[0].sizes = bs[0].sizes[:len(bs[0].sizes) - n]
        return f
    put("u12-planar-short", "a planar payload of a byte less", shorter(1))
    put("u12-planar-plane-missing", "a planar payload without its last plane", shorter(6))
    put("u12-planar-empty", "a planar payload without bytes", shorter(24))
    put("u12-planar-escapes", "a planar block with escapes", lambda bs: shorter(4)(bs) or bs[0].__setattr__("escapes", [0] * 4))


def way_back(m, at):
    def put_edit(name, comment, edit, rule=None):
        bad(name, record(m, edit=edit), comment, at, rule)

    def rest(f):
        return lambda d: d["files"][0].update(rest=f(d["files"][0]["rest"]))
    put_edit("u13-less", "no sums for one piece", rest(lambda r: []))
    put_edit("u13-more", "two sums for one piece", rest(lambda r: r + [0]))
    put_edit("u13-of-nothing", "a sum for the range without bytes at the end", rest(lambda r: r + [0, 0]))
    big = merges.long()
    bad("u13-piece-less", record(big, edit=lambda d: d["files"][0]["rest"].pop() and None), "one sum for two pieces of a range", put(big, tail=merges.LONG_ZEROS))
    put_edit("u14-digest", "the header after the merge has another digest", lambda d: d["files"][0]["after"].update(sha256=sha(b"")))
    put_edit("u14-length", "the header after the merge has another length", lambda d: d["files"][0]["after"].update(bytes=8))
    put_edit("u14-before", "the header is that of before the merge", lambda d: d["files"][0].update(after=d["files"][0]["before"]))
    put_edit("u14-file-more", "a file more than the checkpoint has", lambda d: d["files"].append(
        {"name": "other.safetensors", "before": d["files"][0]["after"], "after": d["files"][0]["after"], "rest": []}))

    def files(name, rule, comment, edit, of=m):
        bad(name, record(of), comment, put(of, "not-merged/" + name, edit), rule)

    def change(i, name=""):
        return lambda parts: parts.update({name: flip(parts[name], i)})
    head = len(m.files[0].after)
    files("u14-merged-metadata", None, "the metadata of the merged checkpoint were edited",
          lambda p: p.update({"": p[""].replace(b'"small"', b'"SMALL"')}))
    files("u14-merged-space", None, "a space more in the header",
          lambda p: p.update({"": bytes([p[""][0] + 1]) + p[""][1:head] + b" " + p[""][head:]}))
    files("u15-merged-rest", None, "a value that the merge left alone was changed", change(head + 2))
    files("u15-merged-value", None, "a value of a subtracted tensor was changed", change(head + 5 + 8))
    files("u15-merged-replaced", None, "a value of a replaced tensor was changed", change(-1 % len(m.files[0].merged)))
    files("u15-merged-is-base", "U15 U14", "the checkpoint before the merge, with the header of the merged one",
          lambda p: p.update({"": m.files[0].after + m.files[0].base[len(m.files[0].before):]}))
    two = merges.two()
    files("u15-other-file", None, "the file that the merge left alone was changed",
          change(-1 % len(two.files[1].merged), two.files[1].name), two)
    bad("u14-file-unknown", record(two, edit=lambda d: d["files"].pop(1) and d["tensors"][1].update(file=1),
                                   attached=lambda a: {"headers/1": a["headers/2"], "undo.json": a["undo.json"]}),
        "a file of the checkpoint that the record does not know", put(two))
    put_edit("u15-rest", "another sum of a piece", rest(lambda r: [r[0] ^ 1]))
    put_edit("u15-rest-negative", "a sum less 2^32", rest(lambda r: [r[0] - 2**32]), "U15 U3 U13")
    put_edit("u15-rest-33-bits", "a sum and 2^32", rest(lambda r: [r[0] + 2**32]), "U15 U3 U13")

    def block(name, comment, change, i=0, version=1):
        bad(name, record(m, version, blocks={i: change}), comment, at)
    block("u15-after", "another sum of a block", lambda bs: setattr(bs[0], "after", bs[0].after ^ 2**31))
    block("u15-after-replaced", "another sum of a block of the replaced tensor", lambda bs: setattr(bs[0], "after", 0), 1)
    block("u16-before", "another digest of a block", lambda bs: setattr(bs[0], "before", flip(bs[0].before, 31)))
    block("u16-before-replaced", "zeros for the digest of a block of the replaced tensor", lambda bs: setattr(bs[0], "before", bytes(32)), 1)
    block("u15-version-2-after", "another sum of a block", lambda bs: setattr(bs[0], "after", bs[0].after ^ 2**31), version=2)
    block("u16-version-2-before", "another sum of a block", lambda bs: setattr(bs[0], "before", flip(bs[0].before, 3)), version=2)
    block("u16-version-2-crc-32", "the CRC-32 of a block in place of its CRC-32C",
          lambda bs: setattr(bs[0], "before", zlib.crc32(m.changed[0][1].base).to_bytes(4, "little")), version=2)
    block("u16-version-2-residual", "another residual", lambda bs: bs[0].escapes.__setitem__(0, bs[0].escapes[0] ^ 2), version=2)
    block("u16-residual", "another residual", lambda bs: bs[0].escapes.__setitem__(0, bs[0].escapes[0] ^ 2))
    block("u16-no-residuals", "no residuals", lambda bs: bs[0].__dict__.update(marks=[], sizes=[], escapes=[]))
    block("u16-skip", "residuals one element later", lambda bs: bs[0].marks.__setitem__(0, bs[0].marks[0] + 1))
    block("u16-planes-exchanged", "a planar block, least significant bytes first", lambda bs: bs[0].planar() or
          setattr(bs[0], "sizes", [x for p in (3, 2, 1, 0) for x in bs[0].sizes[6 * p:6 * p + 6]]))
    put_edit("u16-same", "a subtracted tensor is to be predicted by `same`", lambda d: d["tensors"][0].update(predict="same", terms=[]))
