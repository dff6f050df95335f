#!/usr/bin/env python3
"""Takes a merge back by UNDO.md 2 alone: MERGED, ADAPTER... and the record of the merge give the checkpoint before it, after U1 to U18
hold. MERGED is a safetensors file or a directory of them, an adapter a PEFT directory with plain LoRA of linear layers.
Predictions are integers of any length, so nothing is rounded twice. A model to read next to the text: all files are in memory."""
import argparse, json, math, os, re, shutil, struct, sys, zlib
from itertools import product
from operator import mul
from reader import BITS, Invalid, attempt, canonical, need, read, sha

FLOATS = {"BF16": (8, 7), "F16": (5, 10), "F32": (8, 23), "F64": (11, 52)}  # bits of exponent and fraction
PIECE, ENTRY, PLANAR, WORD = 2**26, {1: struct.Struct("<4I32s"), 2: struct.Struct("<4I4s")}, 2**32 - 1, {8: "B", 16: "H", 32: "I", 64: "Q"}

def words(b, bits): return [*struct.unpack(f"<{len(b) * 8 // bits}{WORD[bits]}", b)]
def elements(t): return math.prod(t["shape"])
def blocks(t): return range(0, elements(t), t["block"])  # where they begin
def identity(header): return {"bytes": len(header), "sha256": sha(header)}
def divided(x, n):  # n bits of x, least significant first, leave this remainder by the polynomial of CRC-32C
    for _ in range(n): x = x >> 1 ^ (0x82F63B78 if x & 1 else 0)
    return x
OF_BYTE = [divided(x, 8) for x in range(256)]
def crc32c(b):
    crc = 2**32 - 1
    for x in b: crc = crc >> 8 ^ OF_BYTE[crc & 255 ^ x]
    return (crc ^ 2**32 - 1).to_bytes(4, "little")
def digest(s): return re.fullmatch("[0-9a-f]{64}", s)

TABLES = {record: dict(member.split(" ") for member in members.split(", ")) for record, members in {
    "undo": "undo integer, tool text, reading {text}, adapters [adapter], files [file], tensors [tensor]",
    "adapter": "name text, content text, weight number", "file": "name text, before header, after header, rest [integer]",
    "header": "bytes integer, sha256 text", "term": "adapter integer, module text, scale number, transposed boolean",
    "side": "name text, before header, after header",
    "tensor": "name text, file integer, dtype text, shape [integer], block integer, predict text, terms [term]"}.items()}
def typed(v, kind, at):  # U3: v is of a table or type, with all members and no others
    def fits(ok): need(ok, "U3", f"{at} is {str(v)[:100]!r}, due is {kind}")
    if kind[0] == "[": return fits(isinstance(v, list)) or [typed(x, kind[1:-1], f"{at}[{i}]") for i, x in enumerate(v)]
    if kind == "{text}": return fits(isinstance(v, dict) and all(isinstance(x, str) for x in v.values()))
    types = {"integer": (int,), "number": (int, float), "text": (str,), "boolean": (bool,)}
    fits(type(v) in types[kind] if kind in types else isinstance(v, dict) and v.keys() == TABLES[kind].keys())
    for k, t in TABLES.get(kind, {}).items(): typed(v[k], t, f"{at}.{k}")
    fits(kind != "number" or abs(v) <= sys.float_info.max)
