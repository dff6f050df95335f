#!/usr/bin/env python3
"""Takes a merge back by UNDO.md 1 alone: MERGED, ADAPTER... and the record of the merge give the checkpoint before it, after U1 to U16
hold. MERGED is a safetensors file or a directory of them, an adapter a PEFT directory with plain LoRA of linear layers, or a .lora file.
Predictions are integers of any length, so nothing is rounded twice. A model to read next to the text: all files are in memory."""
import argparse, json, math, os, re, shutil, struct, sys, zlib
from operator import mul
from reader import BITS, Invalid, attempt, canonical, need, read, sha

FLOATS = {"BF16": (8, 7), "F16": (5, 10), "F32": (8, 23), "F64": (11, 52)}  # bits of exponent and fraction
WORD = {8: "B", 16: "H", 32: "I", 64: "Q"}
PIECE, ENTRY, PLANAR = 2**26, struct.Struct("<4I32s"), 2**32 - 1

def words(b, bits): return [*struct.unpack(f"<{len(b) * 8 // bits}{WORD[bits]}", b)]
def elements(t): return math.prod(t["shape"])
def blocks(t): return range(0, elements(t), t["block"])  # where they begin
def digest(s): return re.fullmatch("[0-9a-f]{64}", s)
def different(names, rule): need(len(set(names)) == len(names), rule, f"a name twice: {names}")

TABLES = {record: dict(member.split(" ") for member in members.split(", ")) for record, members in {
    "undo": "undo integer, tool text, adapters [adapter], files [file], tensors [tensor]",
    "adapter": "name text, content text, weight number", "file": "name text, before header, after header, rest [integer]",
    "header": "bytes integer, sha256 text", "term": "adapter integer, module text, scale number",
    "tensor": "name text, file integer, dtype text, shape [integer], block integer, predict text, terms [term]"}.items()}
def typed(v, kind, at):  # U3: v is of a table or type, with all members and no others
    def fits(ok): need(ok, "U3", f"{at} is {str(v)[:100]!r}, due is {kind}")
    if kind[0] == "[": return fits(isinstance(v, list)) or [typed(x, kind[1:-1], f"{at}[{i}]") for i, x in enumerate(v)]
    if kind in TABLES: fits(isinstance(v, dict) and v.keys() == TABLES[kind].keys())
    else: fits(type(v) in {"integer": (int,), "number": (int, float), "text": (str,)}[kind])
    for k, t in TABLES.get(kind, {}).items(): typed(v[k], t, f"{at}.{k}")
    fits(kind != "number" or abs(v) <= sys.float_info.max)

def describe(record):  # sections 2 and 3: the description, the streams by name, the attachments by name
    try: m, parts, _, _ = read(record)
    except Invalid as e: need(False, "U1", e)
    a = m["adapters"][0]
    need(len(m["adapters"]) == 1 and a["method"] == "other:undo" and not a["layers"], "U1", "not one adapter of other:undo without layers")
    need(all(b["action"] == "opaque" for b in a["beside"]), "U1", a["beside"])
    files = {x["name"]: part for x, part in zip(m["attachments"], parts[len(m["tensors"]):])}
    text = files.get("undo.json")
    need(text is not None, "U3", "no undo.json"), need(len(text) <= 2**26, "U9", f"{len(text)} bytes")
    def once(pairs): return need(len(dict(pairs)) == len(pairs), "U3", "a member twice") or dict(pairs)
    d = attempt("U3", lambda: json.loads(text.decode(), object_pairs_hook=once, parse_constant=lambda name: need(False, "U3", name)))
    need(isinstance(d, dict) and type(d.get("undo")) is int, "U3", "no object with a version"), need(d["undo"] == 1, "U2", d["undo"])
    typed(d, "undo", "undo.json")
    need(d["adapters"] and all(digest(a["content"]) for a in d["adapters"]), "U4", d["adapters"])
    different([f["name"] for f in d["files"]], "U5")
    for i, f in enumerate(d["files"]):
        need(digest(f["before"]["sha256"]) and digest(f["after"]["sha256"]), "U5", f)
        if f["before"] == f["after"]: continue
        h = files.get(f"headers/{i}")
        need(h is not None and [len(h), sha(h)] == [*f["before"].values()], "U5", f"headers/{i} is not what file {i} had before")
    different([t["name"] for t in d["tensors"]], "U6")
    streams = {t["name"]: (t, part) for t, part in zip(m["tensors"], parts)}
    need({*streams} == {str(i) for i in range(len(d["tensors"]))}, "U6", f"{len(d['tensors'])} tensors, streams {[*streams]}")
    for t in d["tensors"]:
        need(0 <= t["file"] < len(d["files"]), "U6", t["file"]), need(all(n >= 0 for n in t["shape"]), "U3", t["shape"])
        need(BITS.get(t["dtype"]) in WORD and elements(t) * BITS[t["dtype"]] < 2**65, "U7", f"{t['dtype']} {t['shape']}")
        need(t["block"] >= max(1, min(2**22 / BITS[t["dtype"]], elements(t))), "U8", f"blocks of {t['block']} elements")
        need({"subtract": t["terms"], "same": not t["terms"]}.get(t["predict"]), "U10", f"{t['predict']}, {len(t['terms'])} terms")
        need(all(0 <= x["adapter"] < len(d["adapters"]) for x in t["terms"]), "U10", t["terms"])
    return d, streams, files

