#!/usr/bin/env python3
"""Reads a .lora file by FORMAT.md and METHODS.md alone: checks R1 to R66, R71 to R73, R77 and R133 to R136, prints both ids and every
tensor. With --extract DIR (not there yet) also R67 to R69: writes attachments and restored files. A model to read next to the text: all of the file is in memory."""
import argparse, hashlib, json, math, os, re, struct, sys, zstandard
from itertools import accumulate, groupby, pairwise

HEAD, DIGESTS, SEEK, FRAME, END = map(bytes.fromhex, ("5A2A4D18", "5B2A4D18", "5E2A4D18", "28B52FFD", "B1EA928F"))
BITS = {dtype: bits for bits, dtypes in {4: "F4", 6: "F6_E2M3 F6_E3M2", 16: "I16 U16 F16 BF16", 32: "I32 U32 F32",
        8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E5M2FNUZ F8_E4M3FNUZ", 64: "I64 U64 C64 F64"}.items() for dtype in dtypes.split()}
LIMITS = {"manifest": 2**24, "total": 2**36}  # section 16, the defaults

class Invalid(Exception): pass
def need(ok, rule, text):
    if not ok: raise Invalid(f"{rule}: {str(text)[:400]}")
def attempt(rule, f, *args, **options):
    try: return f(*args, **options)
    except (ValueError, TypeError, RecursionError, zstandard.ZstdError) as e: raise Invalid(f"{rule}: {e}")
def sha(b): return hashlib.sha256(b).hexdigest()
def canonical(v): return json.dumps(v, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8", "surrogatepass")

def data_frame(b, size):  # section 5: the frame that fills b; the stock decoder gets block after block, behind a header without a size
    need(b[:4] == FRAME, "R10", f"{b[:4].hex()} is no frame"), need(b[4:5] and b[4] & 0x3F == 0x24, "R11", f"descriptor {b[4:5].hex()}")
    pos, out, last, most = 5 + (1 << (b[4] >> 6)), [], 0, min(size, 2**17)
    declared = int.from_bytes(b[5:pos], "little") + 256 * (b[4] >> 6 == 1)
    need(pos <= len(b) and declared == size, "R12", f"content size {declared}, not {size}")
    need(len(b) <= size + size // 128 + 64, "R16", f"{len(b)} stored bytes for {size}")
    stock = zstandard.ZstdDecompressor().decompressobj()
    stock.decompress(FRAME + bytes([0x04, max(0, (size - 1).bit_length() - 10) << 3]))
    while not last:
        block = int.from_bytes(b[pos:pos + 3], "little")
        last, kind, length = block & 1, block >> 1 & 3, block >> 3
        end = pos + 3 + (1 if kind == 1 else length)
        need(kind < 3 and 2 * (kind == 2) <= length <= most, "R13", f"block type {kind}, {length} bytes"), need(end + 4 <= len(b), "R15", "no end")
        out.append(attempt("R13", stock.decompress, b[pos:end]))
        size, pos = size - len(out[-1]), end
        need(len(out[-1]) <= most, "R13", f"a block of {len(out[-1])} bytes")
        need(size == 0 if last else size >= 0, "R14", f"content size {declared}, {size} left after a block")
    need(pos + 4 == len(b), "R15", f"{len(b) - pos - 4} bytes too many"), attempt("R17", stock.decompress, b[pos:])
    return b"".join(out)

def parse(m):  # section 6: canonical JSON; what the standard parser forgives is caught by writing it again
    def members(pairs): return need(all(a[0] < b[0] for a, b in pairwise(pairs)), "R21", [k for k, _ in pairs]) or dict(pairs)
    def number(s): return need(re.fullmatch("0|-?[1-9][0-9]*", s), "R23", s) or need(len(s) < 18 and abs(int(s)) < 2**53, "R24", s) or int(s)
    text = attempt("R18", m.decode)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    need(text[:1] != "\ufeff", "R18", "byte order mark")
    need(max(accumulate(1 if c in "[{" else -1 for c in re.sub(r"[^][}{]", "", bare)), default=0) <= 16, "R25", "nested too deep")
    v = attempt("R19", json.loads, text, object_pairs_hook=members, parse_int=number, parse_float=number)
    need(isinstance(v, dict) and not re.search("[A-Za-z]", bare), "R19", "not an object, or with true, null, NaN")
    need(canonical(v) == m, *("R20", "white space") if re.search(r"\s", bare) else ("R22", "a character that is not in its only form"))
    return v

DIMENSIONS = "inputs", "outputs", "first", "second"  # version 1.1
# METHODS.md, section 2, version 1.2: the roles of each row of the table, in each way to store the matrices, with their shapes. A small
# letter is one dimension, a capital the product of the rest, k the rest, ? the rest, if any.
METHODS = {kind: [dict(role.split(":") for role in way.split()) for way in ways] for kind, ways in {
    "hadamard": ["w1_a:mr w1_b:rN w2_a:mr w2_b:rN", "w1_a:rm w1_b:rn t1:rrk w2_a:rm w2_b:rn t2:rrk"],
    "kronecker": [f"{left} {right}" for left in ("w1:oi", "w1_a:or w1_b:ri")
                  for right in ("w2:pj?", "w2_a:pr w2_b:rJ", "w2_a:rp t2:rrk w2_b:rj")],
    "output-scaling": ["vector:M"], "input-scaling": ["vector:N"]}.items()}
OF_METHODS = {role for ways in METHODS.values() for way in ways for role in way} | {"A", "B", "bias", "core"}
TABLES = {record: dict(member.split(" ") for member in members.split(", ")) for record, members in {
    "manifest": "adapters [adapter], attachments [attachment], metadata {text}, provenance provenance, tensors [tensor]",
    "provenance": "source text, tool text, version text", "base": "fingerprints {digest}, name text, revision text",
    "adapter": "base base, beside [beside], dialect name?, layers [layer], method lora|dora|other:, name name?, orientation |mxn|nxm, "
               "requires [require]",
    "require": "feature name, where name?", "attachment": "name name, sha256 digest?, size count",
    "layer": "alpha real, kind linear|embedding|conv|expert|other" + "".join(f"|expert-{k}" for k in DIMENSIONS) + "|" + "|".join(METHODS) + ", module name, rank count, roles {count}, scale real, "
             "scaling alpha/r|alpha/sqrt(r)|fixed",
    "beside": "action replace|rows|opaque|difference, rows [count], target name, tensor count",
    "tensor": "coding raw|planes, dtype " + "|".join(BITS) + ", name name, shape [count]"}.items()}
ABSENT = {"fixed": ["alpha"], "rows": [], "replace": ["rows"], "difference": ["rows"], "opaque": ["rows", "target"]}  # by scaling or action, otherwise scale
def check(v, kind, at, minor):  # section 7: v by a table or type, without the members that are to be ignored
    def fits(ok, rule): need(ok, rule, f"{at} is {str(v)[:200]!r}, due is {kind}")
    if kind[-1] == "?": return v if v == "" else check(v, kind[:-1], at, minor)
    if kind[0] == "[": return fits(isinstance(v, list), "R28") or [check(x, kind[1:-1], f"{at}[{i}]", minor) for i, x in enumerate(v)]
    if kind[0] == "{" or kind in TABLES: fits(isinstance(v, dict), "R28")
    if kind[0] == "{": return {check(k, "name", f"key of {at}", minor): check(x, kind[1:-1], at, minor) for k, x in v.items()}
    if kind in TABLES:
        decides = {"layer": "scaling", "beside": "action"}.get(kind)
        if decides in v: check(v[decides], TABLES[kind][decides], f"{at}.{decides}", minor)
        absent = ABSENT.get(v.get(decides), ["scale"])
        table = {k: t for k, t in TABLES[kind].items() if k not in absent}
        need(v.keys() >= table.keys(), "R26", f"{at} lacks {table.keys() - v.keys()}")
        need(minor > 1 or v.keys() <= table.keys(), "R27", f"{at} has {v.keys() - table.keys()}")
        return {k: check(v[k], t, f"{at}.{k}", minor) for k, t in table.items()}
    if kind in ("count", "real") and isinstance(v, int): return fits(v >= 0 or kind == "real", "R28") or v
    fits(isinstance(v, str) and kind != "count", "R28")
    if kind == "real":
        x = struct.unpack(">d", bytes.fromhex(v))[0] if re.fullmatch("[0-9a-f]{16}", v) else math.nan
        fits(math.isfinite(x) and not (x == int(x) and abs(x) < 2**53), "R30")
    if kind == "digest": fits(re.fullmatch("[0-9a-f]{64}", v), "R28")
    if kind[-6:] == v[:6] == "other:": check(v[6:], "name", at, minor)
    elif "|" in kind: fits(v in kind.split("|"), "R29")
    if kind == "name": fits(v and not re.search("[\0-\x1f\x7f]", v), "R31"), fits(len(v.encode()) <= 1024, "R32")
    return v
def raw_length(t): return math.prod(t["shape"]) * BITS[t["dtype"]] // 8
def references(a): return [i for l in a["layers"] for i in l["roles"].values()] + [b["tensor"] for b in a["beside"]]
def ascending(records, *keys): need(all(a < b for a, b in pairwise([r[k] for k in keys] for r in records)), "R33", f"not by {keys}")
def shaped(shape, letters, known):  # METHODS.md, section 2: whether the shape is that of the letters, with one number for each
    rest = letters[-1] if letters[-1] in "k?" or letters[-1].isupper() else ""
    first = letters.removesuffix(rest)
    more = shape[len(first):]
    pairs = [*zip(first, shape)] + ([(rest, math.prod(more) if rest.isupper() else more)] if rest not in ("", "?") else [])
    return len(shape) >= len(first) and 0 not in shape and (rest == "?" or bool(rest) == bool(more)) \
        and all(known.setdefault(letter, size) == size for letter, size in pairs)
def method(kind, shape, r):  # METHODS.md, section 2
    if kind in METHODS:
        mine = shape.keys() & OF_METHODS
        way = next((w for w in METHODS[kind] if w.keys() == mine), None)
        known = {"r": r}
        need(way, "R133", f"{kind} has the roles {sorted(shape)}")
        need(all([shaped(shape[role], letters, known) for role, letters in way.items()]), "R134", f"rank {r}, shapes {shape}")
        need(r == 1 or any("r" in letters for letters in way.values()), "R134", f"rank {r}, and no r in {shape}")
    if kind == "conv" and "core" in shape:
        a, b, known = shape["A"], shape["B"], {"r": r}
        need(len(a) == len(b) == len(shape["core"]) and {*a[2:], *b[2:]} == {1} and shaped(a[:2], "rn", known)
             and shaped(b[:2], "mr", known) and shaped(shape["core"], "rrk", known), "R135", f"rank {r}, shapes {shape}")
    need(not {"magnitude", "input_magnitude"} <= shape.keys(), "R136", shape)
def meaning(m, shared):  # section 7: the rules that tie records to each other
    tensors, attachments, adapters = m["tensors"], m["attachments"], m["adapters"]
    need(len(tensors) <= 2**20, "R49", f"{len(tensors)} tensors"), need(adapters, "R34", "no adapter")
    for t in tensors:
        need(t["name"] != "__metadata__", "R48", t), need(len(t["shape"]) <= 8, "R50", t)
        need(math.prod(filter(None, t["shape"])) <= 2**48, "R51", t), need(math.prod(t["shape"]) * BITS[t["dtype"]] % 8 == 0, "R52", t)
        need(t["coding"] == "raw" or t["dtype"] in ("F16", "BF16", "F32", "F64"), "R53", t)
    for x in attachments: need(not re.search(r"(^|/)\.?\.?(/|$)|[\\:]", x["name"]), "R54", x)
    ascending(adapters, "name"), ascending(attachments, "name")
    for a in adapters:
        ascending(a["layers"], "module"), ascending(a["beside"], "tensor"), ascending(a["requires"], "feature", "where")
        need(a["name"] or len(adapters) == 1, "R35", a), need(a["method"] == "lora" or a["requires"], "R36", a)
        need(all(i < len(tensors) for i in references(a)), "R45", references(a))
        need(len({tensors[i]["name"] for i in references(a)}) == len(set(references(a))), "R47", references(a))
        for l in a["layers"]:
            shape, r = {role: tensors[i]["shape"] for role, i in l["roles"].items()}, l["rank"]
            need(1 <= r <= 2**16, "R37", l), need(l["kind"] in ("other", *METHODS) or {"A", "B"} <= shape.keys(), "R38", l)
            method(l["kind"], shape, r)
            if l["kind"][7:] in DIMENSIONS:
                sa, sb = shape["A"], shape["B"]
                need(len(sa) == len(sb) == 2 and sa[0] == sb[1] and sa[0] > 0 and sa[0] % r == 0, "R71", f"rank {r}, shapes {shape}")
                need(sa[1] == sb[0], "R72", shape), need(len(shape) == 2, "R73", shape)
            if l["kind"] not in ("linear", "embedding"): continue
            need(len(shape["A"]) == 2 and shape["A"][0] == r, "R39", f"rank {r}, shapes {shape}")
            need(len(shape["B"]) == 2 and shape["B"][1] == r, "R40", f"rank {r}, shapes {shape}")
            need(math.prod(shape.get("bias", shape["B"][:1])) == shape["B"][0], "R41", shape)
            need(math.prod(shape.get("magnitude", shape["B"][:1])) in (shape["B"][0], shape["A"][1]), "R42", shape)
        for rows, shape in [(b["rows"], tensors[b["tensor"]]["shape"]) for b in a["beside"] if "rows" in b]:
            need(len(set(rows)) == len(rows), "R43", rows), need(shape[:1] == [len(rows)], "R44", f"{shape} for rows {rows}")
        need(len(set(references(a))) == len(references(a)), "R46", f"{a['name']} refers to a tensor twice")
    refs = [i for a in adapters for i in references(a)]
    need({*refs} == {*range(len(tensors))} and (shared or len(refs) == len(tensors)), "R46", "not one reference to each tensor")
    need(not shared or len(refs) > len(tensors), "R77", "no tensor is shared")

def decode(coded, b):  # section 9: planes of elements of b bytes; the whole chunk is rotated as one large number
    k, raw = len(coded) // b, bytearray(len(coded))
    for p in range(b): raw[b - 1 - p::b] = coded[p * k:(p + 1) * k]
    x, low = int.from_bytes(raw, "little"), int.from_bytes((b"\1" + bytes(b - 1)) * k, "little")
    return ((x & ~low) >> 1 | (x & low) << 8 * b - 1).to_bytes(len(raw), "little")
def head(b):  # sections 4 and 8: the manifest, the chunks as (dtype, coding, length), and the length of the head
    need(len(b) >= 16, "R1", f"{len(b)} bytes")
    need(b[:4] == HEAD and b[8:16] == b"\x89LRA\r\n\x1a\n", "R3", f"starts with {b[:16].hex()}"), need(len(b) >= 36, "R1", len(b))
    size, major, minor, critical, log2, reserved, length = struct.unpack_from("<I8xHHI4xB3sI", b, 4)
    need(major == 1, "R4", f"major {major}"), need(critical < 2, "R5", f"critical {critical:#x}")
    need(16 <= log2 <= 24, "R6", f"chunk_log2 {log2}"), need(reserved == b"\0\0\0", "R7", f"reserved bytes {reserved.hex()}")
    need(length <= min(2**26, LIMITS["manifest"]), "R9", f"a manifest of {length} bytes")
    need(28 <= size <= 28 + length + length // 128 + 64, "R8", f"size {size}"), need(8 + size <= len(b), "R1", "ends in the head")
    m = check(parse(data_frame(b[36:8 + size], length)), "manifest", "manifest", minor)
    meaning(m, critical)
    runs = [(*k, sum(map(raw_length, ts))) for k, ts in groupby(m["tensors"], key=lambda t: (t["dtype"], t["coding"]))]
    runs.append(("", "raw", sum(x["size"] for x in m["attachments"])))
    need(sum(r[2] for r in runs) <= min(2**48, LIMITS["total"]), "R56", runs), need(sum(-(-r[2] >> log2) for r in runs) <= 2**24, "R57", runs)
    return m, [(dtype, coding, min(n - off, 1 << log2)) for dtype, coding, n in runs for off in range(0, n, 1 << log2)], 8 + size

def read(b):  # sections 10, 11 and 13: the manifest, the raw bytes of each tensor and attachment, the content id, the file id
    m, chunks, front = head(b)
    c, lengths, raw = len(chunks), [*map(raw_length, m["tensors"]), *(x["size"] for x in m["attachments"])], b""
    pos, seek = front, len(b) - 33 - 8 * c
    need(seek >= front + 80 + 32 * c and b[-4:] == END, "R1", "no seek table at the end")
    d, s, sizes = b[seek - 80 - 32 * c:seek], b[seek:], struct.unpack(f"<{2 * c + 4}I", b[seek + 8:-9])
    need(s[:8] + s[-9:-5] == SEEK + struct.pack("<2I", 8 * c + 25, c + 2), "R63", s.hex()), need(s[-5] == 0, "R64", s[-5])
    need([*sizes[1::2]] == [0, *(n for _, _, n in chunks), 0], "R65", sizes[1::2])
    need((sizes[0], sizes[-2], sum(sizes[::2])) == (front, len(d), seek), "R66", f"{sizes[::2]}, seek table at {seek}")
    need(d[:8] == DIGESTS + struct.pack("<I", 72 + 32 * c), "R58", d[:8].hex())
    need(d[8:16] == struct.pack("<Q", sum(lengths)), "R59", d[8:16].hex()), need(d[16:48].hex() == sha(b[:front]), "R60", d[16:48].hex())
    for i, ((dtype, coding, n), size) in enumerate(zip(chunks, sizes[2::2])):
        coded = data_frame(b[pos:pos + size], n)
        raw += coded if coding == "raw" else decode(coded, BITS[dtype] // 8)
        need(d[80 + 32 * i:112 + 32 * i].hex() == sha(b[pos:pos + size]), "R61", f"chunk {i} is not what the digests say")
        pos += size
    parts = [raw[end - n:end] for n, end in zip(lengths, accumulate(lengths))]
    for x, part in zip(m["attachments"], parts[len(m["tensors"]):]):
        need(x["sha256"] in ("", sha(part)) or x["name"].endswith("source.safetensors.header"), "R55", f"{x}, SHA-256 is {sha(part)}")
    def tensor(i): return {k: m["tensors"][i][k] for k in ("dtype", "name", "shape")} | {"sha256": sha(parts[i])}
    content = sha(canonical({"adapters": [{k: a[k] for k in ("method", "name", "requires")} | {
        "beside": sorted((x | {"tensor": tensor(x["tensor"])} for x in a["beside"]), key=lambda x: x["tensor"]["name"]),
        "layers": [l | {"roles": {k: tensor(i) for k, i in l["roles"].items()}} for l in a["layers"]]} for a in m["adapters"]], "content": 1}))
    need(d[48:80].hex() == content, "R62", f"content {content}, the digests say {d[48:80].hex()}")
    return m, parts, content, sha(b[:front] + d + s)

def restore(b, tensors):  # section 12: the source file, from its header b and {name: ([dtype, shape], bytes)}
    def once(pairs): return need(len(dict(pairs)) == len(pairs), "R67", "a key twice") or dict(pairs)
    need(8 <= len(b) <= 100_000_008 and int.from_bytes(b[:8], "little") == len(b) - 8, "R67", "not as long as it says")
    need(b[8:9] == b"{", "R67", "does not begin with an object")
    h = attempt("R67", lambda: json.loads(b[8:].decode(), object_pairs_hook=once, parse_float=str, parse_constant=int))
    meta = next((m for m in [h.pop("__metadata__", None)] if m is not None), {}) if isinstance(h, dict) else 0
    need(isinstance(meta, dict) and all(isinstance(x, str) for x in meta.values()), "R67", "no object, or metadata other than strings")
    need(all(isinstance(e, dict) and sorted(e) == ["data_offsets", "dtype", "shape"] for e in h.values()), "R67", "members of an entry")
    need({k: canonical([e["dtype"], e["shape"]]) for k, e in h.items()} == {k: canonical(t) for k, (t, _) in tensors.items()}, "R68", [*h])
    order = attempt("R67", sorted, h, key=lambda k: (h[k]["data_offsets"], k))
    ends = [0, *accumulate(len(tensors[k][1]) for k in order)]
    need([json.dumps(h[k]["data_offsets"]) for k in order] == [json.dumps(p) for p in pairwise(ends)], "R67", "offsets with gaps or overlaps")
    return b + b"".join(tensors[k][1] for k in order)
def files(m, parts):  # the attachments by name, and for every header among them the source file that it restores
    out, header = {x["name"]: (x, part) for x, part in zip(m["attachments"], parts[len(m["tensors"]):])}, "source.safetensors.header"
    for a, prefix in [(a, a["name"] + "/" if len(m["adapters"]) > 1 else "") for a in m["adapters"]]:
        x, part = out.get(prefix + header, (None, None))
        tensors = {t["name"]: ([t["dtype"], t["shape"]], parts[i]) for i, t in enumerate(m["tensors"]) if i in references(a)}
        if x: out[prefix + "source.safetensors"] = x, restore(part, tensors)
        need(not x or x["sha256"] in ("", sha(out[prefix + "source.safetensors"][1])), "R69", x)
    return {name: data for name, (_, data) in out.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("file"), p.add_argument("--extract"), p.add_argument("--limit", action="append", default=[], metavar="NAME=BYTES")
    args = p.parse_args()
    LIMITS.update((k, int(n)) for k, n in (x.split("=") for x in args.limit))
    m, parts, content, file = read(open(args.file, "rb").read())
    print(f"content {content}\nfile {file}")
    for name, t, part in [(a["name"], m["tensors"][i], parts[i]) for a in m["adapters"] for i in sorted(references(a))]:
        print(f"tensor {name}/{t['name']} {t['dtype']} {canonical(t['shape']).decode()} {sha(part)}")
    if args.extract: os.mkdir(args.extract)
    for name, data in files(m, parts).items() if args.extract else ():
        path = os.path.join(args.extract, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as f: f.write(data)
        print(f"wrote {path} {len(data)} bytes {sha(data)}")
if __name__ == "__main__":
    try: main()
    except Invalid as e: sys.exit(str(e))