def describe(record):  # sections 2 and 3: the description, the streams by name, the attachments by name
    try: m, parts, _, _ = read(record)
    except Invalid as e: need(False, "U1", e)
    need([(a["method"], a["layers"]) for a in m["adapters"]] == [("other:undo", [])], "U1", "not one adapter of other:undo without layers")
    need(all(b["action"] == "opaque" for b in m["adapters"][0]["beside"]), "U1", m["adapters"][0]["beside"])
    files = {x["name"]: part for x, part in zip(m["attachments"], parts[len(m["tensors"]):])}
    text = files.get("undo.json")
    need(text is not None, "U3", "no undo.json"), need(len(text) <= 2**26, "U9", f"{len(text)} bytes")
    def once(pairs): return need(len(dict(pairs)) == len(pairs), "U3", "a member twice") or dict(pairs)
    d = attempt("U3", lambda: json.loads(text.decode(), object_pairs_hook=once, parse_constant=lambda name: need(False, "U3", name)))
    need(isinstance(d, dict) and type(d.get("undo")) is int, "U3", "no object with a version"), need(d["undo"] in ENTRY, "U2", d["undo"])
    side = d.pop("side", []) if d["undo"] > 1 else []
    typed(d, "undo", "undo.json"), typed(side, "[side]", "undo.json.side")
    need(d["adapters"] and all(digest(a["content"]) for a in d["adapters"]), "U4", d["adapters"])
    need(len({f["name"] for f in d["files"]}) == len(d["files"]), "U5", "a name twice")
    for i, f in enumerate(d["files"]):
        need(digest(f["before"]["sha256"]) and digest(f["after"]["sha256"]), "U5", f)
        need(f["before"] in (f["after"], identity(files.get(f"headers/{i}", b""))), "U5", f"headers/{i} is not what file {i} had before")
    need(len({s["name"] for s in side}) == len(side), "U17", "a name twice")
    for i, s in enumerate(side):
        need(all(digest(h["sha256"]) and h["bytes"] <= 2**26 for h in (s["before"], s["after"])), "U17", s)
        need(f"side/{i}" in files and identity(files[f"side/{i}"]) == s["before"], "U17", f"side/{i} is not what {s['name']} was before")
    d["side"] = side
    need(len({t["name"] for t in d["tensors"]}) == len(d["tensors"]), "U6", "a name twice")
    streams = {t["name"]: (t, part) for t, part in zip(m["tensors"], parts)}
    need({*streams} == {str(i) for i in range(len(d["tensors"]))}, "U6", f"{len(d['tensors'])} tensors, streams {[*streams]}")
    for t in d["tensors"]:
        need(0 <= t["file"] < len(d["files"]), "U6", t["file"]), need(all(n >= 0 for n in t["shape"]), "U3", t["shape"])
        need(BITS.get(t["dtype"]) in WORD and elements(t) * BITS[t["dtype"]] < 2**65, "U7", f"{t['dtype']} {t['shape']}")
        need(t["block"] >= max(1, min(2**22 / BITS[t["dtype"]], elements(t))), "U8", f"blocks of {t['block']} elements")
        need({"subtract": t["terms"], "same": not t["terms"]}.get(t["predict"]), "U10", f"{t['predict']}, {len(t['terms'])} terms")
        need(all(0 <= x["adapter"] < len(d["adapters"]) for x in t["terms"]), "U10", t["terms"])
    return d, streams, files