def entries(t, record, stream):  # section 4: (marks, sizes, escapes, after, before, offset) of each block
    bits, n = BITS[t["dtype"]], len(blocks(t))
    need(record["dtype"] == "U8" and len(record["shape"]) == 1, "U11", record), need(len(stream) >= 48 * n, "U11", "no room for the table")
    out, pos = [], 0
    for e, start in zip(ENTRY.iter_unpack(stream[len(stream) - 48 * n:]), blocks(t)):
        length = e[1] + e[2] + (e[0] if e[0] != PLANAR else 0)
        need(length <= min(t["block"], elements(t) - start) * bits // 8, "U11", f"a payload of {length} bytes")
        out.append((*e, pos))
        pos += length
    need(pos + 48 * n == len(stream), "U11", f"{len(stream)} bytes, due are {pos + 48 * n}")
    return out

def residuals(stream, entry, n, bits):  # (element, z) of each element of the block whose z is not zero
    marks, sizes, escapes, _, _, pos = entry
    if marks == PLANAR:
        need(sizes == n * bits // 8 and escapes == 0, "U12", f"a planar payload of {sizes} and {escapes} bytes for {n} elements")
        planes = [stream[pos + p * n:pos + p * n + n] for p in range(bits // 8)]
        return enumerate(int.from_bytes(z, "big") for z in zip(*planes))
    size, escape, end, at, out = pos + marks, pos + marks + sizes, pos + marks + sizes + escapes, 0, []
    for m in stream[pos:pos + marks]:
        need(m < 247, "U12", f"mark {m}")
        at += m % 80 if m < 240 else 80 * 4**(m - 240)
        need(at <= n - (m < 240), "U12", f"element {at} of {n}")
        if m >= 240: continue
        z = m // 80 + 1
        if z == 3:
            need(size < pos + marks + sizes, "U12", "no size left")
            z, size = stream[size] + 3, size + 1
            if z == 258:
                need(escape + bits // 8 <= end, "U12", "no escape left")
                z, escape = int.from_bytes(stream[escape:escape + bits // 8], "little"), escape + bits // 8
        out.append((at, z))
        at += 1
    need(size == pos + marks + sizes and escape == end, "U12", "sizes or escapes left over")
    return out

def step(x, z, bits):  # what lies d values from x
    top, full = 1 << bits - 1, (1 << bits) - 1
    o = (x ^ (full if x & top else top)) + (-(z + 1 >> 1) if z & 1 else z >> 1) & full
    return o ^ (top if o & top else full)

def split(x, dtype):  # x as integer · 2^exponent; None where it is not finite
    e, f = FLOATS[dtype]
    field, m = x >> f & (1 << e) - 1, x & (1 << f) - 1
    return None if field == (1 << e) - 1 else (-1 if x >> e + f else 1) * (m | (field > 0) << f), max(field, 1) + 1 - (1 << e - 1) - f

def integers(dtype, b):  # the values of a matrix as integers · 2^exponent, and the exponent
    values = [split(x, dtype) for x in words(b, BITS[dtype])]
    need(all(values), "factors", "not finite: such a merge is recorded as `same` only")
    low = min((e for m, e in values if m), default=0)
    return [m << e - low if m else 0 for m, e in values], low

def predict(t, merged, terms):  # p of all elements; terms are (scale, A, B) with A and B as (dtype, shape, bytes)
    x, bits = words(merged, BITS[t["dtype"]]), BITS[t["dtype"]]
    if t["predict"] == "same": return x
    need(len(t["shape"]) == 2 and t["dtype"] in FLOATS, "terms", f"{t['dtype']} {t['shape']}: linear layers only")
    (e, f), (rows, columns), factors = FLOATS[t["dtype"]], t["shape"], []
    smallest, inf = 2 - (1 << e - 1) - f, ((1 << e) - 1) << f  # exponent of the smallest subnormal number; bits of infinity
    for scale, a, b in terms:
        r, (s, den), ((a, ea), (b, eb)) = a[1][0], scale.as_integer_ratio(), (integers(m[0], m[2]) for m in (a, b))
        n, bs = len(a) // r, [b[i:i + r] for i in range(0, len(b), r)]
        factors.append((s, ea + eb - den.bit_length() + 1, bs, [a[j::n] for j in range(n)]))
        need((len(bs), n) in ((rows, columns), (columns, rows)), "terms", f"{len(bs)}×{n} for {t['shape']}")
    low = min([smallest - 1, *(exponent for _, exponent, _, _ in factors)])
    factors = [(s << exponent - low, *((left, right) if (len(left), len(right)) == (rows, columns) else (right, left)))
               for s, exponent, left, right in factors]  # s·B·A, or its transpose where the base has that shape
    for i in range(rows):
        for j in range(columns):
            w, sigma = x[i * columns + j], sum(s * sum(map(mul, left[i], right[j])) for s, left, right in factors)
            m = w & inf
            if sigma == 0 or m == inf: continue
            m = (w & (1 << f) - 1 | (m > 0) << f) << max((m >> f) - 1, 0) + smallest - low
            d = (-m if w >> e + f else m) - sigma
            v = abs(d)
            k = max(v.bit_length() - f - 1 - smallest + low, 0)  # v has its last digit k places above that of the smallest number
            drop = k + smallest - low  # at least one binary digit
            v = (v + (1 << drop - 1) - 1 + (v >> drop & 1)) >> drop
            x[i * columns + j] = min((k << f) + v, inf) | (d < 0) << e + f
    return x

def header(b):  # of a safetensors file: its bytes, and {name: entry}
    raw = b[:8 + int.from_bytes(b[:8], "little")]
    return raw, attempt("U14", lambda: json.loads(raw[8:].decode()))

def factors(adapters, d, term):
    layers = adapters[d["adapters"][term["adapter"]]["content"]]
    return need(term["module"] in layers, "terms", f"no module {term['module']}") or layers[term["module"]]

def pieces(size, changed):  # of the data between the changed tensors
    pos = 0
    for begin, end in [*sorted(changed), (size, size)]:
        yield from ((p, min(p + PIECE, begin)) for p in range(pos, begin, PIECE))
        pos = end

def unmerge(merged, adapters, record):  # section 5: {file name: bytes} before the merge; adapters are {content id: {module: (A, B)}}
    d, streams, attached = describe(record)
    out, work = {}, []
    need(all(a["content"] in adapters for a in d["adapters"]), "adapters", f"not those of the record: {[*adapters]}")
    names = [*merged] if len(merged) == len(d["files"]) == 1 else [f["name"] for f in d["files"]]
    need({*names} == {*merged}, "U14", f"files {[*merged]}, the record has {names}")
    for i, (f, name) in enumerate(zip(d["files"], names)):
        raw, h = header(merged[name])
        need([len(raw), sha(raw)] == [*f["after"].values()], "U14", f"the header of {name} is not what the merge has written")
        data, changed = bytearray(merged[name][len(raw):]), []
        for k, t in enumerate(d["tensors"]):
            if t["file"] != i: continue
            at = h.get(t["name"], {"dtype": "", "shape": []})
            need((at["dtype"], at["shape"]) == (t["dtype"], t["shape"]), "U14", f"{t['name']} is not in the header as the record has it")
            changed.append(at["data_offsets"]), work.append((name, t, str(k), *at["data_offsets"]))
        ranges = [*pieces(len(data), changed)]
        need(len(ranges) == len(f["rest"]), "U13", f"{len(f['rest'])} sums for {len(ranges)} pieces")
        for (p, end), crc in zip(ranges, f["rest"]): need(zlib.crc32(data[p:end]) == crc, "U15", f"{name}, data from {p} to {end}")
        out[name] = (attached[f"headers/{i}"] if f["before"] != f["after"] else raw), data
    for name, t, k, begin, end in work:
        data, bits, size = out[name][1], BITS[t["dtype"]], BITS[t["dtype"]] // 8
        now, stream = bytes(data[begin:end]), streams[k][1]
        table = entries(t, *streams[k])
        for e, start in zip(table, blocks(t)):
            need(zlib.crc32(now[start * size:(start + t["block"]) * size]) == e[3], "U15", f"{t['name']}, block at element {start}")
        p = predict(t, now, [(float(x["scale"]), *factors(adapters, d, x)) for x in t["terms"]])
        for e, start in zip(table, blocks(t)):
            block = p[start:start + t["block"]]
            for j, z in residuals(stream, e, len(block), bits): block[j] = step(block[j], z, bits)
            b = struct.pack(f"<{len(block)}{WORD[bits]}", *block)
            need(sha(b) == e[4].hex(), "U16", f"{t['name']}, block at element {start}")
            data[begin + start * size:begin + start * size + len(b)] = b
    return {name: before + data for name, (before, data) in out.items()}

def peft(path):  # content id (FORMAT.md, section 13) and factors of plain LoRA
    c = json.load(open(os.path.join(path, "adapter_config.json")))
    plain = not (c.get("rank_pattern") or c.get("alpha_pattern") or c.get("use_dora") or c.get("bias", "none") != "none")
    b, layers = open(os.path.join(path, "adapter_model.safetensors"), "rb").read(), {}
    raw, h = header(b)
    for key, x in h.items():
        m = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if key != "__metadata__": layers.setdefault(need(m and plain, "adapter", f"{path}: not plain LoRA, {key}") or m[1], {})[m[2]] = key
    parts = {k: b[len(raw):][slice(*x["data_offsets"])] for k, x in h.items() if k != "__metadata__"}
    alpha = c["lora_alpha"] if c["lora_alpha"] == int(c["lora_alpha"]) else struct.pack(">d", c["lora_alpha"]).hex()
    def tensor(k): return {"dtype": h[k]["dtype"], "name": k, "sha256": sha(parts[k]), "shape": h[k]["shape"]}
    document = [{"alpha": alpha if isinstance(alpha, str) else int(alpha), "kind": "linear", "module": module, "rank": h[ab["A"]]["shape"][0],
                 "roles": {role: tensor(k) for role, k in ab.items()}, "scaling": "alpha/sqrt(r)" if c.get("use_rslora") else "alpha/r"}
                for module, ab in sorted(layers.items(), key=lambda x: x[0].encode())]
    content = sha(canonical({"adapters": [{"beside": [], "layers": document, "method": "lora", "name": "", "requires": []}], "content": 1}))
    return content, {module: [(h[ab[x]]["dtype"], h[ab[x]]["shape"], parts[ab[x]]) for x in "AB"] for module, ab in layers.items()}

def lora(path):  # the same of a .lora file with one adapter
    m, parts, content, _ = read(open(path, "rb").read())
    def tensor(i): return m["tensors"][i]["dtype"], m["tensors"][i]["shape"], parts[i]
    return content, {l["module"]: [tensor(l["roles"][x]) for x in "AB"] for l in m["adapters"][0]["layers"]}

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("merged"), p.add_argument("adapter", nargs="+"), p.add_argument("--undo", required=True), p.add_argument("-o", required=True)
    args = p.parse_args()
    single = os.path.isfile(args.merged)
    weights = [""] if single else [x for x in os.listdir(args.merged) if x.endswith(".safetensors")]
    paths = {x: os.path.join(args.merged, x) if x else args.merged for x in weights}
    adapters = dict(peft(x) if os.path.isdir(x) else lora(x) for x in args.adapter)
    out = unmerge({x: open(path, "rb").read() for x, path in paths.items()}, adapters, open(args.undo, "rb").read())
    if not single: shutil.copytree(args.merged, args.o, ignore=lambda *_: weights)
    for name, b in out.items():
        with open(os.path.join(args.o, name) if name else args.o, "xb") as f: f.write(b)
if __name__ == "__main__":
    try: main()
    except Invalid as e: sys.exit(str(e))