def entries(version, t, record, stream):  # section 4: (marks, sizes, escapes, after, before, offset) of each block
    bits, n, entry = BITS[t["dtype"]], len(blocks(t)), ENTRY[version]
    need(record["dtype"] == "U8" and len(record["shape"]) == 1, "U11", record), need(len(stream) >= entry.size * n, "U11", "no room for the table")
    out, pos = [], 0
    for e, start in zip(entry.iter_unpack(stream[len(stream) - entry.size * n:]), blocks(t)):
        length = e[1] + e[2] + (e[0] if e[0] != PLANAR else 0)
        need(length <= min(t["block"], elements(t) - start) * bits // 8, "U11", f"a payload of {length} bytes")
        out, pos = [*out, (*e, pos)], pos + length
    need(pos + entry.size * n == len(stream), "U11", f"{len(stream)} bytes, due are {pos + entry.size * n}")
    return out

def residuals(stream, entry, n, bits):  # (element, z) of each element of the block whose z is not zero
    marks, sizes, escapes, _, _, pos = entry
    if marks == PLANAR:
        need(sizes == n * bits // 8 and escapes == 0, "U12", f"a planar payload of {sizes} and {escapes} bytes for {n} elements")
        yield from enumerate(int.from_bytes(z, "big") for z in zip(*(stream[pos + p * n:pos + p * n + n] for p in range(bits // 8))))
        return
    at, size, escape, end = 0, pos + marks, pos + marks + sizes, pos + marks + sizes + escapes
    for m in stream[pos:pos + marks]:
        need(m < 247, "U12", f"mark {m}")
        at += m % 80 if m < 240 else 80 * 4**(m - 240)
        need(at <= n - (m < 240), "U12", f"element {at} of {n}")
        if m >= 240: continue
        z = m // 80 + 1
        if z == 3: z, size = need(size < pos + marks + sizes, "U12", "no size left") or stream[size] + 3, size + 1
        if z == 258:
            z, escape = int.from_bytes(stream[escape:escape + bits // 8], "little"), escape + bits // 8
            need(escape <= end, "U12", "no escape left")
        at = (yield at, z) or at + 1
    need(size == pos + marks + sizes and escape == end, "U12", "sizes or escapes left over")

def step(x, z, bits):  # what lies d values from x
    top, full = 1 << bits - 1, (1 << bits) - 1
    o = (x ^ (full if x & top else top)) + (-(z + 1 >> 1) if z & 1 else z >> 1) & full
    return o ^ (top if o & top else full)

def smallest(dtype): return 2 - (1 << FLOATS[dtype][0] - 1) - FLOATS[dtype][1]  # the exponent of the smallest subnormal number
def integer(x, dtype):  # the float of these bits in units of the smallest subnormal number
    e, f = FLOATS[dtype]
    field, m = x >> f & (1 << e) - 1, x & (1 << f) - 1
    need(field < (1 << e) - 1, "factors", "not finite: such a merge is recorded as `same` only")
    return (-1 if x >> e + f else 1) * ((m | (field > 0) << f) << max(field - 1, 0))
def matrix(dtype, shape, b):  # the rows, as integers without common zeros at the end, and their exponent
    values = [integer(x, dtype) for x in words(b, BITS[dtype])]
    zeros = min(((v & -v).bit_length() - 1 for v in values if v), default=0)
    return [[v >> zeros for v in values[i:i + shape[1]]] for i in range(0, len(values), shape[1])], smallest(dtype) + zeros
def rounded(v, dtype, exponent):  # the bits of RN(v · 2^exponent), where the exponent is below that of the smallest number
    (e, f), a = FLOATS[dtype], abs(v)
    k = max(a.bit_length() - f - 1 + exponent - smallest(dtype), 0)  # the last digit of the result is 2^k times the smallest number
    drop = k + smallest(dtype) - exponent
    a = (a + (1 << drop - 1) - 1 + (a >> drop & 1)) >> drop
    return min((k << f) + a, (1 << e) - 1 << f) | (v < 0) << e + f

def predict(t, merged, terms):  # p of all elements; terms are (scale, (A, B), transposed), A and B as (dtype, shape, bytes)
    x, dtype, sums = words(merged, BITS[t["dtype"]]), t["dtype"], []
    if t["predict"] == "same": return x
    need(len(t["shape"]) == 2 and dtype in FLOATS, "terms", f"{dtype} {t['shape']}: linear layers only")
    for scale, (a, b), transposed in terms:
        (s, den), (a, ea), (b, eb) = float(scale).as_integer_ratio(), matrix(*a), matrix(*b)
        left, right = ([*zip(*a)], b) if transposed else (b, [*zip(*a)])
        need([len(left), len(right)] == t["shape"], "terms", f"{len(left)}×{len(right)} for {t['shape']}")
        sums.append((s, ea + eb + 1 - den.bit_length(), left, right))
    low, inf = min([smallest(dtype) - 1, *(s[1] for s in sums)]), (1 << FLOATS[dtype][0]) - 1 << FLOATS[dtype][1]
    sums = [(s << exponent - low, left, right) for s, exponent, left, right in sums]
    for at, (i, j) in enumerate(product(*map(range, t["shape"]))):
        sigma = sum(s * sum(map(mul, left[i], right[j])) for s, left, right in sums)
        if sigma and x[at] & inf != inf: x[at] = rounded((integer(x[at], dtype) << smallest(dtype) - low) - sigma, dtype, low)
    return x

def header(b):  # of a safetensors file: its bytes, and {name: entry}
    raw = b[:8 + int.from_bytes(b[:8], "little")]
    return raw, attempt("U14", lambda: json.loads(raw[8:].decode()))

def pieces(size, changed):  # of the data between the changed tensors
    pos = 0
    for begin, end in [*sorted(changed), (size, size)]:
        yield from ((p, min(p + PIECE, begin)) for p in range(pos, begin, PIECE))
        pos = end

def grown(a, b): return a["dtype"] == b["dtype"] and (a["shape"] == b["shape"] or a["shape"][1:] == b["shape"][1:] and bool(a["shape"]) and a["shape"][:1] <= b["shape"][:1])

def unmerge(merged, adapters, record, beside={}):  # sections 5 and 6: {file name: bytes} before the merge; beside has the files beside the weights
    d, streams, attached = describe(record)        # of which the record has some; adapters are {content id: {module: (A, B)}}
    out, work, names = {}, [], [*merged] if len(merged) == len(d["files"]) == 1 else [f["name"] for f in d["files"]]
    need(all(a["content"] in adapters for a in d["adapters"]), "adapters", f"not those of the record: {[*adapters]}")
    need({*names} == {*merged}, "U14", f"files {[*merged]}, the record has {names}")
    for i, (f, name) in enumerate(zip(d["files"], names)):
        raw, h = header(merged[name])
        need(identity(raw) == f["after"], "U14", f"the header of {name} is not what the merge has written")
        data, changed = bytearray(merged[name][len(raw):]), []
        for k, t in [(k, t) for k, t in enumerate(d["tensors"]) if t["file"] == i]:
            at = h.get(t["name"], {"dtype": "", "shape": []})
            need(grown(t, at) if d["undo"] > 1 else (at["dtype"], at["shape"]) == (t["dtype"], t["shape"]), "U14", f"{t['name']} is not in the header as the record has it")
            begin = at["data_offsets"][0]
            changed.append((begin, begin + elements(t) * BITS[t["dtype"]] // 8)), work.append((name, t, str(k), *changed[-1]))
        before = attached[f"headers/{i}"] if f["before"] != f["after"] else raw
        was = attempt("U5", lambda: header(before)[1])
        if d["undo"] > 1:
            need(all(n in h and grown(t, h[n]) for n, t in was.items() if n != "__metadata__"), "U17", f"{name}: the header before has other tensors")
            same = all(was.get(t["name"], {}).get(k) == t[k] for t in d["tensors"] if t["file"] == i for k in ("dtype", "shape"))
            need(same, "U17", f"{name}: the header before lacks a tensor of the record, or has another shape of it")
        ranges = [*pieces(len(data), changed)]
        need(len(ranges) == len(f["rest"]), "U13", f"{len(f['rest'])} sums for {len(ranges)} pieces")
        for (p, end), crc in zip(ranges, f["rest"]): need(zlib.crc32(data[p:end]) == crc, "U15", f"{name}, data from {p} to {end}")
        out[name] = before, data, [(h[n]["data_offsets"][0], *t["data_offsets"]) for n, t in was.items() if n != "__metadata__"]
    for s in d["side"]: need(s["name"] in beside and identity(beside[s["name"]]) == s["after"], "U18", f"{s['name']} is not what the merge has written")
    for name, t, k, begin, end in work:
        data, bits, size, table = out[name][1], BITS[t["dtype"]], BITS[t["dtype"]] // 8, entries(d["undo"], t, *streams[k])
        for e, start in zip(table, blocks(t)):
            now = data[begin + start * size:min(begin + (start + t["block"]) * size, end)]
            need(zlib.crc32(now) == e[3], "U15", f"{t['name']}, block at element {start}")
        terms = [(x["scale"], adapters[d["adapters"][x["adapter"]]["content"]].get(x["module"]), x["transposed"]) for x in t["terms"]]
        p = need(all(ab for _, ab, _ in terms), "terms", f"{t['terms']}: no such layer") or predict(t, data[begin:end], terms)
        for e, start in zip(table, blocks(t)):
            block = p[start:start + t["block"]]
            for j, z in residuals(streams[k][1], e, len(block), bits): block[j] = step(block[j], z, bits)
            data[begin + start * size:begin + (start + len(block)) * size] = b = struct.pack(f"<{len(block)}{WORD[bits]}", *block)
            need((bytes.fromhex(sha(b)) if d["undo"] == 1 else crc32c(b)) == e[4], "U16", f"{t['name']}, block at element {start}")
    def cut(data, places):  # the data of the tensors of before: from where they are now to where they were
        b = bytearray(max([end for _, _, end in places], default=0))
        for now, begin, end in places: b[begin:end] = data[now:now + end - begin]
        return b
    return {name: before + cut(data, places) for name, (before, data, places) in out.items()} | \
        {s["name"]: attached[f"side/{i}"] for i, s in enumerate(d["side"])}

def peft(path):  # content id (FORMAT.md, section 13) and {module: (A, B)} of plain LoRA; what is under other keys replaces tensors
    c, b = (open(os.path.join(path, name), "rb").read() for name in ("adapter_config.json", "adapter_model.safetensors"))
    c, (raw, h), layers, beside = json.loads(c), header(b), {}, []
    need(not any(c.get(k) for k in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias")), "adapter", f"{path}: not plain LoRA")
    def tensor(name, dtype, shape, data): return {"dtype": dtype, "name": name, "sha256": sha(data), "shape": shape}
    for key, e in sorted([x for x in h.items() if x[0] != "__metadata__"]):
        m = re.fullmatch(r"base_model\.model\.(.+?)(?:\.lora_([AB])\.weight)?", key)
        x = need(m, "adapter", f"{path}: {key}?") or (key, e["dtype"], e["shape"], b[len(raw):][slice(*e["data_offsets"])])
        if m[2]: layers.setdefault(m[1], {})[m[2]] = x
        else: beside.append({"action": "replace", "target": m[1].replace(".base_layer.", "."), "tensor": tensor(*x)})
    alpha = int(c["lora_alpha"]) if c["lora_alpha"] % 1 == 0 else struct.pack(">d", c["lora_alpha"]).hex()
    layered = [{"alpha": alpha, "kind": "linear", "module": module, "rank": ab["A"][2][0], "roles": {k: tensor(*x) for k, x in ab.items()},
                "scaling": "alpha/sqrt(r)" if c.get("use_rslora") else "alpha/r"} for module, ab in sorted(layers.items())]
    adapter = {"beside": beside, "layers": layered, "method": "lora", "name": "", "requires": []}
    return sha(canonical({"adapters": [adapter], "content": 1})), {module: (ab["A"][1:], ab["B"][1:]) for module, ab in layers.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("merged"), p.add_argument("adapter", nargs="*"), p.add_argument("--undo", required=True), p.add_argument("-o", required=True)
    args = p.parse_args()
    single = os.path.isfile(args.merged)
    weights = [""] if single else [x for x in os.listdir(args.merged) if x.endswith(".safetensors")]
    merged = {x: open(os.path.join(args.merged, x) if x else args.merged, "rb").read() for x in weights}
    others = [] if single else [x for x in os.listdir(args.merged) if x.endswith(".json")]
    beside = {x: open(os.path.join(args.merged, x), "rb").read() for x in others}
    out = unmerge(merged, dict(map(peft, args.adapter)), open(args.undo, "rb").read(), beside)
    if not single: shutil.copytree(args.merged, args.o, ignore=lambda *_: {*out})
    for name, b in out.items():
        with open(os.path.join(args.o, name) if name else args.o, "xb") as f: f.write(b)
if __name__ == "__main__":
    try: main()
    except Invalid as e: sys.exit(str(e))
